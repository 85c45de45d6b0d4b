"""The operations as a TPU runs them best. Some are the shared forms; stages whose maps fit in VMEM are kernels."""

from concertormer_jax.ops.shared.layers import gated_mlp, on_windows
from concertormer_jax.ops.shared.taps import depthwise_3x3
from concertormer_jax.ops.tpu.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.tpu.convolution import convolve, convolve_to_few
from concertormer_jax.ops.tpu.kernels.stage import tiled_stage

__all__ = [
    "concerto_attention",
    "convolve",
    "convolve_to_few",
    "depthwise_3x3",
    "gated_mlp",
    "on_windows",
    "tiled_stage",
    "transposed_attention",
]
