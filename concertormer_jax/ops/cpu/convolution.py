"""3x3 convolutions on a CPU."""

from functools import partial

from jaxtyping import Array, Float

from concertormer_jax.ops.cpu.workarounds import materialize
from concertormer_jax.ops.shared import taps
from concertormer_jax.ops.shared.projection import project

depthwise_3x3 = partial(taps.depthwise_3x3, materialize=materialize)


def convolve_to_few(features: Float[Array, "b H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "b H W D"]:
    """One projection for all nine taps, whose results are shifted and added.

    The derivative of XLA's convolution by the kernel takes ten times as long.
    """
    to_taps = kernel.transpose(2, 0, 1, 3)  # [C, down, right, D]
    results = project(features, to_taps.reshape(len(to_taps), -1))
    results = taps.padded_by_one(results)
    results = results.reshape(*results.shape[:3], 3, 3, -1)
    return sum(neighbour[:, :, :, down, right] for down, right, neighbour in taps.neighbours(results))
