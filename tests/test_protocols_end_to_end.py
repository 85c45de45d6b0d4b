"""Every set: prepared, trained on for two steps and evaluated by the documented commands, in each layout scored.

(Every layout is prepared to the same files: see test_prepare.py.)
"""

import importlib
import json
import re
import shlex

import numpy as np
import pytest
import training_runs as runs
from dataset_fixtures import LAYOUTS, pairs_of, write_set
from light_network import leave_out_blocks

from concertormer_jax.commands import evaluate, prepare, table
from concertormer_jax.data.images import read_rgb, write_png
from concertormer_jax.data.prepared import TRAINING_SPLITS
from concertormer_jax.evaluation.scores import PROTOCOLS
from concertormer_jax.metrics import psnr_ssim
from concertormer_jax.training import trainer

DOCUMENTATION = (runs.ROOT / "docs" / "datasets.md").read_text()
SETS = ["gopro", "hide", "realblur_r", "realblur_j", "rsblur", "rain13k", "reds", "reds_blur", "sidd"]
PROTOCOL = {"rain13k": "derain"}
EVERY_LAYOUT = [(name, layout) for name in SETS for layout in LAYOUTS[name]]
SHRUNK = runs.TINY_RUN | runs.ONE_STAGE


def commands_of(name: str) -> list[list[str]]:
    """The commands of the documentation's block that prepares set `name`."""
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENTATION, re.DOTALL)
    (block,) = [block for block in blocks if f"prepare {name} " in block]
    return [shlex.split(line) for line in block.splitlines()]


def flag(arguments: list[str], name: str) -> str:
    (value,) = [argument.partition("=")[2] for argument in arguments if argument.startswith(f"--{name}=")]
    return value


class Commands:
    """Runs the documented commands in this process, with DOWNLOADS/, runs/ and the prepared sets below `folder`.

    gopro: folder with runs/gopro, which the commands of other sets start from.
    """

    def __init__(self, folder, gopro):
        self.folder, self.gopro = folder, gopro

    def placed(self, argument: str) -> str:
        argument = argument.replace("DOWNLOADS/", f"{self.folder}/DOWNLOADS/")
        argument = argument.replace("=runs/gopro", f"={self.gopro}/runs/gopro")
        return argument.replace("=runs/", f"={self.folder}/runs/")

    def run(self, arguments: list[str]) -> None:
        python, *rest = [self.placed(argument) for argument in arguments]
        assert python == "python"
        data_dir = f"--data-dir={self.folder / 'prepared'}"
        if rest[:3] == ["-m", "concertormer_jax", "prepare"]:
            prepare.main([*rest[3:], data_dir])
        elif rest[0] == "evaluate.py":
            evaluate.main([*rest[1:], data_dir, "--batch=8", f"--output={self.folder / 'results'}"])
        else:
            assert rest[0] == "train.py"
            self.train(rest[1:])

    def train(self, arguments: list[str]) -> None:
        """What train.py does with its flags, by a network and a schedule that are small."""
        path, _, argument = flag(arguments, "config").partition(":")
        recipe = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        keys = dict(a.removeprefix("--config.").split("=", 1) for a in arguments if a.startswith("--config."))
        settings = SHRUNK | {"data.data_dir": str(self.folder / "prepared")} | keys
        config = runs.override(recipe.get_config(*[argument] if argument else []), settings)
        assert trainer.train(config, flag(arguments, "workdir")) == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(name): the folder where set `name`, in the first of its layouts, was taken through its commands, once."""
    folders = {}

    def make(name):
        if name not in folders:
            gopro = make("gopro") if name != "gopro" else None
            folder = tmp_path_factory.mktemp(name)
            downloads = folder / "DOWNLOADS" / name
            assert write_set(name, next(iter(LAYOUTS[name])), downloads) == downloads
            commands = Commands(folder, gopro or folder)
            for arguments in commands_of(name):
                commands.run(arguments)
            folders[name] = folder
        return folders[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "prepare_to_compile", lambda: None)
        leave_out_blocks(patch)
        yield make


def results_of(folder) -> dict:
    return json.loads((folder / "results" / "results.json").read_text())


@pytest.mark.parametrize("name", SETS)
def test_the_documented_commands_give_the_protocols_numbers(made, name):
    results = results_of(made(name))
    protocol = PROTOCOLS[PROTOCOL.get(name, name)]
    assert results["protocol"] == protocol.name
    assert results["variant"] == "custom"
    sets = results["sets"] if "sets" in results else {results["set"]: results}
    expected = [pair for pair in pairs_of(name) if pair.split not in TRAINING_SPLITS]
    assert set(sets) == set(protocol.sets)
    assert sum(scores["images"] for scores in sets.values()) == len(expected)
    for row, scores in sets.items():
        assert scores["tlc"]["window_px"] == protocol.tlc_window("auto", None)
        assert list(scores["mean"]) == list(protocol.metrics)
        mine = [pair.pixels for pair in expected if pair.split in (row, "test")]
        for metric in protocol.metrics:
            inputs = [psnr_ssim.score([metric], *pixels).values[metric] for pixels in mine]
            assert scores["mean"][metric]["input"] == pytest.approx(np.mean(inputs), abs=1e-9), (row, metric)
            assert 0 < scores["mean"][metric]["restored"] < 60


@pytest.fixture(scope="module")
def scored(made, tmp_path_factory):
    """scored(name, data): the tables of `data`, of set `name`, by pictures of other software, the mean of each pair.

    None: the prepared set, once.
    """
    of_the_prepared = {}

    def score(name, data=None):
        if data is None and name in of_the_prepared:
            return of_the_prepared[name]
        folder, protocol = tmp_path_factory.mktemp(name), PROTOCOLS[PROTOCOL.get(name, name)]
        for pair in pairs_of(name):
            if pair.split not in TRAINING_SPLITS:
                place = folder / "made" / pair.split if len(protocol.sets) > 1 else folder / "made"
                write_png(place / f"{pair.name}.png", np.mean(pair.pixels, axis=0).astype(np.uint8))
        arguments = [f"--predictions={folder / 'made'}", f"--data={data or f'tfds:{name}'}", "--metrics=psnr_rgb"]
        evaluate.main([*arguments, f"--data-dir={made(name) / 'prepared'}", f"--output={folder / 'scores'}"])
        assert json.loads((folder / "scores" / "results.json").read_text())["protocol"] == protocol.name
        tables = {file.relative_to(folder): file.read_text() for file in (folder / "scores").rglob("*.csv")}
        if data is None:
            of_the_prepared[name] = tables
        return tables

    return score


@pytest.mark.parametrize(("name", "layout"), EVERY_LAYOUT)
def test_a_folder_is_scored_like_the_set_prepared_from_it(scored, tmp_path, name, layout):
    """The downloaded folder needs no flag."""
    tables = scored(name, str(write_set(name, layout, tmp_path / name)))
    assert tables == scored(name)
    assert len(tables) == len(PROTOCOLS[PROTOCOL.get(name, name)].sets)
    lines = [line.split(",") for text in tables.values() for line in text.splitlines()[1:]]
    assert {line[0] for line in lines} == {pair.name for pair in pairs_of(name) if pair.split not in TRAINING_SPLITS}
    assert all(float(line[-1]) > 5 for line in lines), "halving the error is 6 dB"


def test_the_average_of_deraining_leaves_the_fifth_set_out(made):
    results = results_of(made("rain13k"))
    four = [results["sets"][name]["mean"]["psnr_y"]["restored"] for name in PROTOCOLS["derain"].averaged]
    assert results["average"]["mean"]["psnr_y"]["restored"] == pytest.approx(np.mean(four))
    assert results["average"]["sets"] == ["test100", "rain100h", "rain100l", "test2800"]
    assert "test1200" in results["sets"]


def test_training_on_realblur_starts_from_the_gopro_weights(made):
    start = runs.stored_state(made("gopro") / "runs" / "gopro", 2)
    after = runs.stored_state(made("realblur_j") / "runs" / "realblur_j", 2)
    weights = [key for key in start if key.startswith("params")]
    largest = max(np.abs(start[key] - after[key]).max() for key in weights)
    assert 0 < largest < 0.01, "two steps away, and not another random start"


def test_the_documented_table_takes_all_results(made, capsys):
    folders = [str(made(name) / "results") for name in SETS]
    assert "python -m concertormer_jax table RESULTS... --published RESULTS..." in DOCUMENTATION
    table.main([*folders, "--published", folders[0]])
    printed = capsys.readouterr().out
    (gopro,) = [line for line in printed.splitlines() if line.startswith("| gopro | custom |")]
    assert gopro.count("of 1,111 images") == 2
    assert "| derain: average | custom | psnr_y / ssim_y | - | - | " in printed


def test_the_documented_predictions_are_scored(made, tmp_path):
    (command,) = re.findall(r"^python (evaluate\.py --predictions=FOLDER .*)$", DOCUMENTATION, re.MULTILINE)
    folder = made("gopro")
    arguments = shlex.split(command.replace("FOLDER", str(folder / "results" / "restored")))[1:]
    evaluate.main([*arguments, f"--data-dir={folder / 'prepared'}", f"--output={tmp_path}"])
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["variant"] is None
    assert [i["restored"] for i in again["per_image"]] == [i["restored"] for i in results_of(folder)["per_image"]]


def test_every_documented_command_names_what_exists():
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENTATION, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 25
    for line in lines:
        program = shlex.split(line)[1:3]
        path = program[0]
        if path == "-m":
            path = f"concertormer_jax/commands/{shlex.split(line)[3]}.py"
        assert (runs.ROOT / path).is_file(), line
        for recipe in re.findall(r"--config=([\w/]+\.py)", line):
            assert (runs.ROOT / recipe).is_file(), line
    for target in re.findall(r"\]\(([^)#]+)\)", DOCUMENTATION):
        assert target.startswith("http") or (runs.ROOT / "docs" / target).exists(), target
    for protocol in PROTOCOLS.values():
        line = next(line for line in DOCUMENTATION.splitlines() if line.startswith(f"| `{protocol.name}`"))
        assert all(f"`{metric}`" in line for metric in protocol.metrics)
        window = protocol.tlc_window("auto", None)
        assert protocol.name == "pairs" or (f"{window} px" if window else "off") in line
        assert read_rgb(runs.ROOT / "docs" / "images" / "degradations.jpg").shape[2] == 3
