"""What share of a run's time goes into training, and what share of the devices' arithmetic the network uses."""

import contextlib
import time
from collections.abc import Generator

import jax

from concertormer_jax.models import Network
from concertormer_jax.models.costs import costs_of, total
from concertormer_jax.runtime.peaks import peak_of

OTHER_PARTS = ("starting", "compiling", "data_wait", "validating", "saving")


class Goodput:
    """The seconds since this object was made, by what they were spent on; what is not in `OTHER_PARTS` is training."""

    def __init__(self):
        self._start = time.perf_counter()
        self._spent_s = dict.fromkeys(OTHER_PARTS, 0.0)

    @contextlib.contextmanager
    def spent_on(self, part: str) -> Generator[None]:
        """Count the time in this context as `part`. These contexts do not nest."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent_s[part] += time.perf_counter() - start

    def seconds(self) -> float:
        """All of the time."""
        return time.perf_counter() - self._start

    def shares(self) -> dict[str, float]:
        """The share of the time of each part, and of training, which together are 1."""
        seconds = self.seconds()
        shares = {part: spent / seconds for part, spent in self._spent_s.items()}
        return {"training": 1 - sum(shares.values()), **shares}


def training_flops(module: Network, crop_px: int) -> int:
    """The operations of a training step for each image, by hand-counted multiply-accumulates (`models.costs`).

    The backward pass has twice the products of the forward pass; those that `remat` repeats are not counted.
    """
    parts = (total(stage.values()) for stage in costs_of(module, crop_px, crop_px).values())
    return 2 * 3 * total(parts).macs


def peak_flops_per_s(devices: list[jax.Device]) -> float | None:
    """The operations that `devices` can do in a second together, None where one's limit is not known."""
    peaks = [peak_of(device) for device in devices]
    return None if None in peaks else sum(peak.flops_per_s for peak in peaks if peak)
