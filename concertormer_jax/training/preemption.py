"""A request to end: a signal, or on several hosts the word of the one that is about to be taken away."""

import contextlib
import signal

import jax

from concertormer_jax.runtime.errors import STOP_SIGNALS, Stopped
from concertormer_jax.weights.checkpoints import Checkpoints


class PreemptionGuard:
    """Whether a signal or the other hosts ask this run to save and end."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._signal = None
        self._interruptible = False

    @contextlib.contextmanager
    def listening(self):
        """Note SIGTERM and Ctrl-C in place of ending at once, on a single host; a second Ctrl-C does end at once."""

        def note(number, _):
            again = self._signal == number == signal.SIGINT
            self._signal = number
            if again or self._interruptible:
                raise Stopped(number)

        # On several hosts JAX's own handler tells the others of SIGTERM, and Ctrl-C, which reaches only one, ends it.
        numbers = STOP_SIGNALS if jax.process_count() == 1 else ()
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self):
        """For what takes long and can be left at any moment: a signal in it, or one noted before, raises `Stopped`."""
        self._raise_if_noted()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False
        self._raise_if_noted()  # the exception is lost where Python calls the handler in a destructor

    def _raise_if_noted(self):
        if self._signal is not None:
            raise Stopped(self._signal)

    def asked(self, step: int) -> int | None:
        """The signal that asks to stop after `step`, None if none does; the same answer on every host."""
        if jax.process_count() > 1:
            return signal.SIGTERM if self._checkpoints.reached_preemption(step) else None
        return self._signal
