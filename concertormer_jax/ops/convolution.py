"""3x3 convolutions with few products for each number they read."""

from typing import Any

import jax
from jaxtyping import Array, Float

from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.sharded import row_shards
from concertormer_jax.ops.shared.projection import project

__all__ = ["convolve", "convolve_to_few", "depthwise_3x3", "project"]


def depthwise_3x3(
    features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C"], *, implementation: str | None = None
) -> Float[Array, "b H W C"]:
    """Depthwise 3x3 convolution with zero padding. implementation: see `ops.dispatch.form`."""
    return form("depthwise_3x3", implementation)(features, kernel)


def convolve_to_few(
    features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"], *, implementation: str | None = None
) -> Float[Array, "b H W D"]:
    """3x3 convolution with zero padding to few channels, as of a picture. implementation: see `ops.dispatch.form`."""
    return form("convolve_to_few", implementation)(features, kernel)


def convolve(
    features: Float[Array, "b H W C"], kernel: Float[Array, "k k C D"], *settings: Any, **options: Any
) -> Float[Array, "b _ _ D"]:
    """XLA's `jax.lax.conv_general_dilated`: of 3x3 pixels with zero padding that keeps the size, or of whole cells."""
    rows = row_shards.value

    def convolution(maps):
        return jax.lax.conv_general_dilated(maps, kernel, *settings, **options)

    return convolution(features) if rows is None or len(kernel) != 3 else rows.convolve(convolution, features)
