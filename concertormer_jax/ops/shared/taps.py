"""3x3 convolutions with few products for each number they read, as nine shifted multiply-adds.

XLA fuses these into one pass, while its general convolution is slow on a CPU. The derivatives are written in the same
way, as the automatic ones would add nine padded arrays.

materialize, where it is taken: what the kernel passes through before its use, see `ops.cpu.workarounds`.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from concertormer_jax.ops.blocks import Grid
from concertormer_jax.ops.reference import wide

Materialize = Callable[[Array], Array]


def padded_by_one(features: Float[Array, "b y x *e"]) -> Float[Array, "b y+2 x+2 *e"]:
    """The features with one more pixel of zeros on each side of y and x."""
    return jnp.pad(features, ((0, 0), (1, 1), (1, 1)) + ((0, 0),) * (features.ndim - 3))


def neighbours(padded: Float[Array, "b _ _ *e"]) -> Iterator[tuple[int, int, Array]]:
    """Yield (down, right, features moved by one pixel at most) for the nine taps of features padded by one pixel."""
    rows, columns = padded.shape[1] - 2, padded.shape[2] - 2
    for down in range(3):
        for right in range(3):
            yield down, right, padded[:, down : down + rows, right : right + columns]


def _for_each_tap(product, features):
    """product(neighbour) for the nine taps: [3, 3, ...]. A loop, so that the product is compiled only once."""
    rows, columns = features.shape[1:3]
    padded = padded_by_one(features)

    def at(tap):
        neighbour = jax.lax.dynamic_slice_in_dim(padded, tap // 3, rows, axis=1)
        return product(jax.lax.dynamic_slice_in_dim(neighbour, tap % 3, columns, axis=2))

    taps = jax.lax.map(at, jnp.arange(9))
    return taps.reshape(3, 3, *taps.shape[1:])


@partial(jax.jit, static_argnums=2)
def depthwise_3x3_valid(
    padded: Float[Array, "b _ _ C"], kernel: Float[Array, "3 3 C"], materialize: Materialize
) -> Float[Array, "b _ _ C"]:
    """`depthwise_3x3` of features that are padded by one pixel: the result has two rows and columns less."""
    kernel = materialize(kernel)
    return reduce(jnp.add, (neighbour * kernel[down, right] for down, right, neighbour in neighbours(padded)))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_3x3(
    features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C"], materialize: Materialize = lambda kernel: kernel
) -> Float[Array, "b H W C"]:
    """Depthwise 3x3 convolution with zero padding."""
    return depthwise_3x3_valid(padded_by_one(features), kernel, materialize)


def _depthwise_forward(features, kernel, materialize):
    return depthwise_3x3_valid(padded_by_one(features), kernel, materialize), (features, kernel)


@partial(jax.jit, static_argnums=0)
def _depthwise_backward(materialize, saved, gradient):
    features, kernel = saved
    kernel_gradient = _for_each_tap(lambda n: jnp.sum(n * gradient, axis=(0, 1, 2), dtype=wide(kernel)), features)
    features_gradient = depthwise_3x3_valid(padded_by_one(gradient), kernel[::-1, ::-1], materialize)
    return features_gradient, kernel_gradient.astype(kernel.dtype)


depthwise_3x3.defvjp(_depthwise_forward, _depthwise_backward)


@jax.jit
def taps_over_grid(
    logits: Float[Array, "b rows columns m E F"], kernel: Float[Array, "3 3 m m"]
) -> Float[Array, "b rows columns m E F"]:
    """The CDC of a Ripieno: a 3x3 convolution over the grid of blocks, heads to heads, with zero padding.

    The same kernel (down, right, head in, head out) serves every entry of the attention maps.
    """
    heads = logits.shape[3]
    maps = logits.reshape(*logits.shape[:4], -1)
    entries = maps.shape[-1]
    padded = padded_by_one(maps)
    if heads > 1:
        # The padding: maps of 64 x 64 entries would begin whole pages apart, and share a few lines of the cache.
        # The barrier: without it, XLA would compute the logits again for every head of the taps in the middle.
        padded = jax.lax.optimization_barrier(jnp.pad(padded, [(0, 0)] * 4 + [(0, 16)]))
    products = (
        neighbour[:, :, :, head : head + 1, :entries] * kernel[down, right, head][:, None]
        for down, right, neighbour in neighbours(padded)
        for head in range(heads)
    )
    return reduce(jnp.add, products).reshape(logits.shape)


def cdc_over_blocks(
    grid: Grid,
    logits: Float[Array, "b n m E F"],
    kernel: Float[Array, "3 3 m m"],
    over_grid: Callable[[Array, Array], Array] = taps_over_grid,
) -> Float[Array, "b n m E F"]:
    """The CDC of a Ripieno for logits of all blocks. over_grid: computes what `taps_over_grid` does."""
    maps = logits.reshape(-1, grid.rows, grid.columns, *logits.shape[2:])
    return _over_grid(maps, kernel, over_grid).reshape(logits.shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _over_grid(logits, kernel, over_grid):
    return over_grid(logits, kernel)


def _over_grid_forward(logits, kernel, over_grid):
    return over_grid(logits, kernel), (logits, kernel)


@partial(jax.jit, static_argnums=0)
def _over_grid_backward(over_grid, saved, gradient):
    logits, kernel = saved
    _, rows, columns, heads = logits.shape[:4]

    # For each of three rows of neighbours, one product of all maps of a row of blocks with all maps of a row of the
    # gradient. Only those of neighbouring columns are used, but the maps are read three times in place of nine.
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
    return over_grid(gradient, kernel[::-1, ::-1].swapaxes(2, 3)), kernel_gradient


_over_grid.defvjp(_over_grid_forward, _over_grid_backward)


def convolve_to_few(features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "b H W D"]:
    """3x3 convolution with zero padding to few channels, such as those of a picture: XLA's own."""
    return jax.lax.conv_general_dilated(features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
