"""matplotlib, which is optional: only charts need it."""

import importlib.util

from concertormer_jax.errors import UserError


def installed() -> bool:
    """Whether charts can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def pyplot(wanted_by: str):
    """matplotlib's pyplot, drawing into files. Raises UserError, saying what wants it, where it is not installed."""
    if not installed():
        raise UserError(f"{wanted_by} needs matplotlib; install it with: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
