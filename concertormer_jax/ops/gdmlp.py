"""The gated-dconv MLP of a block (paper, section 3.3): projections around a gate that holds a depthwise convolution."""

from jaxtyping import Array, Float

from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.reference import MLPWeights


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
    *,
    implementation: str | None = None,
) -> Float[Array, "b H W C"]:
    """residual + ((attended to_hidden + depthwise(u)) * z) to_output with u, z = x to_uz.

    x: the normalised features; attended: None for the MLP alone.
    implementation: see `ops.dispatch.form`. Raises ValueError for an unknown one.
    """
    return form("gated_mlp", implementation)(residual, x, attended, weights)
