"""matplotlib, which is optional: only charts need it."""

import importlib.util
from pathlib import Path

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import require_file_writable


def installed() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def require_drawable(wanted_by: str, path) -> None:
    """Raise UserError where charts cannot be drawn, or not into `path`: its suffix or its place does not allow it."""
    known = pyplot(wanted_by).Figure().canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in known:
        raise UserError(f"{wanted_by}={path}: must end in one of .{', .'.join(sorted(known))}")
    require_file_writable(path)


def pyplot(wanted_by: str):
    """matplotlib's pyplot, drawing into files. Raises UserError, saying what wants it, where it is not installed."""
    if not installed():
        raise UserError(f"{wanted_by} needs matplotlib; install it with: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
