"""Charts: matplotlib, an optional package, and whether it can draw into a file."""

import importlib.util
from pathlib import Path
from types import ModuleType

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import require_file_writable
from concertormer_jax.runtime.paths import AnyPath


def installed() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def require_drawable(flag: str, path: AnyPath) -> None:
    """Raise UserError without matplotlib, for a suffix that it cannot write, and where `path` cannot be written."""
    known = pyplot(flag).Figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in known:
        raise UserError(f"{flag}={path}: must end in one of .{', .'.join(sorted(known))}")
    require_file_writable(path)


def pyplot(user: str) -> ModuleType:
    """Return matplotlib's pyplot, set to draw into files. Raises UserError, naming `user`, if it is not installed."""
    if not installed():
        raise UserError(f"{user} needs matplotlib; install it with: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
