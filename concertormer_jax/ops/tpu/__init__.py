"""The operations as a TPU runs them best; all but the attention are the shared forms. Blocks of maps that fit have kernels."""

from concertormer_jax.ops.shared.gdmlp import gated_mlp
from concertormer_jax.ops.shared.taps import convolve_to_few, depthwise_3x3
from concertormer_jax.ops.shared.tlc import on_windows
from concertormer_jax.ops.tpu.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.tpu.kernels.block import tiled_blocks

__all__ = [
    "concerto_attention",
    "convolve_to_few",
    "depthwise_3x3",
    "gated_mlp",
    "on_windows",
    "tiled_blocks",
    "transposed_attention",
]
