"""Stages joined by queues: none waits for a slower one, memory is bounded, and the first error ends all."""

import os
import signal
import threading
import time

import pytest

from concertormer_jax.runtime import threads
from concertormer_jax.runtime.threads import as_finished

_PATIENCE_S = 60


def eventually(condition):
    """Wait until `condition()` holds; False if it does not in a minute."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_slow_call_delays_neither_the_source_nor_the_other_calls():
    taken_all = threading.Event()

    def source():
        yield from range(5)
        taken_all.set()

    def function(entry):
        if entry == 0:
            assert taken_all.wait(_PATIENCE_S), "the source waits for the first call"
        return entry

    assert sorted(as_finished(source(), function, workers=2, waiting=4)) == [0, 1, 2, 3, 4]


def test_results_come_as_they_are_finished():
    others_done = threading.Event()

    def function(entry):
        if entry == 0:
            assert others_done.wait(_PATIENCE_S)
        if entry == 3:
            others_done.set()
        return entry

    assert list(as_finished(range(4), function, workers=2, waiting=4))[-1] == 0


def test_no_more_is_taken_than_may_wait():
    taken, free = [], threading.Event()

    def source():
        for entry in range(100):
            taken.append(entry)
            yield entry

    def function(entry):
        assert free.wait(_PATIENCE_S)
        return entry

    results = as_finished(source(), function, workers=3, waiting=4)
    first = threading.Thread(target=lambda: next(results))
    first.start()
    most = 3 + 4 + 1  # at work, waiting, and one that the source holds
    assert eventually(lambda: len(taken) == most)
    time.sleep(0.3)
    assert len(taken) == most
    free.set()
    first.join()
    assert len(list(results)) == 99


@pytest.mark.parametrize("where", ["source", "function"])
def test_the_first_error_ends_all(where):
    def source():
        yield from range(3)
        if where == "source":
            raise LookupError("of the source")
        yield from range(1000)

    def function(entry):
        if where == "function" and entry == 2:
            raise LookupError("of the function")
        return entry

    with pytest.raises(LookupError, match=where):
        list(as_finished(source(), function, workers=2, waiting=2))
    assert eventually(lambda: not threads.busy()), "the threads end"


def test_a_signal_does_not_wait_for_a_call():
    started, free = threading.Event(), threading.Event()

    def function(entry):
        started.set()
        free.wait(_PATIENCE_S)

    def interrupt():
        started.wait(_PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        list(as_finished(range(3), function, workers=1, waiting=1))
    assert threads.busy(), "the call still runs"
    free.set()
    assert eventually(lambda: not threads.busy())
