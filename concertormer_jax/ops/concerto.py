"""Concerto self-attention: groups of heads over square blocks (paper, section 3).

The groups differ only in which axis of the blocked features is attended, which is contracted, and which are batched
over. Cross-dimensional communication (CDC) mixes the maps of a group. With n blocks of p positions (64 for blocks of
8x8 pixels), m heads and c channels in a head:

    group                      attended    contracted     one map for each   CDC between
    Rs  ripieno_spatial        positions   channels       block, head        blocks (3x3), heads
    Rc  ripieno_channel        channels    positions      block, head        blocks (3x3), heads
    Cc  concertino_channel     channels    blocks         head, position     positions, heads
    Cs  concertino_spatial     positions   blocks         head, channel      channels, heads
    window                     positions   channels       block, head        none: the usual window attention
    transposed                 channels    all pixels     head               none: Restormer's channel attention

The network is made of the first four; the others are there to be compared with. `window` is the plain
softmax(q k^T / sqrt(c)) v. In all others queries and keys are normalised along the contracted axis and the logits have
a learned temperature.

A Ripieno without CDC takes the paper's first form: from its logits their mean over the blocks is subtracted,
which the Concertino of the same axis (spatial or channel) attends with; where that Concertino is missing, nothing is
subtracted, and what a block becomes depends on that block alone.

`ops.reference` has the formulas; `ops.cpu`, `ops.gpu` and `ops.tpu` have the forms for these platforms.
"""

from jaxtyping import Array, Bool, Float

from concertormer_jax.ops import reference
from concertormer_jax.ops.dispatch import form
from concertormer_jax.ops.reference import CONCERTO, AttentionWeights

GROUPS = tuple(reference.GROUPS)
WINDOW, TRANSPOSED = GROUPS[len(CONCERTO) :]


def concerto_attention(
    x: Float[Array, "b H W C"],
    y: Float[Array, "b H W D"],
    weights: AttentionWeights,
    shifted: Bool[Array, ""] | bool,
    *,
    heads: int,
    groups: tuple[str, ...] = CONCERTO,
    block: int = 8,
    implementation: str | None = None,
) -> Float[Array, "b H W h"]:
    """The attention of all `groups` with their CDC, and the simplified channel attention of its result.

    x: normalised features that give the queries; y: those that give keys and values; H and W multiples of `block`, the
    side of a block in pixels. shifted: move the blocks by half their size; may be traced. groups: names from `GROUPS`;
    each has an equal part of the h hidden channels, whose order is (group, head, channel).
    implementation: see `ops.dispatch.form`. Raises ValueError for an unknown one.
    """
    attend = form("concerto_attention", implementation)
    return attend(x, y, weights, shifted, heads=heads, groups=groups, block=block)


def transposed_attention(
    q: Float[Array, "b H W mc"],
    k: Float[Array, "b H W mc"],
    v: Float[Array, "b H W mc"],
    temperature: Float[Array, " m"],
    *,
    implementation: str | None = None,
) -> Float[Array, "b H W mc"]:
    """Attention between the channels of a whole picture (Restormer, arXiv 2111.09881, section 3.1).

    Every channel of a head becomes a mean of all, weighted by how alike queries and keys are over the pixels, which are
    normalised over them. The channels lie head after head. temperature: what the logits are multiplied by.
    implementation: see `ops.dispatch.form`. Raises ValueError for an unknown one.
    """
    return form("transposed_attention", implementation)(q, k, v, temperature)
