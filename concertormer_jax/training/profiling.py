"""Where the time of a run goes: the share of each part, what the devices could do, and a trace of some steps."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from concertormer_jax.models import Network
from concertormer_jax.models.costs import costs_of, total
from concertormer_jax.runtime.paths import is_remote
from concertormer_jax.runtime.peaks import SHORT, TF32, peak_of

OTHER_PARTS = ("starting", "compiling", "data_wait", "validating", "saving")
FOLDER = "profile"


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


def peak_flops_per_s(devices: list[jax.Device], dtype: Any) -> float | None:
    """The operations that `devices` can do in a second together, None where one's limit is not known.

    They are those of products of `dtype` at JAX's default precision: float32 at the rate of TF32 on a GPU, and at that
    of bfloat16 on a TPU.
    """
    precision = SHORT if jnp.dtype(dtype).itemsize < 4 else TF32
    peaks = [peak_of(device) for device in devices]
    return None if None in peaks else sum(1 / peak.arithmetic_s({precision: 1.0}) for peak in peaks if peak)


class Profiler:
    """Writes an XProf trace of some steps: which operations the devices ran, when, and what they waited for.

    It is of the steps from `first` to `last` of `steps`, counted from 1, in the folder `profile` of a work folder.
    steps: `(first, last)`, or () for none. Each host traces its own devices.
    """

    def __init__(self, steps: Sequence[int], workdir):
        self._first, self._last = steps or (0, 0)
        self.folder = epath.Path(workdir) / FOLDER
        self._tracing_to: Path | None = None

    def before(self, step: int) -> None:
        """Begin to trace if `step`, which comes next, is to be traced."""
        if self._tracing_to is None and self._first <= step <= self._last:
            # JAX writes traces to local folders alone.
            self._tracing_to = Path(tempfile.mkdtemp() if is_remote(self.folder) else self.folder)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would crowd out the devices' operations
            jax.profiler.start_trace(self._tracing_to, profiler_options=options)

    def ends_with(self, step: int) -> bool:
        """Whether `step` is the last one that is traced: `finish` when the devices have done it."""
        return self._tracing_to is not None and step == self._last

    def finish(self) -> None:
        """End the trace, if there is one, and write it."""
        if self._tracing_to is None:
            return
        written, self._tracing_to = self._tracing_to, None
        jax.profiler.stop_trace()
        if is_remote(self.folder):
            for file in (path for path in written.rglob("*") if path.is_file()):
                copy = self.folder / file.relative_to(written).as_posix()
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
            shutil.rmtree(written)
