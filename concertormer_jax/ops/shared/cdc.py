"""Cross-dimensional communication (CDC) of the logits, and the mask of shifted blocks.

The logits of the groups inside blocks are [b, n, m, E, F], those of `concertino_channel` [b, p, m, c, c], and those of
`concertino_spatial` [b, m c, p, p]. (Letters as in `ops.reference`; E F are p q or c d.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.blocks import Grid, crosses_border
from concertormer_jax.ops.reference import MASK, MASKED


class CDC(NamedTuple):
    """What is done to logits before their softmax: function(logits, *parameters).

    function: may return another shape in which the maps keep their order. bound: a number that no |logit| exceeds after
    it, whatever the features; None where none is known.
    """

    function: Callable[..., Array]
    parameters: tuple[Array, ...] = ()
    bound: Float[Array, ""] | None = None

    def then(self, mask: Callable[[Array, Array], Array], shifted: Bool[Array, ""] | bool) -> "CDC":
        """Do this, then mask(logits, shifted). `shifted` becomes a parameter, as it may be traced."""

        def function(logits, shifted, *parameters):
            return mask(self.function(logits, *parameters), shifted)

        return self._replace(function=function, parameters=(jnp.asarray(shifted), *self.parameters))


def cdc_of(
    group: str,
    groups: Sequence[str],
    kernel: Float[Array, "_ _ _ t"] | None,
    temperature: Float[Array, "m 1"] | None,
    over_blocks: Callable[[Array, Array], Array],
    subtract_mean: Callable[[Array], Array] | None = None,
) -> CDC:
    """The CDC of `group`, one of `groups`, with the bound of its logits: before it these are temperature x cosine.

    kernel: the weights, None for no CDC; a Ripieno without them takes the paper's first form (see
    `ops.reference.group_logits`). temperature: None for `window`. over_blocks: the CDC of a group inside blocks, a
    function of logits [b, n, m, E, F] and kernel, see `shared.taps.cdc_over_blocks`. subtract_mean: of logits, over the
    blocks; None for `minus_mean`.
    """
    if temperature is None:
        return CDC(_unchanged)
    largest = jnp.abs(jax.lax.stop_gradient(temperature))[:, 0]
    if kernel is None:
        subtracts = group.startswith("ripieno") and group.replace("ripieno", "concertino") in groups
        if subtracts:
            return CDC(subtract_mean or minus_mean, bound=2 * largest.max())
        return CDC(_unchanged, bound=largest.max())
    function = {"concertino_channel": _over_positions, "concertino_spatial": _over_channels}.get(group, over_blocks)
    axes = "spqt,s->qt" if group.startswith("concertino") else "yxst,s->t"
    bound = jnp.einsum(axes, jnp.abs(jax.lax.stop_gradient(kernel)), largest, precision="highest").max()
    return CDC(function, (kernel,), bound)


def _unchanged(logits):
    return logits


def minus_mean(logits: Float[Array, "b n m E F"]) -> Float[Array, "b n m E F"]:
    """The logits minus their mean over the blocks."""
    return logits - logits.mean(axis=1, keepdims=True)


def _over_positions(logits, kernel):
    return over_maps(logits, _square(kernel.transpose(1, 0, 2, 3)))


def _over_channels(logits, kernel):
    return over_maps(logits, _square(kernel.transpose(0, 1, 3, 2)))


def _square(kernel):
    """[map in, map in, map out, map out] as a matrix."""
    return kernel.reshape(2 * (kernel.shape[0] * kernel.shape[1],))


def over_maps(logits: Float[Array, "b ... E F"], matrix: Float[Array, "D D"]) -> Float[Array, "b D EF"]:
    """The CDC of a Concertino: every map becomes a weighted sum of all maps.

    The axes between b and E number D maps; matrix: [map in, map out]. Returns the maps as rows.
    """
    maps = logits.reshape(logits.shape[0], matrix.shape[0], -1)
    to_maps = jnp.broadcast_to(matrix.T, (len(maps), *matrix.shape))
    return jnp.matmul(to_maps, maps)


def mask_maps(
    grid: Grid, logits: Float[Array, "b n m p q"], shifted: Bool[Array, ""] | bool, queries: slice = slice(None)
) -> Float[Array, "b n m p q"]:
    """Where `shifted`, hide positions q from positions p on the other side of the map's border.

    queries: which positions of a block the p are.
    """
    crosses = crosses_border(grid)[:, None, queries]
    return jnp.where(crosses & shifted, logits + MASK, logits)


def needs_mask(group: str, shifted: Bool[Array, ""] | bool) -> bool:
    """Whether the logits of `group` need a mask: it compares positions of one block, and the blocks may be shifted."""
    return shifted is not False and group in MASKED
