"""Which steps are traced, and where the trace is written."""

import gzip
import json
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import pytest

from concertormer_jax.training import profiling
from concertormer_jax.training.profiling import Profiler


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
