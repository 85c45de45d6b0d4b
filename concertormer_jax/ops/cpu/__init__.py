"""The operations as a CPU runs them best."""

from concertormer_jax.ops.cpu.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.cpu.layers import convolve_to_few, depthwise_3x3, gated_mlp, on_windows

__all__ = [
    "concerto_attention",
    "convolve_to_few",
    "depthwise_3x3",
    "gated_mlp",
    "on_windows",
    "transposed_attention",
]
