"""Ctrl-C, SIGTERM and a second process: one sentence, the right status, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest
import training_runs as runs
from light_network import leave_out_blocks

from concertormer_jax.planning.compilation import compile_apart
from concertormer_jax.runtime import threads
from concertormer_jax.runtime.devices import compile_interruptibly, run_in_background
from concertormer_jax.runtime.errors import STOP_SIGNALS, Stopped, UserError, reported
from concertormer_jax.runtime.files import locked
from concertormer_jax.training import trainer
from concertormer_jax.training.preemption import PreemptionGuard
from concertormer_jax.training.validation import Validation
from concertormer_jax.training.workdir import only_run_in
from configs import common

TWO_PHASES = {"stages.steps": (1, 1), "stages.crop_px": (16, 32), "run.log_every_steps": 100}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    leave_out_blocks(monkeypatch)
    runs.write_photos(tmp_path / "photos")
    return runs.TINY_RUN | runs.WITHOUT_ATTENTION | TWO_PHASES | {"data.source": str(tmp_path / "photos")}


def config_with(settings):
    return runs.override(common.get_config(), settings)


def send(number):
    os.kill(os.getpid(), number)


def assert_stopped_while_compiling(settings, workdir, monkeypatch, phase, number):
    """Let the compiler of a phase work until the test ends, and send a signal meanwhile. Returns what is said."""
    compile_step, released, calls = trainer.compile_step, threading.Event(), []

    def compile_forever():
        threading.Timer(0.2, send, [number]).start()
        released.wait(120)

    def compile_all_but_one(*arguments):
        calls.append(arguments)
        return threads.run(compile_forever).result if len(calls) == phase else compile_step(*arguments)

    monkeypatch.setattr(trainer, "compile_step", compile_all_but_one)
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    try:
        with pytest.raises(Stopped) as stopped:
            trainer.train(config_with(settings), workdir)
        assert threads.busy()
    finally:
        released.set()
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before
    assert stopped.value.number == number
    return stopped.value.text


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_while_a_later_phase_compiles_is_obeyed_at_once_and_saves(settings, tmp_path, monkeypatch, number):
    text = assert_stopped_while_compiling(settings, tmp_path / "run", monkeypatch, 2, number)
    assert text == f"stopped by {number.name}; step 1 is saved, the same command goes on"
    assert (tmp_path / "run" / "checkpoints" / "1").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/stage"]) for line in lines] == [(1, 1)]


def test_a_stop_while_the_first_phase_compiles_is_obeyed_at_once(settings, tmp_path, monkeypatch):
    text = assert_stopped_while_compiling(settings, tmp_path / "run", monkeypatch, 1, signal.SIGTERM)
    assert text == "stopped by SIGTERM; nothing is saved yet, the same command goes on"


def test_a_stop_while_validating_saves_without_it(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "__call__", lambda *_: send(signal.SIGTERM))
    with pytest.raises(Stopped, match="step 1 is saved"):
        trainer.train(config_with(settings | {"run.checkpoint_every_steps": 1}), tmp_path / "run")
    model = json.loads((tmp_path / "run" / "checkpoints" / "1" / "model" / "metadata").read_text())
    assert model["psnr"] is None


def test_the_last_interval_of_every_phase_is_logged(settings, tmp_path):
    trainer.train(config_with(settings | {"stages.steps": (2, 3), "run.log_every_steps": 2}), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/stage"]) for line in lines if "train/loss" in line] == [(2, 1), (4, 2), (5, 2)]


def test_a_signal_noted_before_is_obeyed_before_a_compiler_begins():
    stop = PreemptionGuard(checkpoints=None)
    with stop.listening():
        send(signal.SIGTERM)
        assert stop.asked(1) == signal.SIGTERM
        with pytest.raises(Stopped), stop.interruptible():
            pytest.fail("was begun")


def test_a_second_ctrl_c_ends_at_once():
    with PreemptionGuard(checkpoints=None).listening():
        send(signal.SIGINT)
        with pytest.raises(Stopped):
            send(signal.SIGINT)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_ends_with_one_sentence_and_the_status_of_a_shell(capsys, number, status):
    with pytest.raises(SystemExit) as ended, reported():
        send(number)
        time.sleep(5)
    assert ended.value.code == status
    assert capsys.readouterr().err == f"stopped by {number.name}\n"


def test_what_was_open_is_closed_when_a_command_is_stopped(tmp_path):
    with pytest.raises(SystemExit), reported(), locked(tmp_path / "lock", "held"):
        send(signal.SIGTERM)
        time.sleep(5)
    with locked(tmp_path / "lock", "held"):
        pass


def test_a_command_does_not_wait_for_a_compiler():
    script = (
        "import os, signal, time\n"
        "from concertormer_jax.runtime import errors, threads\n"
        "errors.OWN_PROCESS.set()\n"
        "with errors.reported():\n"
        "    print('begun')\n"
        "    future = threads.run(lambda: time.sleep(100))\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))\n"
        "    future.result()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=runs.ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "begun\n", "stopped by SIGTERM\n")


COMMANDS = [
    ["train.py"],
    ["evaluate.py"],
    *(
        ["-m", "concertormer_jax", name]
        for name in ("restore", "prepare", "convert", "plan", "attribution", "ablation_study")
    ),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_ctrl_c_while_a_command_imports_is_one_sentence(command):
    process = runs.start([sys.executable, "-X", "importtime", *command])
    for line in process.stdout:
        if line.split("|")[-1].strip() == "concertormer_jax.runtime.values":  # which every command imports
            process.send_signal(signal.SIGINT)
            break
    said = [line for line in runs.finish(process, status=130).splitlines() if not line.startswith("import time:")]
    assert said == ["stopped by SIGINT"]


def wait_for_ever(config, mesh):
    time.sleep(1000)


def test_the_compiler_of_a_plan_ends_with_the_wait_for_it():
    threading.Timer(1, send, [signal.SIGINT]).start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compile_apart(wait_for_ever, None, "cpu")
    assert time.monotonic() - begun < 30


def test_a_second_process_in_a_work_folder_is_refused(settings, tmp_path):
    with (
        locked(tmp_path / "run" / ".lock", ""),
        pytest.raises(UserError, match=rf"{tmp_path / 'run'}: process {os.getpid()} on .* is training in this folder"),
    ):
        trainer.train(config_with(settings), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_only_the_first_host_holds_the_work_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with locked(tmp_path / ".lock", ""), only_run_in(tmp_path):
        pass


def test_with_several_hosts_no_program_is_started_by_another_thread(monkeypatch):
    square = jax.jit(jnp.square).lower(3.0)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(threads, "run", lambda _: pytest.fail("a thread was started"))
    assert run_in_background(square, lambda: 3.0).result() == 9
    assert compile_interruptibly(square)(3.0) == 9
