"""The operations as a GPU runs them best; all but the attention are the shared forms."""

from concertormer_jax.ops.gpu.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.shared.layers import gated_mlp, on_windows
from concertormer_jax.ops.shared.taps import convolve_to_few, depthwise_3x3

__all__ = [
    "concerto_attention",
    "convolve_to_few",
    "depthwise_3x3",
    "gated_mlp",
    "on_windows",
    "transposed_attention",
]
