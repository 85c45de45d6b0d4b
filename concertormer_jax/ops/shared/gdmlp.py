"""The gated-dconv MLP of a block on the whole map, step by step (paper, section 3.3)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.shared.projection import project
from concertormer_jax.ops.shared.taps import depthwise_3x3


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
    depthwise: Callable[[Array, Array], Array] = depthwise_3x3,
) -> Float[Array, "b H W C"]:
    """`ops.gdmlp.gated_mlp`, each step on the whole map."""
    to_u, to_z = jnp.split(weights.to_uz, 2, axis=1)  # of one product, the halves would be cut out as copies
    u = depthwise(project(x, to_u), weights.depthwise)
    return residual + project(gated(u, project(x, to_z), attended, weights), weights.to_output)


def gated(
    u: Float[Array, "b H W h"],
    z: Float[Array, "b H W h"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
) -> Float[Array, "b H W h"]:
    """(attended to_hidden + u) * z."""
    return (u if attended is None else project(attended, weights.to_hidden) + u) * z
