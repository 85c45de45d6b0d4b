"""The operations of a network beside its attention: the gated-dconv MLP, 3x3 convolutions, and TLC's windows.

`implementation`, in all of them: see `ops.dispatch.form`. They raise ValueError for an unknown one.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.reference import MLPWeights, window_starts
from concertormer_jax.ops.shared.layers import project

__all__ = ["convolve_to_few", "depthwise_3x3", "gated_mlp", "on_windows", "project", "window_starts"]


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
    *,
    implementation: str | None = None,
) -> Float[Array, "b H W C"]:
    """The gated-dconv MLP of a block (paper, section 3.3): projections around a gate, which holds a 3x3 convolution.

    residual + ((attended to_hidden + depthwise(u)) * z) to_output with u, z = x to_uz. x: the normalised features;
    attended: what attention gives, None for the MLP alone.
    """
    return form("gated_mlp", implementation)(residual, x, attended, weights)


def depthwise_3x3(
    features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C"], *, implementation: str | None = None
) -> Float[Array, "b H W C"]:
    """A 3x3 convolution of every channel for itself, with zero padding."""
    return form("depthwise_3x3", implementation)(features, kernel)


def convolve_to_few(
    features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"], *, implementation: str | None = None
) -> Float[Array, "b H W D"]:
    """A 3x3 convolution with zero padding to few channels D, such as those of a picture."""
    return form("convolve_to_few", implementation)(features, kernel)


def on_windows(
    function: Callable[..., Array],
    features: Sequence[Float[Array, "b H W _"]],
    window: int,
    *,
    implementation: str | None = None,
) -> Float[Array, "b H W D"]:
    """The test-time local converter (TLC): the mean of `function` over overlapping windows of feature maps.

    A network that was trained on crops so computes sums over about as many pixels as in its training. window: side of
    the windows in pixels of the maps, which lie at `window_starts`. features: arrays that are cut alike; `function`
    takes as many arrays [b', h, w, C] and returns [b', h, w, D], with h = min(H, window) and w = min(W, window).
    """
    return form("on_windows", implementation)(function, features, window)
