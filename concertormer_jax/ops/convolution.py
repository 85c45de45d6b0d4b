"""3x3 convolutions written as nine shifted multiply-adds.

They have few products for each number they read, which the general convolution of XLA serves badly on a CPU (ten times
slower). As sums of shifted arrays they fuse into one pass; so do their derivatives, which are written out below,
because the automatic ones would add nine padded arrays.
"""

import jax
import jax.numpy as jnp


def _neighbours(features: jax.Array):
    """Yield (down, right, features moved by one pixel at most) for the nine taps; zeros come in from the border."""
    rows, columns = features.shape[1:3]
    padded = jnp.pad(features, ((0, 0), (1, 1), (1, 1)) + ((0, 0),) * (features.ndim - 3))
    for down in range(3):
        for right in range(3):
            yield down, right, padded[:, down : down + rows, right : right + columns]


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
    taps = [
        jnp.sum(neighbour * gradient, axis=(0, 1, 2), dtype=jnp.float32) for _, _, neighbour in _neighbours(features)
    ]
    kernel_gradient = jnp.stack(taps).reshape(kernel.shape).astype(kernel.dtype)
    return _depthwise(gradient, kernel[::-1, ::-1]), kernel_gradient


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

    The same kernel serves every entry of the attention maps; the border is padded with zeros (paper, section 3.2).
    logits: [B, rows, columns, m, E, F]; kernel: [3, 3, m, m] (down, right, head in, head out). Returns logits' shape.
    """
    return _over_blocks(logits, kernel)


def _over_blocks_forward(logits, kernel):
    return _over_blocks(logits, kernel), (logits, kernel)


def _over_blocks_backward(saved, gradient):
    logits, kernel = saved
    # The last axis is summed at the end: a sum that keeps it is vectorised, one down to a scalar is not.
    taps = [
        jnp.sum(neighbour[:, :, :, head : head + 1] * gradient, axis=(0, 1, 2, 4))
        for _, _, neighbour in _neighbours(logits)
        for head in range(logits.shape[3])
    ]
    kernel_gradient = jnp.stack(taps).sum(axis=-1).reshape(kernel.shape)
    return _over_blocks(gradient, kernel[::-1, ::-1].swapaxes(2, 3)), kernel_gradient


communicate_over_blocks.defvjp(_over_blocks_forward, _over_blocks_backward)
