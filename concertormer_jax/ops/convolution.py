"""3x3 convolutions written as nine shifted multiply-adds.

They have few products for each number they read, which the general convolution of XLA serves badly on a CPU (ten times
slower). As sums of shifted arrays they fuse into one pass; so do their derivatives, which are written out below,
because the automatic ones would add nine padded arrays.
"""

import jax
import jax.numpy as jnp


def _padded(features: jax.Array) -> jax.Array:
    return jnp.pad(features, ((0, 0), (1, 1), (1, 1)) + ((0, 0),) * (features.ndim - 3))


def _neighbours(features: jax.Array):
    """Yield (down, right, features moved by one pixel at most) for the nine taps; zeros come in from the border."""
    rows, columns = features.shape[1:3]
    padded = _padded(features)
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


def _depthwise(features, kernel):
    return sum(neighbour * kernel[down, right] for down, right, neighbour in _neighbours(features))


@jax.custom_vjp
def depthwise_3x3(features: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise 3x3 convolution with zero padding. features: [B, H, W, C]; kernel: [3, 3, C]."""
    return _depthwise(features, kernel)


def _depthwise_forward(features, kernel):
    return _depthwise(features, kernel), (features, kernel)


def _depthwise_backward(saved, gradient):
    features, kernel = saved
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    kernel_gradient = _for_each_tap(lambda n: jnp.sum(n * gradient, axis=(0, 1, 2), dtype=wide), features)
    return _depthwise(gradient, kernel[::-1, ::-1]), kernel_gradient.astype(kernel.dtype)


depthwise_3x3.defvjp(_depthwise_forward, _depthwise_backward)


def _over_blocks(logits, kernel):
    return sum(
        neighbour[:, :, :, head : head + 1] * kernel[down, right, head][:, None, None]
        for down, right, neighbour in _neighbours(logits)
        for head in range(logits.shape[3])
    )


@jax.custom_vjp
def communicate_over_blocks(logits: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Ripieno map: a 3x3 convolution over the grid of blocks, heads to heads.

    The same kernel serves every entry of the attention maps; the border is padded with zeros (paper, section 3).
    logits: [B, rows, columns, m, E, F]; kernel: [3, 3, m, m] (down, right, head in, head out). Returns logits' shape.
    """
    return _over_blocks(logits, kernel)


def _over_blocks_forward(logits, kernel):
    return _over_blocks(logits, kernel), (logits, kernel)


def _over_blocks_backward(saved, gradient):
    logits, kernel = saved

    def products(neighbour):  # the last axis is summed at the end: a sum that keeps it is vectorised
        return jnp.sum(neighbour[:, :, :, :, None] * gradient[:, :, :, None], axis=(0, 1, 2, 5))

    kernel_gradient = _for_each_tap(products, logits).sum(axis=-1)
    return _over_blocks(gradient, kernel[::-1, ::-1].swapaxes(2, 3)), kernel_gradient


communicate_over_blocks.defvjp(_over_blocks_forward, _over_blocks_backward)
