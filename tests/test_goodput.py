"""Where the time of a run goes, and what the devices could do."""

import time
from types import SimpleNamespace

import pytest

from concertormer_jax.models import create
from concertormer_jax.training.goodput import Goodput, peak_flops_per_s, training_flops


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
    v5e, unknown = SimpleNamespace(device_kind="TPU v5 lite"), SimpleNamespace(device_kind="NVIDIA H200")
    assert peak_flops_per_s([v5e, v5e]) == 2 * 197e12
    assert peak_flops_per_s([v5e, unknown]) is None
