"""Test-time local converter on a CPU: one window after the other, which takes a fraction of the memory."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.ops.reference import window_starts
from concertormer_jax.ops.shared.tlc import share


def on_windows(
    function: Callable[..., Array], features: Sequence[Float[Array, "b H W _"]], window: int
) -> Float[Array, "b H W D"]:
    """`ops.tlc.on_windows` in a loop over windows, each of all images."""
    batch, height, width, _ = features[0].shape
    size = (batch, min(height, window), min(width, window))
    corners = jnp.array([(y, x) for y in window_starts(height, window) for x in window_starts(width, window)])

    def cut(array, index):
        return jax.lax.dynamic_slice(array, (0, *corners[index], 0), (*size, array.shape[-1]))

    def apply(index):
        return function(*(cut(array, index) for array in features))

    def add(index, total):
        return jax.lax.dynamic_update_slice(total, cut(total, index) + apply(index), (0, *corners[index], 0))

    one = jax.eval_shape(apply, 0)
    total = jax.lax.fori_loop(0, len(corners), add, jnp.zeros((batch, height, width, one.shape[-1]), one.dtype))
    weight = share(height, window)[:, None, None] * share(width, window)[:, None]
    return total * weight.astype(total.dtype)
