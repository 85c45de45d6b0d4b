"""Where the time of a run goes, what the devices could do, and which steps are traced."""

import gzip
import json
import time
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import pytest

from concertormer_jax.models import create
from concertormer_jax.training import profiling
from concertormer_jax.training.profiling import Goodput, Profiler, peak_flops_per_s, training_flops


def test_shares_are_of_all_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    goodput = Goodput()
    for part, seconds in (("compiling", 5.0), ("data_wait", 1.0), ("data_wait", 2.0)):
        with goodput.spent_on(part):
            now[0] += seconds
        now[0] += 4.0
    assert goodput.seconds() == 20.0
    shares = goodput.shares()
    assert shares == {
        "training": 0.6,
        "starting": 0,
        "compiling": 0.25,
        "data_wait": pytest.approx(0.15),
        "validating": 0,
        "saving": 0,
    }


def test_time_counts_also_when_its_work_fails():
    goodput = Goodput()
    with pytest.raises(KeyboardInterrupt), goodput.spent_on("validating"):
        raise KeyboardInterrupt
    assert goodput.shares()["validating"] > 0


def test_the_operations_of_a_step_are_six_for_each_multiply_accumulate():
    assert training_flops(create("gopro"), 256) == pytest.approx(6 * 224.36e9, rel=1e-4)  # the README's table


def test_peaks_are_added_and_known_or_not():
    kinds = "TPU v5 lite", "NVIDIA H200", "cpu"
    v5e, h200, unknown = (SimpleNamespace(device_kind=kind) for kind in kinds)
    assert peak_flops_per_s([v5e, v5e], jnp.bfloat16) == pytest.approx(2 * 197e12)
    assert peak_flops_per_s([v5e], jnp.float32) == pytest.approx(197e12), "a TPU rounds to bfloat16"
    assert peak_flops_per_s([h200], jnp.bfloat16) == pytest.approx(989.4e12)
    assert peak_flops_per_s([h200], jnp.float32) == pytest.approx(989.4e12 / 2), "a GPU rounds to TF32"
    assert peak_flops_per_s([v5e, unknown], jnp.float32) is None


def steps_in(folder):
    (trace,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


def run(profiler, steps):
    """The loop of a training, of which each step is one small program."""
    for step in steps:
        profiler.before(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            jax.block_until_ready(jnp.arange(8) + step)
        if profiler.ends_with(step):
            profiler.finish()
    profiler.finish()


@pytest.mark.parametrize(
    ("asked", "run_of", "traced"),
    [((2, 3), range(1, 6), [2, 3]), ((2, 4), range(3, 9), [3, 4]), ((4, 9), range(1, 6), [4, 5])],
    ids=["in the middle", "resumed within", "stopped within"],
)
def test_the_asked_steps_are_traced(asked, run_of, traced, tmp_path):
    run(Profiler(asked, tmp_path), run_of)
    assert steps_in(tmp_path / "profile") == traced


@pytest.mark.parametrize("asked", [(), (7, 9)])
def test_else_nothing_is_written(asked, tmp_path):
    run(Profiler(asked, tmp_path), range(1, 4))
    assert not any(tmp_path.iterdir())


def test_a_trace_for_a_bucket_is_written_here_and_copied(tmp_path, monkeypatch):
    local = tmp_path / "local"
    monkeypatch.setattr(profiling, "is_remote", lambda _: True)
    monkeypatch.setattr(profiling.tempfile, "mkdtemp", MagicMock(return_value=str(local)))
    run(Profiler((1, 2), tmp_path / "bucket"), range(1, 4))
    assert steps_in(tmp_path / "bucket" / "profile") == [1, 2]
    assert not local.exists()
