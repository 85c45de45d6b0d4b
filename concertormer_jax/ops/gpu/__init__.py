"""The operations as a GPU runs them best; all but the attention are the shared forms."""

from concertormer_jax.ops.gpu.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.shared.gdmlp import gated_mlp
from concertormer_jax.ops.shared.taps import convolve_to_few, depthwise_3x3
from concertormer_jax.ops.shared.tlc import on_windows

__all__ = [
    "concerto_attention",
    "convolve_to_few",
    "depthwise_3x3",
    "gated_mlp",
    "on_windows",
    "transposed_attention",
]
