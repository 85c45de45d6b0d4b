"""Whole training runs: stopped, resumed, begun from other weights, and refused."""

import gzip
import json
import shutil
import signal
import threading
from functools import partial
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_runs as runs
from light_network import leave_out_blocks
from PIL import Image

from concertormer_jax.models import initial_params, parameter_shapes
from concertormer_jax.runtime import threads
from concertormer_jax.runtime.devices import data_mesh, run_in_background
from concertormer_jax.runtime.errors import Stopped, UserError, reported
from concertormer_jax.training import config_limits, setup, trainer
from concertormer_jax.training.preemption import PreemptionGuard
from concertormer_jax.training.profiling import Goodput
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.workdir import check_and_write_config
from concertormer_jax.weights.checkpoints import Checkpoints, load_model, save_converted
from configs import common

LAST_STEP = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    runs.write_photos(folder)
    return folder


@pytest.fixture(scope="module")
def settings(photos):
    return runs.TINY_RUN | runs.WITHOUT_ATTENTION | {"data.source": str(photos)}


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    """The state at the end of a run that was left alone, which traced everything itself, and its work folder."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    trainer.train(config_with(settings | {"run.profile_steps": (2, 3)}), workdir)
    return runs.stored_state(workdir, LAST_STEP), workdir


def test_stopped_by_sigterm_and_resumed_it_ends_the_same(undisturbed, settings, tmp_path):
    """(Killed while it saves: see test_end_to_end.py.)"""
    expected, _ = undisturbed
    folder = tmp_path / "checkpoints"
    # Nothing is due to be saved here, so that a step is there only if the signal saved it.
    process = runs.start(runs.command(tmp_path, settings | {"run.checkpoint_every_steps": 100}))
    for line in process.stdout:
        if line.startswith("step 3/"):  # compiling phase 2, after step 4, leaves it the time to arrive
            process.send_signal(signal.SIGTERM)
            break
    assert "stopped by SIGTERM" in runs.finish(process, status=128 + signal.SIGTERM)
    (stopped,) = (int(path.name) for path in folder.iterdir() if path.name.isdigit())
    assert 3 <= stopped < LAST_STEP

    output = runs.finish(runs.start(runs.command(tmp_path, settings)))
    assert f"going on from step {stopped}" in output
    assert "compiling the step of phase 2" in output
    runs.assert_identical(runs.stored_state(tmp_path, LAST_STEP), expected)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_run_folder_holds_what_the_readme_promises(undisturbed):
    _, workdir = undisturbed
    assert json.loads((workdir / "config.json").read_text())["stages"]["steps"] == [4, 4]
    assert len(list((workdir / "samples").glob("0*.png"))) == 4
    assert list((workdir / "tensorboard").glob("events*"))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(1, LAST_STEP + 1))
    assert [line["train/stage"] for line in training] == [1] * 4 + [2] * 4
    assert training[0]["train/learning_rate"] == pytest.approx(1e-3)
    assert "validation/psnr" in lines[-1]
    shares = {name: share for name, share in training[-1].items() if name.startswith("goodput/")}
    assert sum(shares.values()) == pytest.approx(1) and shares["goodput/compiling"] > 0.1
    assert Image.open(workdir / "samples" / "first_batch.png").size == (8 * 16, 2 * 16)


def test_the_summary_says_how_a_run_ended(undisturbed):
    _, workdir = undisturbed
    summary = json.loads((workdir / "summary.json").read_text())
    validated = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    psnr = {line["step"]: line["validation/psnr"] for line in validated if "validation/psnr" in line}
    assert summary["finished"] and summary["step"] == summary["last_step"] == LAST_STEP
    assert summary["best_psnr"] == psnr[summary["best_step"]] == max(psnr.values())
    assert summary["devices"] == "8 x cpu" and summary["seconds"] > 0
    assert set(summary["shares"]) == {"training", "starting", "compiling", "data_wait", "validating", "saving"}


def test_the_asked_steps_are_traced(undisturbed):
    _, workdir = undisturbed
    (trace,) = (workdir / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {event["args"]["step_num"] for event in events if event.get("name") == "train"} == {"2", "3"}


def test_the_arithmetic_used_is_told_where_the_peak_is_known(photos, tmp_path):
    run = trainer.Trainer(config_with({"model.variant": "demo", "data.source": str(photos)}), tmp_path)
    assert run.peak_flops_per_s is None, "that of a CPU is not known"
    run.writer, run.step, run.goodput, phase = MagicMock(), 4, Goodput(), run.phases[-1]
    interval = MagicMock(summary=lambda: {"images_per_s": 100.0}, images=400)
    run.flops, run.checkpoints = 0, MagicMock()
    for peak in (None, 5e12):
        run.peak_flops_per_s = peak
        run._log(phase, interval)
        run._finish()
    (_, _, _, without, *_), (_, _, _, values, *_) = (call.args for call in run.writer.training.call_args_list)
    assert "mfu" not in without
    macs = 3.84e9 * (phase.crop_px / 256) ** 2  # the README's table
    assert values["mfu"] == pytest.approx(100 * 6 * macs / 5e12, rel=0.01)
    unknown, told = (call.args[0] for call in run.writer.summary.call_args_list)
    assert unknown["mfu"] is None
    stepping_s = told["seconds"] * (told["shares"]["training"] + told["shares"]["data_wait"])
    assert told["mfu"] == pytest.approx(2 * 400 * 6 * macs / 5e12 / stepping_s, rel=0.01)


def config_with(settings):
    return runs.override(common.get_config(), settings)


def test_not_finite_stops_with_step_and_images(settings, tmp_path, monkeypatch):
    leave_out_blocks(monkeypatch)
    monkeypatch.setitem(config_limits.KEYS, "optimizer.learning_rate", config_limits.Number(0, 1e30))
    config = config_with(settings | {"optimizer.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"the loss is (nan|inf).* at step \d+, on the batch of photo\d"):
        trainer.train(config, tmp_path)
    kept = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    for step in kept:  # what was saved before is good
        for name, value in runs.stored_state(tmp_path, step).items():
            assert np.isfinite(value).all(), name


def stop_after(step, monkeypatch):
    """Let a run be asked to stop after `step`."""
    monkeypatch.setattr(PreemptionGuard, "asked", lambda _, at: signal.SIGTERM if at == step else None)


def test_a_moving_average_goes_on_where_it_was_and_is_what_is_loaded(settings, tmp_path, monkeypatch):
    leave_out_blocks(monkeypatch)
    one_phase = {"stages.steps": (4,), "stages.crop_px": (16,), "stages.batch": (8,)}
    changed = {"train.ema_decay": 0.2, "run.checkpoint_every_steps": 1, "optimizer.name": "muon"}
    config = config_with(settings | one_phase | changed)
    weights, save = [], Checkpoints.save

    def noting_save(checkpoints, state, *rest):
        weights.append(jax.device_get(state.params))
        save(checkpoints, state, *rest)

    monkeypatch.setattr(Checkpoints, "save", noting_save)
    trainer.train(config, tmp_path / "undisturbed")
    phases = make_phases((4,), (16,), (8,))
    average = initial_params(setup.training_from(config, phases).module, config.seed)
    for decay, params in zip((1 / 10, 2 / 11, 0.2, 0.2), weights, strict=True):
        average = jax.tree.map(partial(lambda decay, old, new: decay * old + (1 - decay) * new, decay), average, params)
    loaded = load_model(tmp_path / "undisturbed" / "checkpoints" / "4").params
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), loaded, average)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(2, patch)
        trainer.train(config, tmp_path / "resumed")
    trainer.train(config, tmp_path / "resumed")
    undisturbed, resumed = (runs.stored_state(tmp_path / name, 4) for name in ("undisturbed", "resumed"))
    assert "average['intro']['kernel']" in resumed
    runs.assert_identical(resumed, undisturbed)


def test_accumulation_remat_and_how_often_it_logs_may_change_when_a_run_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "data_mesh", lambda: data_mesh(jax.devices()[:1]))
    settings = settings | {"stages.steps": (4,), "stages.crop_px": (16,), "stages.batch": (8,)}
    changed = {"train.accumulation": 4, "model.remat": False, "run.log_every_steps": 7}
    assert config_with(settings).model.remat
    trainer.train(config_with(settings), tmp_path / "unchanged")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(2, patch)
        trainer.train(config_with(settings), tmp_path / "changed")
    before = runs.stored_state(tmp_path / "changed", 2)
    trainer.train(config_with(settings | changed), tmp_path / "changed")
    assert json.loads((tmp_path / "changed" / "config.json").read_text())["train"]["accumulation"] == 4
    runs.assert_close(*(runs.stored_state(tmp_path / name, 4) for name in ("changed", "unchanged")), before)
    lines = [json.loads(line) for line in (tmp_path / "changed" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 4], "the end of a phase is logged too"


def test_cached_pictures_give_the_same_batches(photos, settings, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")

    def read(cache):
        config = config_with(settings | {"data.source": str(tmp_path / "photos"), "run.cache": cache})
        run = trainer.Trainer(config, tmp_path / "run")
        return lambda: list(run.batches(position=3, batch=8, crop_px=16, steps=3))

    expected, read_cached = read(cache=False)(), read(cache=True)
    first = read_cached()
    for path in (tmp_path / "photos").iterdir():
        path.unlink()
    for batches in (first, read_cached()):  # the second time from memory alone
        for batch, other in zip(batches, expected, strict=True):
            jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_init_from_starts_at_those_weights(undisturbed, settings, tmp_path):
    _, workdir = undisturbed
    one_step = {"stages.steps": (1,), "stages.crop_px": (16,), "stages.batch": (8,)}
    no_rate = {"optimizer.learning_rate": 1e-12, "optimizer.final_learning_rate": 0.0}
    config = config_with(settings | one_step | no_rate | {"init_from": str(workdir), "seed": 7})
    trainer.train(config, tmp_path)
    setup = load_model(workdir).params["intro"]["kernel"]
    np.testing.assert_allclose(load_model(tmp_path).params["intro"]["kernel"], setup, atol=1e-9)


def test_loaded_weights_are_taken_and_none_drawn(settings, tmp_path, monkeypatch):
    config = config_with(settings | {"init_from": str(tmp_path / "ones")})
    phases = make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)
    training = setup.training_from(config, phases)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), parameter_shapes(training.module))
    save_converted(tmp_path / "ones", training.module, ones, train_crop_px=16)
    monkeypatch.setattr(setup, "draw", lambda *_: pytest.fail("weights were drawn"))
    checkpoints = MagicMock(latest_step=lambda: None)
    shapes, first_state = setup.starting_state(training, checkpoints, data_mesh(), seed=0, init_from=config.init_from)
    state = first_state()
    jax.tree.map(np.testing.assert_array_equal, state.params, ones)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), shapes
    )


def test_the_step_is_compiled_before_anything_waits_for_the_weights(settings, tmp_path, monkeypatch):
    class Wanted(Exception):
        pass

    order, drawn, step = [], MagicMock(), MagicMock()
    drawn.result.side_effect = Wanted
    step.side_effect = lambda: order.append("step compiled")
    monkeypatch.setattr(setup, "run_in_background", lambda *_: (order.append("drawing started"), drawn)[1])
    monkeypatch.setattr(trainer, "compile_step", lambda *_: step)
    with pytest.raises(Wanted):
        trainer.train(config_with(settings | runs.ONE_STAGE), tmp_path)
    assert order == ["drawing started", "step compiled"]


def test_the_first_batch_is_read_while_the_step_compiles(settings, tmp_path, monkeypatch):
    class Compiled(Exception):
        pass

    read, batches = threading.Event(), trainer.pipeline.batches

    def compiled_when_read():
        assert read.wait(timeout=60)
        raise Compiled

    def noting_batches(*arguments, **settings):
        read.set()
        return batches(*arguments, **settings)

    monkeypatch.setattr(trainer, "compile_step", lambda *_: threads.run(compiled_when_read).result)
    monkeypatch.setattr(trainer.pipeline, "batches", noting_batches)
    with pytest.raises(Compiled):
        trainer.train(config_with(settings | runs.ONE_STAGE), tmp_path)


def test_a_failure_in_the_background_is_raised_where_its_result_is_wanted():
    square = jax.jit(jnp.square).lower(3.0)
    assert run_in_background(square, lambda: 3.0).result() == 9
    with pytest.raises(TypeError, match="called with float32\\[2\\]"):
        run_in_background(square, lambda: np.zeros(2)).result()


def test_init_from_another_architecture_is_refused(undisturbed, settings, tmp_path):
    config = config_with(settings | {"init_from": str(undisturbed[1]), "model.width": 8})
    with pytest.raises(UserError, match=r"another architecture: width is 4 there and 8"):
        trainer.train(config, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stages.batch": (8, 9)}, r"batch of 9 images of phase 2 .* over 8 devices x 1"),
        ({"train.accumulation": 3}, r"batch of 8 images of phase 1 .* over 8 devices x 3"),
        ({"stages.steps": (4,)}, r"one entry for each phase"),
        ({"stages.crop_px": (16, 20)}, r"crop_px=\(16, 20\) must be .* each a multiple of 8"),
        ({"stages.crop_px": (8, 16)}, r"config.stages.crop_px=\(8, 16\): .* multiples of 16 pixels"),
        ({"model.decoder_heads": (3,)}, r"config.model.decoder_heads=\(3,\): 3 heads do not divide"),
        ({"model.width": None}, r"config.model: model field 'width' must be given"),
        ({"data.source": ""}, r"config.data.source is empty"),
        ({"data.source": "nowhere"}, r"nowhere"),
        ({"init_from": "nowhere"}, r"nowhere does not exist"),
    ],
)
def test_bad_settings_are_named(photos, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        trainer.train(config_with(runs.TINY_RUN | {"data.source": str(photos)} | changed), tmp_path)


def test_a_network_that_no_device_holds_is_refused_before_it_is_drawn(settings, tmp_path):
    wide = {"model.width": 4096, "model.expansion": 64, "model.middle_blocks": 1000}
    with pytest.raises(UserError, match=r"state take \d+\.\d GiB on each device, which has .*config.model"):
        trainer.train(config_with(settings | wide), tmp_path)


def test_work_folder_of_another_config_is_refused(settings, tmp_path):
    check_and_write_config(tmp_path, config_with(settings), begun=False)
    for harmless in ({"run.log_every_steps": 7}, {"train.accumulation": 2}, {"model.remat": False}):
        check_and_write_config(tmp_path, config_with(settings | harmless), begun=True)
    with pytest.raises(UserError, match=r"config.optimizer.clip_norm was 0.01 and is now 0.5"):
        check_and_write_config(tmp_path, config_with(settings | {"optimizer.clip_norm": 0.5}), begun=True)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[1]", b"\xff\xfe"])
def test_a_damaged_config_is_one_sentence(settings, tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path}/config.json is damaged; remove it if"):
        check_and_write_config(tmp_path, config_with(settings), begun=True)
    assert (tmp_path / "config.json").read_bytes() == content


def test_what_stopped_the_first_start_may_be_mended_in_the_same_folder(settings, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere does not exist"):
        trainer.train(config_with(settings | {"init_from": "nowhere"}), tmp_path)
    reached = MagicMock(side_effect=InterruptedError)
    monkeypatch.setattr(trainer.Trainer, "_run_phases", reached)
    with pytest.raises(InterruptedError):
        trainer.train(config_with(settings), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["init_from"] == ""


def test_a_device_that_is_too_small_is_one_sentence(settings, tmp_path, monkeypatch):
    exhausted = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")
    monkeypatch.setattr(trainer.Trainer, "_run_phase", MagicMock(side_effect=exhausted))
    with pytest.raises(UserError, match=r"ran out of memory; raise config\.train\.accumulation"):
        trainer.train(config_with(settings), tmp_path)


@pytest.mark.parametrize(("hosts", "noted"), [(1, {signal.SIGINT, signal.SIGTERM}), (2, set())])
def test_signals_are_noted_on_a_single_host_alone(monkeypatch, hosts, noted):
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    with PreemptionGuard(checkpoints=None).listening():
        assert {number for number in numbers if signal.getsignal(number) is not before[number]} == noted
    assert {number: signal.getsignal(number) for number in numbers} == before


def test_a_file_as_work_folder_is_one_sentence(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit), reported():
        trainer.train(config_with(settings), tmp_path / "file" / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}")
