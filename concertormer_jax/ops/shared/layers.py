"""What several platforms run beside the attention: projections, the gated MLP, and TLC's windows as one batch."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from concertormer_jax.ops.reference import MLPWeights, wide, window_starts
from concertormer_jax.ops.shared.taps import depthwise_3x3


@jax.custom_vjp
def project(features: Float[Array, "*shape C"], kernel: Float[Array, "C h"]) -> Float[Array, "*shape h"]:
    """features @ kernel.

    In the derivative by the kernel the features are the first factor: a CPU transposes that one, and the copy serves
    all projections of the same features. The automatic derivative would have the gradient there.
    """
    return features @ kernel


def _project_forward(features, kernel):
    return features @ kernel, (features, kernel)


def _project_backward(saved, gradient):
    features, kernel = saved
    rows = math.prod(features.shape[:-1])
    kernel_gradient = _contract(features.reshape(rows, -1), 0, gradient.reshape(rows, -1), 0, wide(kernel))
    return gradient @ kernel.T, kernel_gradient.astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def project_channels_first(
    features: Float[Array, "*shape C"],
    kernel: Float[Array, "C h"],
    materialize: Callable[[Array], Array] = lambda kernel: kernel,
) -> Float[Array, " h *shape"]:
    """`project` with the output channels as the first axis.

    Its product and those of its derivatives need no other layout than they are given. materialize: what the transposed
    kernel passes through before its product, see `ops.cpu.workarounds`.
    """
    return _channels_first(features, kernel, materialize)


def _channels_first(features, kernel, materialize):
    rows = materialize(kernel.T)
    return _contract(rows, 1, features.reshape(-1, features.shape[-1]), 1).reshape(-1, *features.shape[:-1])


def _channels_first_forward(features, kernel, materialize):
    return _channels_first(features, kernel, materialize), (features, kernel)


def _channels_first_backward(_, saved, gradient):
    features, kernel = saved
    gradient = gradient.reshape(gradient.shape[0], -1)
    kernel_gradient = _contract(gradient, 1, features.reshape(-1, features.shape[-1]), 0, wide(kernel))
    # XLA would fuse the transposition into the product, for which it has no kernel in bfloat16 on a CPU.
    kernel_gradient = jax.lax.optimization_barrier(kernel_gradient).T
    return _contract(gradient, 0, kernel, 1).reshape(features.shape), kernel_gradient.astype(kernel.dtype)


project_channels_first.defvjp(_channels_first_forward, _channels_first_backward)


def _contract(a, a_axis, b, b_axis, dtype=None):
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=dtype)


def gated_mlp(
    residual: Float[Array, "b H W C"],
    x: Float[Array, "b H W C"],
    attended: Float[Array, "b H W k"] | None,
    weights: MLPWeights,
    depthwise: Callable[[Array, Array], Array] = depthwise_3x3,
) -> Float[Array, "b H W C"]:
    """`ops.layers.gated_mlp`, each step on the whole map. depthwise: a function of features and kernel."""
    to_u, to_z = jnp.split(weights.to_uz, 2, axis=1)  # the halves of one product for both would be copied
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


def rows_or_zeros(maps: Float[Array, "b H W C"], numbers: Int[Array, " h"]) -> Float[Array, "b h W C"]:
    """The rows `numbers` of the maps, and zeros in place of rows that the maps do not have."""
    inside = (numbers >= 0) & (numbers < maps.shape[1])
    taken = maps.at[:, jnp.clip(numbers, 0, maps.shape[1] - 1)].get(mode="promise_in_bounds")
    return jnp.where(inside[:, None, None], taken, 0)


def on_windows(
    function: Callable[..., Array], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """`ops.layers.on_windows` with the windows of all pictures as one batch, which suits an accelerator best."""
    batch, height, width, _ = features[0].shape
    rows, columns = len(window_starts(height, window)), len(window_starts(width, window))
    windows = [_cut(_cut(array, 1, window), 3, window) for array in features]  # [b, rows, h, columns, w, C]
    stacked = [jnp.moveaxis(array, 3, 2).reshape(-1, *array.shape[2:3], *array.shape[4:]) for array in windows]
    result = function(*stacked)
    result = result.reshape(batch, rows, columns, *result.shape[1:])
    return _join(_join(jnp.moveaxis(result, 2, 3), 3, width), 1, height)


def _cut(features, axis, window):
    """Windows along `axis`, stacked as a new axis in front of it."""
    starts = window_starts(features.shape[axis], window)
    window = min(features.shape[axis], window)
    return jnp.stack([jax.lax.slice_in_dim(features, s, s + window, axis=axis) for s in starts], axis=axis)


def _join(windows, axis, size):
    """The inverse of `_cut`; where windows overlap, their mean."""
    window = windows.shape[axis + 1]
    shape = (*windows.shape[:axis], size, *windows.shape[axis + 2 :])
    total = jnp.zeros(shape, windows.dtype)
    before = (slice(None),) * axis
    for index, start in enumerate(window_starts(size, window)):
        total = total.at[(*before, slice(start, start + window))].add(jnp.take(windows, index, axis=axis))
    weight = share(size, window).reshape((size,) + (1,) * (total.ndim - axis - 1))
    return total * weight.astype(total.dtype)


def share(size: int, window: int) -> Float[np.ndarray, " size"]:
    """1 / how many windows cover each pixel of an axis."""
    count = np.zeros(size, np.float32)
    for start in window_starts(size, window):
        count[start : start + window] += 1
    return 1 / count
