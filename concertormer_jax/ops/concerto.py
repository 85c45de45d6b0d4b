"""Concerto self-attention: groups of heads over square blocks (paper, section 3).

The groups differ only in which axis of the blocked features is attended, which is contracted, and which are batched
over. With n blocks of p positions (64 for blocks of 8x8 pixels), m heads and c channels in a head:

    group                      attended    contracted     one map for each   cross-dimensional communication between
    Rs  ripieno_spatial        positions   channels       block, head        blocks (3x3), heads
    Rc  ripieno_channel        channels    positions      block, head        blocks (3x3), heads
    Cc  concertino_channel     channels    blocks         head, position     positions, heads
    Cs  concertino_spatial     positions   blocks         head, channel      channels, heads
    window                     positions   channels       block, head        none: the usual window attention
    transposed                 channels    all pixels     head               none: Restormer's channel attention

The network is made of the first four; the others are there to be compared with. `window` is the plain
softmax(q k^T / sqrt(c)) v. In all others queries and keys are normalised along the contracted axis and the logits have
a learned temperature.

A Ripieno without communication takes the paper's first form: from its logits their mean over the blocks is subtracted,
which the Concertino of the same axis (spatial or channel) attends with; where that Concertino is missing, nothing is
subtracted, and what a block becomes depends on that block alone.

Each group has its own projections, which write the layout that its attention reads; the channel groups multiply all
heads at once and keep the diagonal blocks of the product (c is small: it costs less than to separate the heads of the
feature maps).

On a CPU a product for each block runs on a single core, and XLA shares such products out among the cores only where
many of its operations are ready at once. There large spatial groups attend with one half of the queries beside the
other, and channel groups with one half of the heads beside the other, which also multiply less in vain.
"""

from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.ops import blocks as windows
from concertormer_jax.ops.attention import (
    Communication,
    channel_attention,
    communicate_over_maps,
    plain_attention,
    spatial_attention,
)
from concertormer_jax.ops.convolution import communicate_over_blocks, project, project_channels_first
from concertormer_jax.ops.dispatch import in_memory_of_its_own, on_platform
from concertormer_jax.ops.reference import AttentionWeights

# Transposed attention: between the channels of a whole picture (Restormer, arXiv 2111.09881, section 3.1).


def transposed_attention(q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array) -> jax.Array:
    """Every channel of a head becomes a mean of all, weighted by how alike queries and keys are over the pixels.

    Queries and keys are normalised over the pixels; logits and softmax are computed in float32 at least.
    q, k, v: [B, H, W, m c], head after head; temperature: [m], what the logits are multiplied by. Returns q's shape.
    """
    batch, height, width, _ = q.shape
    heads = temperature.shape[0]

    def channels_first(features):  # [B, m, c, pixels]
        return features.reshape(batch, height * width, heads, -1).transpose(0, 2, 3, 1)

    # The attention between the rows of any matrices; here the rows are channels.
    communication = Communication(lambda logits: logits, bound=jnp.abs(temperature).max())
    attended = spatial_attention(*map(channels_first, (q, k, v)), temperature[:, None], communication)
    return attended.transpose(0, 3, 1, 2).reshape(q.shape)


CONCERTO = ("ripieno_spatial", "ripieno_channel", "concertino_channel", "concertino_spatial")
WINDOW, TRANSPOSED = "window", "transposed"
GROUPS = (*CONCERTO, WINDOW, TRANSPOSED)
INSIDE_BLOCKS = ("ripieno_spatial", "ripieno_channel", WINDOW)
BETWEEN_CHANNELS = ("ripieno_channel", "concertino_channel")
LARGE = 2**20  # numbers in the queries of a group, from which on two halves of them are faster
SHIFT_MASK = -100.0


def concerto_attention(
    x: jax.Array,
    y: jax.Array,
    weights: AttentionWeights,
    shifted: jax.Array | bool,
    *,
    heads: int,
    groups: tuple[str, ...] = CONCERTO,
    block: int = 8,
) -> jax.Array:
    """The attention of all `groups` with their communication, and the simplified channel attention of its result.

    x: [B, H, W, C] normalised features that give the queries; y: [B, H, W, C'] those that give keys and values; H and W
    multiples of `block`, the side of a block in pixels. `shifted` (a boolean, may be traced) moves the blocks by half
    their size. groups: names from `GROUPS`; each has an equal part of the hidden channels. Returns [B, H, W, h] with
    the channels in the order (group, head, channel).
    """
    grid = windows.Grid(x.shape[1] // block, x.shape[2] // block, block)

    # Both [B, positions, blocks, C]; what attends inside blocks takes [B, blocks, positions, C].
    x_across = windows.cut(grid, x, shifted)
    y_across = x_across if y is x else windows.cut(grid, y, shifted)
    x_inside = x_across.swapaxes(1, 2)
    y_inside = x_inside if y is x else y_across.swapaxes(1, 2)

    count = len(groups)
    to_q = jnp.split(weights.to_q.astype(x.dtype), count, axis=1)
    to_kv = jnp.split(weights.to_kv.astype(x.dtype), 2 * count, axis=1)
    temperatures = None if weights.temperature is None else in_memory_of_its_own(weights.temperature)
    tempered = [group for group in groups if group != WINDOW]

    attended = []
    for index, group in enumerate(groups):
        with jax.named_scope(group):
            x_blocks, y_blocks = (x_inside, y_inside) if group in INSIDE_BLOCKS else (x_across, y_across)
            projections = ((x_blocks, to_q[index]), (y_blocks, to_kv[index]), (y_blocks, to_kv[count + index]))
            temperature = None if group == WINDOW else temperatures[tempered.index(group)][:, None]
            communication = _communication(group, groups, weights.cdc.get(group), temperature, grid, shifted)
            parts = on_platform(group, heads, x_blocks, to_q[index], cpu=_parts, default=lambda *_: 1)
            by_heads, by_queries = (parts, 1) if group in BETWEEN_CHANNELS else (1, parts)
            project_group = project_channels_first if group == "concertino_spatial" else project
            qkv = [
                [project_group(features, part) for part in jnp.split(kernel, by_heads, axis=1)]
                for features, kernel in projections
            ]
            attended.append(_ATTEND[group](list(zip(*qkv, strict=True)), heads, temperature, communication, by_queries))

    layouts = [_LAYOUT[group] for group in groups]
    output = jnp.concatenate([_join(parts, *layout) for parts, layout in zip(attended, layouts, strict=True)], axis=-1)
    if weights.sca_kernel is not None:
        with jax.named_scope("sca"):
            means = [_mean(parts, *layout) for parts, layout in zip(attended, layouts, strict=True)]
            gate = jnp.concatenate(means, axis=-1) @ weights.sca_kernel + weights.sca_bias
            output = output * gate.astype(output.dtype)[:, None, None]
    return windows.join(grid, output, shifted)


def _parts(group, heads, features, kernel):
    """In how many parts a CPU attends in `group`, whose queries `kernel` projects out of `features`."""
    if group in BETWEEN_CHANNELS:
        return 2 if heads % 2 == 0 else 1
    large = features.size // features.shape[-1] * kernel.shape[-1] >= LARGE
    return 2 if group in CONCERTO and large else 1


def _join(parts, layout, _, axis):
    """[B, positions, blocks, m c] from the parts along `axis` of an array whose axes `layout` names."""
    heads = "m" if "m" in layout else ""
    joined = [jnp.einsum(f"{layout}->bpn{heads}c", part) for part in parts]
    joined = [part.reshape(*part.shape[:3], -1) for part in joined]
    return jnp.concatenate(joined, axis=1 if axis == "p" else -1)


def _mean(parts, layout, first, axis):
    """The mean [B, m c] over positions and blocks of the parts along `axis` of an array whose axes `layout` names.

    First over the axis `first` by a matrix product, several times faster than such a sum on a CPU.
    """

    def mean(part):
        wide = jnp.promote_types(part.dtype, jnp.float32)
        ones = jnp.ones([part.shape[layout.index(axis)] for axis in ("b", first)], part.dtype)
        heads, other = "m" if "m" in layout else "", "p" if first == "n" else "n"
        axes = f"b{first},{layout}->b{heads}{other}c"
        sums = jnp.einsum(axes, ones, part, preferred_element_type=wide, precision="highest")
        return sums.mean(axis=-2).reshape(len(ones), -1) / ones.shape[1]

    means = [mean(part) for part in parts]
    return sum(means) / len(means) if axis == "p" else jnp.concatenate(means, axis=-1)


# Each takes q, k and v [B, positions, blocks, m c] in parts of some heads, with positions and blocks exchanged for what
# attends inside blocks and the channels first for `concertino_spatial`, and the number of parts in which it takes the
# queries. It returns the parts of an array whose axes `_LAYOUT` names.


def _ripieno_spatial(qkv, heads, temperature, communication, by_queries):
    return _in_parts_of_queries(*_separate_heads(*qkv, heads), temperature, communication, by_queries)


def _window(qkv, heads, _, communication, __):
    def communicate(logits):
        return communication.function(logits, *communication.parameters)

    return [plain_attention(*_separate_heads(*qkv, heads), communicate)]


def _separate_heads(qkv, heads):
    """[B, blocks, positions, m c] to [B, blocks, m, positions, c]."""
    return [part.reshape(*part.shape[:3], heads, -1).swapaxes(2, 3) for part in qkv]


def _in_parts_of_queries(q, k, v, temperature, communication, parts):
    size = q.shape[-2] // parts

    def attend(start):
        own = slice(start, start + size)
        function = partial(communication.function, queries=own)
        return spatial_attention(q[..., own, :], k, v, temperature, communication._replace(function=function))

    return [attend(start) for start in range(0, q.shape[-2], size)]


def _between_channels(qkv, _, temperature, communication, __):
    return channel_attention(qkv, temperature, communication)


def _concertino_spatial(qkv, heads, temperature, communication, by_queries):
    q, k, v = qkv[0]
    channels, batch = q.shape[:2]
    temperature = jnp.repeat(temperature, channels // heads, axis=0)[:, None]
    temperature = jnp.broadcast_to(temperature, (channels, batch, 1))

    def channels_first(logits, *parameters, queries):
        return communication.function(logits.swapaxes(0, 1), *parameters, queries=queries).swapaxes(0, 1)

    communication_of_channels = communication._replace(function=channels_first)
    return _in_parts_of_queries(q, k, v, temperature, communication_of_channels, by_queries)


def _transposed(qkv, _, temperature, communication, __):
    shape = qkv[0][0].shape
    pixels = [part.reshape(shape[0], -1, shape[-1]) for part in qkv[0]]
    return [part.reshape(shape) for part in channel_attention([pixels], temperature, communication)]


_ATTEND = {
    "ripieno_spatial": _ripieno_spatial,
    "ripieno_channel": _between_channels,
    "concertino_channel": _between_channels,
    "concertino_spatial": _concertino_spatial,
    WINDOW: _window,
    TRANSPOSED: _transposed,
}

# Of what these return, by letter: batch, n blocks, p positions, m heads, c channels, of all heads where m is missing;
# the axis over which a matrix product sums it as it lies; and that along which there are parts.
_LAYOUT = {
    "ripieno_spatial": ("bnmpc", "n", "p"),
    "ripieno_channel": ("bnpc", "n", "c"),
    "concertino_channel": ("bpnc", "p", "c"),
    "concertino_spatial": ("cbpn", "n", "p"),
    WINDOW: ("bnmpc", "n", "p"),
    TRANSPOSED: ("bpnc", "p", "c"),
}


def _communication(group, groups, cdc, temperature, grid: windows.Grid, shifted) -> Communication:
    """Of the logits of `group`; cdc: its weights, None for none; temperature: [m, 1], None for `window`.

    A logit before it is a cosine times the temperature of its head. The function takes of the logits between positions
    also which `queries` they are.
    """
    function, parameters, bound = _unchanged, (), None
    if temperature is not None:
        largest = jnp.abs(jax.lax.stop_gradient(temperature))[:, 0]
        bound = largest.max()
    if cdc is not None:
        function = {
            "concertino_channel": _over_positions,
            "concertino_spatial": _over_channels,
        }.get(group, partial(_over_blocks, grid))
        parameters = (cdc,)
        axes = "spqt,s->qt" if group.startswith("concertino") else "yxst,s->t"
        bound = jnp.einsum(axes, jnp.abs(jax.lax.stop_gradient(cdc)), largest, precision="highest").max()
    elif group.startswith("ripieno") and group.replace("ripieno", "concertino") in groups:
        function, bound = _minus_mean, 2 * bound
    if group in ("ripieno_spatial", WINDOW) and shifted is not False:
        function, parameters = partial(_masked, function, grid), (jnp.asarray(shifted), *parameters)
    return Communication(function, parameters, bound)


# The logits of groups inside blocks are [B, blocks, m, A', A], of `concertino_channel` [B, positions, m, c, c], and of
# `concertino_spatial` [B, m c, positions, positions].


def _unchanged(logits, queries=None):
    return logits


def _minus_mean(logits, queries=None):
    return logits - logits.mean(axis=1, keepdims=True)


def _over_blocks(grid, logits, cdc, queries=None):
    return communicate_over_blocks(logits.reshape(-1, grid.rows, grid.columns, *logits.shape[2:]), cdc)


def _over_positions(logits, cdc, queries=None):
    return communicate_over_maps(logits, _square(cdc.transpose(1, 0, 2, 3)))


def _over_channels(logits, cdc, queries=None):
    return communicate_over_maps(logits, _square(cdc.transpose(0, 1, 3, 2)))


def _square(matrix):
    return matrix.reshape(2 * (matrix.shape[0] * matrix.shape[1],))


def _masked(communicate, grid, logits, shifted, *parameters, queries=slice(None)):
    """`communicate`, and then the shift's mask."""
    after = communicate(logits, *parameters)
    if after.shape == logits.shape:
        return mask_maps(grid, after, shifted, queries)

    def default(rows, shifted):
        return mask_maps(grid, rows.reshape(logits.shape), shifted, queries).reshape(rows.shape)

    return on_platform(after, shifted, tpu=partial(mask_rows, grid, logits.shape[2]), default=default)


def mask_maps(
    grid: windows.Grid, logits: jax.Array, shifted: jax.Array | bool, queries: slice = slice(None)
) -> jax.Array:
    """Where `shifted`, hide the positions that are across the border. logits: [B, blocks, m, P', P] of P' `queries`."""
    crosses = windows.crosses_border(*grid)[..., queries, :]
    crosses = crosses.reshape(grid.rows * grid.columns, 1, *logits.shape[-2:])
    return jnp.where(crosses & shifted, logits + SHIFT_MASK, logits)


def mask_rows(grid: windows.Grid, heads: int, logits: jax.Array, shifted: jax.Array | bool) -> jax.Array:
    """`mask_maps` of maps that are rows. logits: [B, ..., P * P], the axes between numbering blocks and their heads."""
    blocks = jnp.arange(grid.rows * grid.columns * heads).reshape(logits.shape[1:-1]) // heads
    return jnp.where(windows.crosses_border_in_rows(*grid, blocks) & shifted, logits + SHIFT_MASK, logits)
