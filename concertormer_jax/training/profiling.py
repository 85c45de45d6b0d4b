"""An XProf trace of some steps of a run: which operations the devices ran, when, and what they waited for."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
from etils import epath

from concertormer_jax.runtime.paths import is_remote

FOLDER = "profile"


class Profiler:
    """Traces the steps from `first` to `last` of `steps`, counted from 1, into the folder `profile` of a work folder.

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
