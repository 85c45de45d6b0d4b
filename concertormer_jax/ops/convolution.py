"""3x3 convolutions with few products for each number they read, written as the device serves them best.

The general convolution of XLA is ten times slower on a CPU than nine shifted multiply-adds, which fuse into one pass;
so do their derivatives, which are written out below, because the automatic ones would add nine padded arrays. A TPU
multiplies matrices ten times faster than it adds shifted arrays of a few channels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops.dispatch import in_memory_of_its_own, on_platform


def _padded(features: jax.Array) -> jax.Array:
    return jnp.pad(features, ((0, 0), (1, 1), (1, 1)) + ((0, 0),) * (features.ndim - 3))


def _neighbours(padded: jax.Array):
    """Yield (down, right, features moved by one pixel at most) for the nine taps of features padded by one pixel."""
    rows, columns = padded.shape[1] - 2, padded.shape[2] - 2
    for down in range(3):
        for right in range(3):
            yield down, right, padded[:, down : down + rows, right : right + columns]


def _for_each_tap(product, features: jax.Array) -> jax.Array:
    """`product(neighbour)` for the nine taps, stacked as [3, 3, ...]; a loop, so that it is compiled only once."""
    rows, columns = features.shape[1:3]
    padded = _padded(features)

    def at(tap):
        neighbour = jax.lax.dynamic_slice_in_dim(padded, tap // 3, rows, axis=1)
        return product(jax.lax.dynamic_slice_in_dim(neighbour, tap % 3, columns, axis=2))

    taps = jax.lax.map(at, jnp.arange(9))
    return taps.reshape(3, 3, *taps.shape[1:])


@jax.jit
def depthwise_3x3_valid(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_3x3` of features that are padded by one pixel: [B, H + 2, W + 2, C] to [B, H, W, C]."""
    kernel = in_memory_of_its_own(kernel)
    return sum(neighbour * kernel[down, right] for down, right, neighbour in _neighbours(padded))


@jax.custom_vjp
def depthwise_3x3(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise 3x3 convolution with zero padding. features: [B, H, W, C]; kernel: [3, 3, C]."""
    return depthwise_3x3_valid(_padded(features), kernel)


def _depthwise_forward(features, kernel):
    return depthwise_3x3_valid(_padded(features), kernel), (features, kernel)


@jax.jit
def _depthwise_backward(saved, gradient):
    features, kernel = saved
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _for_each_tap(lambda n: jnp.sum(n * gradient, axis=(0, 1, 2), dtype=wide), features)
    return depthwise_3x3_valid(_padded(gradient), kernel[::-1, ::-1]), kernel_gradient.astype(kernel.dtype)


depthwise_3x3.defvjp(_depthwise_forward, _depthwise_backward)


def convolve_to_few(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3 convolution with zero padding to few channels, such as those of a picture.

    features: [B, H, W, C]; kernel: [3, 3, C, D]. Returns [B, H, W, D].
    """
    return on_platform(features, kernel, cpu=convolve_by_projection, default=_convolve)


def _convolve(features, kernel):
    return jax.lax.conv_general_dilated(features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve_by_projection(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve_to_few` as one projection for all nine taps, whose results are shifted and added.

    On a CPU, XLA's derivative by the kernel takes ten times as long.
    """
    to_taps = kernel.transpose(2, 0, 1, 3)  # [C, down, right, D]
    taps = project(features, to_taps.reshape(len(to_taps), -1))
    taps = _padded(taps).reshape(taps.shape[0], taps.shape[1] + 2, taps.shape[2] + 2, 3, 3, -1)
    return sum(neighbour[:, :, :, down, right] for down, right, neighbour in _neighbours(taps))


_MATRIX_CHANNELS = 8  # as many as a TPU's tile has rows


def communicate_over_blocks(logits: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Ripieno map: a 3x3 convolution over the grid of blocks, heads to heads.

    The same kernel serves every entry of the attention maps; the border is padded with zeros (paper, section 3).
    logits: [B, rows, columns, m, E, F]; kernel: [3, 3, m, m] (down, right, head in, head out).
    Returns the maps as rows, as a TPU leaves them: [B, rows, columns / f, f m, E F], f blocks of a row being together.
    """

    def by_taps(logits, kernel):
        return communicate_by_taps(logits, kernel).reshape(_as_rows(logits))

    return on_platform(logits, kernel, tpu=communicate_by_matrices, default=by_taps)


def _as_rows(logits):
    batch, rows, columns, heads = logits.shape[:4]
    fold = math.gcd(columns, max(1, _MATRIX_CHANNELS // heads))
    return batch, rows, columns // fold, fold * heads, math.prod(logits.shape[4:])


def communicate_by_matrices(logits: jax.Array, kernel: jax.Array) -> jax.Array:
    """`communicate_over_blocks` as a convolution whose channels are the heads of several neighbouring blocks."""
    shape = _as_rows(logits)
    channels = shape[3]
    fold = channels // logits.shape[3]
    # The tap `right` of block `to` in a chunk of `fold` blocks reads block `source` of its own or a neighbouring chunk.
    right, to = np.meshgrid(np.arange(3), np.arange(fold), indexing="ij")
    chunk, source = np.divmod(to + right - 1, fold)
    place = np.zeros((3, fold, 3, fold), np.float32)
    place[right, to, chunk + 1, source] = 1
    folded = jnp.einsum("rtcs,drio->dcsito", place, kernel).reshape(3, 3, channels, channels)
    return jax.lax.conv_general_dilated(
        logits.reshape(shape),
        folded[None],
        window_strides=(1, 1, 1),
        padding=((0, 0), (1, 1), (1, 1)),
        dimension_numbers=("DHWCN", "DHWIO", "DHWCN"),  # the entries of the maps are a batch to the convolution
    )


@jax.jit
def _over_blocks(logits, kernel):
    heads = logits.shape[3]
    kernel = in_memory_of_its_own(kernel)
    maps = logits.reshape(*logits.shape[:4], -1)
    entries = maps.shape[-1]
    padded = _padded(maps)
    if heads > 1:
        # Maps of 64 x 64 entries lie whole pages apart, where a cache holds few at a time: with entries between, all.
        # Behind the barrier the taps in the middle read them too, in place of computing the logits again for each head.
        padded = jax.lax.optimization_barrier(jnp.pad(padded, [(0, 0)] * 4 + [(0, 16)]))
    mixed = sum(
        neighbour[:, :, :, head : head + 1, :entries] * kernel[down, right, head][:, None]
        for down, right, neighbour in _neighbours(padded)
        for head in range(heads)
    )
    return mixed.reshape(logits.shape)


@jax.custom_vjp
def communicate_by_taps(logits: jax.Array, kernel: jax.Array) -> jax.Array:
    """`communicate_over_blocks` as multiply-adds of shifted maps. Returns logits' shape."""
    return _over_blocks(logits, kernel)


def _over_blocks_forward(logits, kernel):
    return _over_blocks(logits, kernel), (logits, kernel)


@jax.jit
def _over_blocks_backward(saved, gradient):
    logits, kernel = saved
    _, rows, columns, heads = logits.shape[:4]

    # All maps of a row of blocks times all of a row of the gradient, of which only neighbours count: a product for each
    # pair of rows reads the maps three times, where the taps read them nine times.
    def rows_of(maps):
        return maps.reshape(-1, columns * heads, maps.shape[-2] * maps.shape[-1])

    padded = jnp.pad(logits, ((0, 0), (1, 1)) + ((0, 0),) * 4)
    pairs = [
        jnp.einsum("zse,zte->zst", rows_of(padded[:, down : down + rows]), rows_of(gradient)).sum(axis=0)
        for down in range(3)
    ]
    pairs = jnp.stack(pairs).reshape(3, columns, heads, columns, heads)
    source, target = np.meshgrid(np.arange(columns), np.arange(columns), indexing="ij")
    right = np.stack([source - target == offset for offset in (-1, 0, 1)]).astype(np.float32)
    kernel_gradient = jnp.einsum("dxsyt,rxy->drst", pairs, right)
    return _over_blocks(gradient, kernel[::-1, ::-1].swapaxes(2, 3)), kernel_gradient


communicate_by_taps.defvjp(_over_blocks_forward, _over_blocks_backward)


# Pointwise projections, and the derivative of their kernel in the form that costs least.


def _contract(a, a_axis, b, b_axis, dtype=None):
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


@jax.custom_vjp
def project(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """features [..., I] @ kernel [I, O].

    The automatic derivative by the kernel puts the gradient first into its product, which a CPU then transposes for
    every projection; here the features come first, whose transposed copy serves all projections of the same features.
    """
    return features @ kernel


def _forward(features, kernel):
    return features @ kernel, (features, kernel)


def _backward(saved, gradient):
    features, kernel = saved
    rows = math.prod(features.shape[:-1])
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _contract(features.reshape(rows, -1), 0, gradient.reshape(rows, -1), 0, wide)
    return gradient @ kernel.T, kernel_gradient.astype(kernel.dtype)


project.defvjp(_forward, _backward)


@jax.custom_vjp
def project_channels_first(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """`project` with the output channels as the first axis: features [..., I], kernel [I, O] to [O, ...].

    All three products, the derivatives' as well, read and write the layouts that they are given.
    """
    return _channels_first(features, kernel)


def _channels_first(features, kernel):
    rows = in_memory_of_its_own(kernel.T)  # a CPU multiplies them as they lie, columns it would copy together
    return _contract(rows, 1, features.reshape(-1, features.shape[-1]), 1).reshape(-1, *features.shape[:-1])


def _channels_first_forward(features, kernel):
    return _channels_first(features, kernel), (features, kernel)


def _channels_first_backward(saved, gradient):
    features, kernel = saved
    gradient = gradient.reshape(gradient.shape[0], -1)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _contract(gradient, 1, features.reshape(-1, features.shape[-1]), 0, wide)
    # XLA would make the transposition a part of the product, and on a CPU has no such product of bfloat16.
    kernel_gradient = jax.lax.optimization_barrier(kernel_gradient).T
    return _contract(gradient, 0, kernel, 1).reshape(features.shape), kernel_gradient.astype(kernel.dtype)


project_channels_first.defvjp(_channels_first_forward, _channels_first_backward)
