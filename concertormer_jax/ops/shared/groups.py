"""What the groups of heads take and return: their parameters, and the axes of their results.

Letters as in `ops.reference`: b batch, n blocks, p positions in a block, m heads, c channels of a head. Every group has
projections of its own, which write its queries, keys and values in the layout that its attention reads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import GROUPS, AttentionWeights, wide
from concertormer_jax.ops.shared.cdc import CDC
from concertormer_jax.ops.shared.layers import project

INSIDE_BLOCKS = ("ripieno_spatial", "ripieno_channel", "window")  # they take [b, n, p, C], the others [b, p, n, C]


class Layout(NamedTuple):
    """How the result of a group lies in memory.

    axes: its letters; without m, c counts the channels of all heads. summed: the axis, n or p, over which one matrix
    product can sum it.
    """

    axes: str
    summed: str


LAYOUTS = {
    "ripieno_spatial": Layout("bnmpc", "n"),
    "ripieno_channel": Layout("bnpc", "n"),
    "concertino_channel": Layout("bpnc", "p"),
    "concertino_spatial": Layout("cbpn", "n"),
    "window": Layout("bnmpc", "n"),
    "transposed": Layout("bpnc", "p"),
}


class Parameters(NamedTuple):
    """The weights of one group. temperature: None for `window`; cdc: None without CDC."""

    group: str
    to_q: Float[Array, "C mc"]
    to_k: Float[Array, "D mc"]
    to_v: Float[Array, "D mc"]
    temperature: Float[Array, "m 1"] | None
    cdc: Float[Array, "_ _ _ t"] | None

    @property
    def required_temperature(self) -> Float[Array, "m 1"]:
        """The temperature of a group that has one. Raises ValueError for another."""
        if self.temperature is None:
            raise ValueError(f"{self.group} has no temperature")
        return self.temperature


def parameters_by_group(weights: AttentionWeights, groups: Sequence[str], dtype) -> Iterator[Parameters]:
    """The parts of `weights` that belong to each group, the projections as `dtype`."""
    count = len(groups)
    to_q = jnp.split(weights.to_q.astype(dtype), count, axis=1)
    to_kv = jnp.split(weights.to_kv.astype(dtype), 2 * count, axis=1)
    tempered = [group for group in groups if GROUPS[group].normalised_over is not None]
    for index, group in enumerate(groups):
        temperature = None
        if weights.temperature is not None and group in tempered:
            temperature = weights.temperature[tempered.index(group)][:, None]
        yield Parameters(group, to_q[index], to_kv[index], to_kv[count + index], temperature, weights.cdc.get(group))


@jax.named_scope("projections")
def projected(
    x: Float[Array, "..."],
    y: Float[Array, "..."],
    own: Parameters,
    project: Callable[[Array, Array], Any] = project,
) -> tuple[Any, Any, Any]:
    """A group's q of features x [..., C], and its k and v of features y [..., D], as `project` gives them."""
    return project(x, own.to_q), project(y, own.to_k), project(y, own.to_v)


def separate_heads(features: Float[Array, "b n p mc"], heads: int) -> Float[Array, "b n m p c"]:
    """The features as spatial attention inside blocks reads them."""
    return features.reshape(*features.shape[:3], heads, -1).swapaxes(2, 3)


def for_every_channel(
    temperature: Float[Array, "m 1"], cdc: CDC, q: Float[Array, "mc b p n"]
) -> tuple[Float[Array, "mc b 1"], CDC]:
    """The temperature and CDC of `concertino_spatial` for features with the channels first, which it attends to."""

    def channels_first(logits, *parameters):
        return cdc.function(logits.swapaxes(0, 1), *parameters).swapaxes(0, 1)

    channels, batch = q.shape[:2]
    temperature = jnp.repeat(temperature, channels // len(temperature), axis=0)[:, None]
    return jnp.broadcast_to(temperature, (channels, batch, 1)), cdc._replace(function=channels_first)


def positions_first(layout: Layout, result: Float[Array, "..."]) -> Float[Array, "b p n mc"]:
    """The result of a group as blocks of a map."""
    heads = "m" if "m" in layout.axes else ""
    blocks = jnp.einsum(f"{layout.axes}->bpn{heads}c", result)
    return blocks.reshape(*blocks.shape[:3], -1)


def mean_of_map(layout: Layout, result: Float[Array, "..."]) -> Float[Array, "b mc"]:
    """The mean of a group's result over positions and blocks, in float32 at least.

    The axis `layout.summed` is summed first, by a product with ones, which is faster than a sum.
    """
    axes, summed = layout
    ones = jnp.ones([result.shape[axes.index(axis)] for axis in ("b", summed)], result.dtype)
    heads, other = "m" if "m" in axes else "", "p" if summed == "n" else "n"
    einsum = f"b{summed},{axes}->b{heads}{other}c"
    sums = jnp.einsum(einsum, ones, result, preferred_element_type=wide(result), precision="highest")
    return sums.mean(axis=-2).reshape(len(ones), -1) / ones.shape[1]


def sca_gate(weights: AttentionWeights, means: list[Float[Array, "b _"]], dtype) -> Float[Array, "b 1 1 h"]:
    """The gate by which simplified channel attention multiplies a map. means: over the map, of every group's result."""
    mean = jnp.concatenate(means, axis=-1)
    gate = mean @ weights.sca_kernel + weights.sca_bias  # ty: ignore[unsupported-operator]  # called with SCA alone
    return gate.astype(dtype)[:, None, None]
