"""3x3 convolutions with few products for each number they read."""

from jaxtyping import Array, Float

from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.shared.projection import project

__all__ = ["convolve_to_few", "depthwise_3x3", "project"]


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
