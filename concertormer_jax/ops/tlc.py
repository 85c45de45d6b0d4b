"""Test-time local converter: a global operation computed on overlapping windows of about the training size."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.reference import window_starts

__all__ = ["on_windows", "window_starts"]


def on_windows(
    function: Callable[..., Array],
    features: Sequence[Float[Array, "b H W _"]],
    window: int,
    *,
    implementation: str | None = None,
) -> Float[Array, "b H W D"]:
    """Apply `function` to windows of feature maps and average its results where the windows overlap.

    features: arrays that are cut alike; `function` takes as many arrays [b', h, w, C] and returns [b', h, w, D], with
    h = min(H, window) and w = min(W, window).
    implementation: see `ops.dispatch.form`. Raises ValueError for an unknown one.
    """
    return form("on_windows", implementation)(function, features, window)
