"""Every picture is restored and scored once, whatever the batch, the number of devices and the sizes."""

import math
import threading

import jax
import numpy as np
import pytest
from fake_model import FakeModule, fake_model
from PIL import Image

from concertormer_jax.commands import evaluate as command
from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation import evaluator, restoration
from concertormer_jax.evaluation.evaluator import evaluate, restored_path
from concertormer_jax.evaluation.scores import PROTOCOLS, EvaluationSet
from concertormer_jax.inference.compiled import CompiledPerShape
from concertormer_jax.metrics import psnr_ssim
from concertormer_jax.runtime.devices import Hosts
from concertormer_jax.runtime.errors import UserError

SIZES = [(64, 64), (70, 40), (64, 64), (7, 130), (50, 60), (1, 1), (64, 64)]


@pytest.fixture
def loaded(monkeypatch):
    """Let the command load a fake network, and leave the settings of the process alone."""
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: fake_model(0.8437))


def read(path):
    return np.asarray(Image.open(path))


def write_pairs(folder, sizes=SIZES, noise=20):
    generator = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        target = generator.integers(0, 256, (*size, 3))
        degraded = np.clip(target + generator.integers(-noise, noise + 1, target.shape), 0, 255)
        for part, picture in (("input", degraded), ("target", target)):
            path = folder / part / f"scene/{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(path)
    return folder


def pairs_in(folder):
    return EvaluationSet(folder.name, open_source(folder))


def recording(calls, multiple=64):
    """A module that notes what it is compiled for."""

    class Recording(FakeModule):
        def clone(self, tlc_window):
            return Recording(tlc_window)

        def apply(self, variables, images):
            calls.append(images.shape)
            return super().apply(variables, images)

    Recording.multiple = multiple
    return Recording()


@pytest.mark.parametrize(("devices", "batch"), [(1, None), (1, 2), (8, None), (8, 3), (8, 16)])
def test_every_picture_is_scored_once_on_any_number_of_devices(tmp_path, devices, batch):
    assert len(jax.devices()[:devices]) == devices, "conftest.py fakes eight devices"
    folder = write_pairs(tmp_path / "data")
    result = evaluate(
        fake_model(0.8437),
        pairs_in(folder),
        tmp_path / "out",
        tlc="off",
        metrics=["psnr_rgb", "ssim_y"],
        batch=batch,
        devices=jax.devices()[:devices],
    )
    assert [image.name for image in result.images] == [f"scene/{index}" for index in range(len(SIZES))]
    assert [(image.height, image.width) for image in result.images] == SIZES
    for image in result.images:
        degraded, target = (read(folder / part / f"{image.name}.png") for part in ("input", "target"))
        restored = read(restored_path(tmp_path / "out", image.name))
        np.testing.assert_array_equal(restored, np.rint(degraded * 0.8437))
        for name in ("psnr_rgb", "ssim_y"):
            assert image.restored[name] == psnr_ssim.ROUNDED_METRICS[name](restored, target)
            assert image.input[name] == psnr_ssim.ROUNDED_METRICS[name](degraded, target)
    assert result.mean("restored", "psnr_rgb") == pytest.approx(
        np.mean([i.restored["psnr_rgb"] for i in result.images])
    )


def test_every_padded_size_is_compiled_once_and_fills_its_steps(tmp_path, monkeypatch):
    calls, lines, steps = [], [], []

    class Counting(CompiledPerShape):
        def __call__(self, params, images):
            steps.append(images.shape[1:3])
            return super().__call__(params, images)

    monkeypatch.setattr(restoration, "CompiledPerShape", Counting)
    model = fake_model()
    object.__setattr__(model, "module", recording(calls))
    evaluate(
        model,
        pairs_in(write_pairs(tmp_path / "data")),
        tmp_path / "out",
        batch=2,
        devices=jax.devices()[:1],
        log=lines.append,
    )
    assert sorted(calls) == [(1, 64, 192, 3), (1, 128, 64, 3), (2, 64, 64, 3)]
    assert sum(line.startswith("compiling 64x64") for line in lines) == 1
    assert sum("compiled" in line for line in lines) == 3
    assert sorted(steps) == [(64, 64)] * 3 + [(64, 192), (128, 64)], "five of 64x64 take three steps of two"


def test_a_slow_scorer_does_not_delay_the_device(tmp_path, monkeypatch):
    """No picture is scored before the device was given the last one."""
    monkeypatch.setattr(evaluator, "_SCORING_THREADS", 2)
    steps, last_given = [], threading.Event()

    class Counting(CompiledPerShape):
        def __call__(self, params, images):
            steps.append(images.shape)
            if len(steps) == len(SIZES):
                last_given.set()
            return super().__call__(params, images)

    def slow(*arguments):
        assert last_given.wait(60), f"{len(steps)} of {len(SIZES)} pictures were given to the device"
        return psnr_ssim.score(*arguments)

    monkeypatch.setattr(restoration, "CompiledPerShape", Counting)
    monkeypatch.setattr(evaluator, "score", slow)
    pairs = pairs_in(write_pairs(tmp_path / "data"))
    result = evaluate(fake_model(), pairs, tmp_path / "out", tlc="off", devices=jax.devices()[:1])
    assert len(result.images) == len(SIZES)


def test_fewer_pictures_are_scored_at_once_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(evaluator, "_SCORING_THREADS", 8)
    threads = []
    for gigabytes in (100, 10, 1):
        monkeypatch.setattr(evaluator, "available_memory_bytes", lambda free=gigabytes * 1e9: free)
        threads.append(evaluator._scoring_threads([(10, 10), (3000, 4000)]))
    assert threads == [8, 1, 1]
    assert evaluator._scoring_threads([(1000, 1000)]) == 1
    monkeypatch.setattr(evaluator, "available_memory_bytes", lambda: 3e9)
    assert evaluator._scoring_threads([(1000, 1000)]) == 5


@pytest.mark.parametrize("hosts", [1, 2, 3, 7, 9])
def test_hosts_share_the_pictures(hosts):
    shares = [restoration.share_of(SIZES, 64, host, hosts) for host in range(hosts)]
    assert sorted(index for share in shares for index in share) == list(range(len(SIZES)))
    if hosts == 2:
        # 64x64 five times, then 64x192 and 128x64: ten units of 64x64 pixels.
        assert shares == [[0, 2, 4, 5, 6], [3, 1]]


def test_hosts_that_see_other_pictures_are_refused(tmp_path):
    class TwoHosts(Hosts):
        def gather(self, settings):
            names, *others = settings
            return [settings, (names[1:], *others)]

    pairs = pairs_in(write_pairs(tmp_path / "data", [(20, 20), (20, 20)]))
    with pytest.raises(UserError, match="data: the hosts see other pictures"):
        evaluate(fake_model(), pairs, tmp_path / "out", hosts=TwoHosts())


def test_hosts_need_data_that_all_of_them_see(tmp_path, loaded, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--ckpt={tmp_path}", "--distributed"])
    assert "--distributed needs --data" in capsys.readouterr().err


def test_pictures_are_padded_to_the_multiple_of_the_network(tmp_path):
    calls = []
    model = fake_model()
    object.__setattr__(model, "module", recording(calls, multiple=8))
    evaluate(model, pairs_in(write_pairs(tmp_path / "data", [(50, 61)])), tmp_path / "out", devices=jax.devices()[:1])
    assert calls == [(1, 56, 64, 3)]


def test_padding_reflects_and_changes_no_pixel_of_the_picture(tmp_path):
    """A network that sees its surroundings gives the same with our padding as when it pads by itself."""

    class Blur(FakeModule):
        def clone(self, tlc_window):
            return Blur(tlc_window)

        def apply(self, variables, images):
            height, width = images.shape[1:3]
            padding = [(0, 0), (0, -height % 64), (0, -width % 64), (0, 0)]
            padded = jax.numpy.pad(images, padding, mode="reflect")
            blurred = (padded + jax.numpy.roll(padded, -1, axis=1) + jax.numpy.roll(padded, -1, axis=2)) / 3
            return (blurred[:, :height, :width],)

    folder = write_pairs(tmp_path / "data", [(50, 60), (64, 64), (65, 127)])
    model = fake_model()
    object.__setattr__(model, "module", Blur())
    result = evaluate(model, pairs_in(folder), tmp_path / "out", tlc="off")
    for image in result.images:
        degraded = read(folder / "input" / f"{image.name}.png")
        (alone,) = Blur().apply({}, jax.numpy.asarray(degraded, jax.numpy.float32)[None] / 255)
        expected = np.rint(np.clip(alone[0], 0, 1) * 255)
        np.testing.assert_array_equal(read(restored_path(tmp_path / "out", image.name)), expected)


def test_equal_input_and_target_are_perfect(tmp_path):
    folder = write_pairs(tmp_path / "data", noise=0)
    names = list(psnr_ssim.ROUNDED_METRICS)
    result = evaluate(fake_model(), pairs_in(folder), tmp_path / "out", tlc="off", metrics=names)
    for name in names:
        perfect = math.inf if name.startswith("psnr") else 1.0
        assert result.mean("restored", name) == result.mean("input", name) == perfect
        assert result.gain(name) == 0


def test_outputs_are_clipped(tmp_path):
    folder = write_pairs(tmp_path / "data", [(20, 20)])
    result = evaluate(fake_model(3.0), pairs_in(folder), tmp_path / "out", tlc="off")
    (image,) = result.images
    expected = np.minimum(3 * read(folder / "input" / f"{image.name}.png").astype(int), 255)
    np.testing.assert_array_equal(read(restored_path(tmp_path / "out", image.name)), expected)


def test_tlc_is_on_by_default_and_its_reach_is_recorded(tmp_path):
    folder = write_pairs(tmp_path / "data", [(20, 20), (20, 500), (448, 448)], noise=0)
    on = evaluate(fake_model(), pairs_in(folder), tmp_path / "on")
    assert on.tlc_window == 448
    assert [image.window_covers for image in on.images] == [True, False, True]
    assert on.mean("restored", "psnr_rgb") < 25, "the fake network's TLC adds 0.1"
    off = evaluate(fake_model(), pairs_in(folder), tmp_path / "off", tlc="off")
    assert off.tlc_window is None
    assert not any(image.window_covers for image in off.images)


@pytest.mark.parametrize("devices", [1, 8])
def test_unrounded_metrics_see_the_output_before_it_is_rounded(tmp_path, devices):
    folder = write_pairs(tmp_path / "data", [(32, 32), (32, 32), (40, 33)])
    result = evaluate(
        fake_model(0.8437),
        pairs_in(folder),
        tmp_path / "out",
        protocol=PROTOCOLS["sidd"],
        devices=jax.devices()[:devices],
    )
    assert result.metrics == ("psnr_rgb_unrounded", "ssim_rgb_3d_unrounded")
    assert result.tlc_window is None
    for image in result.images:
        degraded, target = (read(folder / part / f"{image.name}.png") for part in ("input", "target"))
        exact = degraded.astype(np.float64) * 0.8437
        np.testing.assert_array_equal(read(image.file), np.rint(exact), err_msg="what is written is rounded")
        assert image.restored["psnr_rgb_unrounded"] == pytest.approx(
            psnr_ssim.psnr_rgb_unrounded(exact, target), abs=1e-5
        )
        assert image.restored["psnr_rgb_unrounded"] != image.restored["psnr_rgb"]
        assert image.restored["psnr_rgb"] == psnr_ssim.psnr_rgb(read(image.file), target)


def test_the_alignment_is_recorded_for_the_output_and_the_input(tmp_path, monkeypatch):
    folder = write_pairs(tmp_path / "data", [(40, 40), (40, 41)])
    outcomes = iter([True, False, False, False])

    def fake(names, restored, target):
        return psnr_ssim.Scores(dict.fromkeys(names, 30.0), next(outcomes))

    monkeypatch.setattr(evaluator, "score", fake)
    monkeypatch.setattr(evaluator, "_SCORING_THREADS", 1)  # so that the outcomes come in order
    result = evaluate(fake_model(), pairs_in(folder), tmp_path / "out", protocol=PROTOCOLS["realblur_j"])
    assert result.metrics == ("psnr_realblur", "ssim_realblur")
    assert [image.converged for image in result.images] == [(True, False), (False, False)]
    assert (result.unaligned("restored"), result.unaligned("input")) == (1, 2)
    monkeypatch.undo()
    plain = evaluate(fake_model(), pairs_in(folder), tmp_path / "out", tlc="off")
    assert plain.unaligned("restored") is None


def test_a_network_that_diverged_is_refused(tmp_path):
    folder = write_pairs(tmp_path / "data", [(20, 20), (20, 20)])
    with pytest.raises(UserError, match=r"scene/0 of data: the network's output is not finite"):
        evaluate(fake_model(math.nan), pairs_in(folder), tmp_path / "out", tlc="off", batch=2)


def test_bad_settings_are_refused_before_anything_is_written(tmp_path):
    folder = write_pairs(tmp_path / "data", [(20, 20)])
    for options, message in [
        ({"metrics": ["psnr"]}, "unknown metric 'psnr'"),
        ({"metrics": []}, "no metric"),
        ({"tlc": "100"}, "nearest: 64 and 128"),
        ({"batch": 0}, "--batch=0"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate(fake_model(), pairs_in(folder), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r".*file/out: cannot be written"):
        evaluate(fake_model(), pairs_in(folder), tmp_path / "file" / "out")


def test_bad_pictures_are_named(tmp_path):
    folder = write_pairs(tmp_path / "data")
    path = folder / "target" / "scene" / "4.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"target/scene/4\.png"):
        evaluate(fake_model(), pairs_in(folder), tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"input/scene/4\.png"):
        evaluate(fake_model(), pairs_in(folder), tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        evaluate(fake_model(), pairs_in(tmp_path / "missing"), tmp_path / "out")


def test_the_command_writes_everything_and_prints_the_row(tmp_path, loaded, capsys):
    folder = write_pairs(tmp_path / "set" / "test", [(20, 20), (30, 20)])
    command.main([f"--ckpt={tmp_path}", f"--data={folder}", "--tlc=64", "--metrics=psnr_y,ssim_rgb_2d"])
    output = tmp_path / "evaluation" / "set-test-tlc-64"
    printed = capsys.readouterr().out
    assert (output / "results.md").read_text() in printed
    assert "| 64 px: no effect, the window covers every image |" in printed
    assert (output / "restored" / "scene" / "1.png").is_file()
    assert {path.name for path in output.iterdir()} >= {"per_image.csv", "results.json", "worst_ten.png"}


def test_the_command_evaluates_bundled_photographs_by_default(tmp_path, loaded, monkeypatch, capsys):
    monkeypatch.setattr(command, "BUNDLED_PHOTOS", tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "photos" / "noise.png")
    command.main([f"--ckpt={tmp_path}", f"--output={tmp_path / 'out'}", "--tlc=off"])
    blurred = read(tmp_path / "out" / "pairs" / "input" / "noise.png")
    np.testing.assert_array_equal(read(tmp_path / "out" / "restored" / "noise.png"), np.rint(blurred * 0.8437))
    assert "| off |" in capsys.readouterr().out


def test_the_command_fails_with_one_sentence(tmp_path, loaded, capsys):
    with pytest.raises(SystemExit) as exit_status:
        command.main([f"--ckpt={tmp_path}", f"--data={tmp_path / 'missing'}"])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {tmp_path / 'missing'}: no such folder; check the path."


@pytest.mark.parametrize("flags", [["--ckpt=gs://bucket/run"], ["--ckpt={here}", "--output=gs://bucket/results"]])
def test_results_are_not_written_into_a_folder_called_gs(tmp_path, loaded, capsys, flags):
    folder = write_pairs(tmp_path / "set", [(20, 20)])
    with pytest.raises(SystemExit):
        command.main([*(flag.format(here=tmp_path) for flag in flags), f"--data={folder}"])
    assert "on this machine" in capsys.readouterr().err
