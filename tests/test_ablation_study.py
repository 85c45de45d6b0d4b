"""The comparison of forms at a small budget: equal conditions, runs from end to end, resuming, and the statistics."""

import dataclasses
import json
import signal
from unittest.mock import MagicMock

import numpy as np
import pytest
import training_runs as runs
from light_network import leave_out_blocks
from PIL import Image

from concertormer_jax.analysis.ablation_study import runs as evidence_runs
from concertormer_jax.analysis.ablation_study import tables
from concertormer_jax.analysis.ablation_study.runs import MiddleCrops, Result, config_of, cost_of
from concertormer_jax.commands import ablation_study as command
from concertormer_jax.models import ABLATIONS
from concertormer_jax.models.costs import Cost
from concertormer_jax.runtime.errors import Stopped, UserError
from concertormer_jax.training.setup import module_from
from configs import demo, evidence, restormer


def tiny(folder):
    """The command's own config with the smallest network and runs, on generated photographs below `folder`."""
    runs.write_photos(folder / "train")
    runs.write_photos(folder / "test", count=2, size=40)
    settings = {
        "model.width": 4,
        "model.middle_blocks": 1,
        "stages.steps": (2,),
        "stages.crop_px": (16,),
        "stages.batch": (8,),
        "data.source": str(folder / "train"),
        "validation.source": str(folder / "test"),
        "validation.images": 2,
        "validation.crop_px": 32,
        "run.cache": False,
    }
    return runs.override(evidence.get_config(), settings)


def result(variant, seed, psnr, ssim=0.9):
    scores = {"psnr_rgb": psnr, "ssim_rgb_3d": ssim}
    return Result(variant, seed, scores, {"psnr_rgb": 20.0, "ssim_rgb_3d": 0.5}, 1.0, "1 x cpu")


COSTS = {"gdmlp": Cost(10, 2_000_000_000, 3), "full": Cost(20, 4_000_000_000, 5)}


@pytest.mark.parametrize("base", [evidence, demo])
@pytest.mark.parametrize("variant", ABLATIONS)
def test_every_form_has_the_sizes_of_the_config_and_differs_by_design(base, variant):
    config = base.get_config()
    sizes, module = module_from(config.model), module_from(config_of(config, variant, 3).model)
    for field in ("width", "encoder_blocks", "middle_blocks", "decoder_blocks", "expansion"):
        assert getattr(module, field) == getattr(sizes, field)
    one_head = "middle_heads" in ABLATIONS[variant]
    assert module.encoder_heads == ((1,) * module.levels if one_head else sizes.encoder_heads)
    architecture = {name: value for name, value in ABLATIONS[variant].items() if "heads" not in name}
    assert architecture == {name: getattr(module.architecture, name) for name in architecture}


def test_a_run_keeps_the_config_but_for_seed_and_form_and_saves_once(tmp_path):
    config = tiny(tmp_path)
    changed = config_of(config, "window", 7)
    assert changed.seed == 7 and config.seed == 0
    assert changed.run.checkpoint_every_steps == 2, "nothing is chosen by the held-out pictures"
    for part in ("data", "stages", "train", "optimizer", "validation"):
        assert changed[part].to_dict() == config[part].to_dict()


def test_costs_differ_as_the_forms_do():
    config = evidence.get_config()
    costs = {name: cost_of(config, name) for name in ("gdmlp", "full", "single_scale", "block_4")}
    assert costs["gdmlp"].macs < costs["block_4"].macs < costs["full"].macs
    assert costs["single_scale"].parameters < costs["full"].parameters


def test_another_network_is_refused():
    with pytest.raises(UserError, match="restormer is no Concertormer"):
        config_of(restormer.get_config(), "full", 0)


def test_middle_crops_are_the_middle():
    picture = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)

    class Source:
        def __len__(self):
            return 1

        def name(self, index):
            return "one"

        def whole(self, index):
            return picture, picture + 1

    crops = MiddleCrops(Source(), 4)
    degraded, target = crops.whole(0)
    np.testing.assert_array_equal(degraded, picture[1:5, 2:6])
    np.testing.assert_array_equal(target, picture[1:5, 2:6] + 1)
    assert (len(crops), crops.name(0), crops.size(0)) == (1, "one", (4, 4))


def test_from_end_to_end_and_finished_runs_are_kept(tmp_path, monkeypatch, capsys):
    leave_out_blocks(monkeypatch)
    config, output = tiny(tmp_path), tmp_path / "results"
    command.compare(config, ["full"], [0, 1], output)
    first = (output / "runs" / "full-0" / "result.json").read_bytes()
    stored = json.loads((output / "results.json").read_text())
    assert [run["seed"] for run in stored["runs"]] == [0, 1]
    assert stored["runs"][0]["scores"] != stored["runs"][1]["scores"], "seeds differ"
    assert stored["runs"][0]["input_scores"] == stored["runs"][1]["input_scores"], "the pictures do not"
    validated = [json.loads(line) for line in (output / "runs" / "full-0" / "metrics.jsonl").read_text().splitlines()]
    assert stored["runs"][0]["scores"]["psnr_rgb"] == pytest.approx(validated[-1]["validation/psnr"], abs=1e-4)
    assert Image.open(output / "results.png").width > 500

    trained = []
    train = evidence_runs.train
    monkeypatch.setattr(
        evidence_runs, "train", lambda config, folder: (trained.append(folder), train(config, folder))[1]
    )
    command.compare(config, ["full", "gdmlp"], [0], output)
    assert trained == [output / "runs" / "gdmlp-0"]
    assert (output / "runs" / "full-0" / "result.json").read_bytes() == first
    table = (output / "results.md").read_text()
    assert "| gdmlp | " in table and "| full | " in table
    assert table in capsys.readouterr().out

    with pytest.raises(UserError, match=r"config\.stages\.steps was \[2\] and is now \[3\].*another --output"):
        command.compare(runs.override(config, {"stages.steps": (3,)}), ["full"], [0], output)


def test_a_run_that_is_asked_to_stop_leaves_no_result(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_runs, "train", MagicMock(side_effect=Stopped(signal.SIGTERM)))
    with pytest.raises(Stopped):
        command.compare(tiny(tmp_path), ["full"], [0], tmp_path / "results")
    assert not list((tmp_path / "results").rglob("result.json"))


def test_difference_is_paired_by_seed_and_judged_by_its_spread():
    """Both forms swing by 1 dB with the seed; the first is 0.1 dB below in every seed, give or take 0.01."""
    swings = {0: 0.0, 1: 1.0, 2: -0.5}
    results = [result("full", seed, 25 + swing) for seed, swing in swings.items()]
    results += [result("gdmlp", seed, 24.9 + swing + 0.01 * (seed - 1)) for seed, swing in swings.items()]
    gdmlp, full = tables.rows(results, COSTS)
    np.testing.assert_allclose(gdmlp.difference, (-0.11, -0.1, -0.09))
    assert gdmlp.half_interval == pytest.approx(4.303 * 0.01 / 3**0.5, rel=1e-3)
    assert gdmlp.stands_out is True and full.stands_out is None

    scattered = [dataclasses.replace(one, scores=result("", 0, 24 + one.seed).scores) for one in results[3:]]
    assert tables.rows(results[:3] + scattered, COSTS)[0].stands_out is False


def test_the_table_says_what_can_be_concluded():
    config = evidence.get_config()
    results = [result(name, seed, 25 + seed + (name == "full")) for name in COSTS for seed in (0, 1)]
    text = tables.markdown(tables.rows(results, COSTS), results, config)
    assert "| gdmlp | 10 | 2.000 | 2 | 25.500 ± 0.707 | +5.500 | 0.9000 | -1.000 ± 0.000 | yes |" in text
    assert "paired difference from full): gdmlp. All other differences are nothing. Half" in text
    assert "width 8 and 1, 2, 1 blocks" in text and "not all the same seeds" not in text
    assert "not all the same seeds" in tables.markdown(tables.rows(results[1:], COSTS), results[1:], config)
    one = results[::2]
    alone = tables.markdown(tables.rows(one, COSTS), one, config)
    assert "nothing can be compared" in alone and "yes" not in alone and "±" not in alone.split("| form")[1]


def test_chart_of_several_seeds_of_one_and_without_the_reference(tmp_path):
    results = [result(name, seed, 25 + seed) for name in COSTS for seed in (0, 1)]
    sizes = []
    for some in (results, results[::2], results[:2]):
        tables.draw(tables.rows(some, COSTS), tmp_path / "chart.png")
        sizes.append(Image.open(tmp_path / "chart.png").size)
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize(
    ("texts", "message"), [(["a"], "--seeds=a: must be"), ([], "--seeds=: must"), (["4294967296"], "4294967296: must")]
)
def test_bad_seeds(texts, message):
    with pytest.raises(UserError, match=message):
        command._numbers(texts)


def test_unknown_form_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UserError, match="--variants: 'half' is unknown; choose from gdmlp,"):
        command.compare(evidence.get_config(), ["half"], [0], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_without_matplotlib_there_are_tables_and_a_note(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command.outputs, "charts_installed", lambda: False)
    monkeypatch.setattr(command.runs, "finished", lambda folder: result("full", 0, 25.0))
    (tmp_path / "runs" / "full-0").mkdir(parents=True)
    command.compare(evidence.get_config(), ["full"], [0], tmp_path)
    assert (tmp_path / "results.md").exists() and not (tmp_path / "results.png").exists()
    assert "pip install matplotlib" in capsys.readouterr().out
