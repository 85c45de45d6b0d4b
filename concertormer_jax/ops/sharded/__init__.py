"""The operations on a picture whose rows lie on several devices, for inference.

Each is called as OPERATIONS[name](rows, local, ...): `rows`, a `rows.RowShards`, says how the rows lie; `local` is the
form of the operation for maps that lie on one device.
"""

from concertormer_jax.ops.sharded.concerto import concerto_attention, transposed_attention
from concertormer_jax.ops.sharded.layers import convolve, convolve_3x3, gated_mlp, on_windows
from concertormer_jax.ops.sharded.rows import RowShards, row_shards

__all__ = ["OPERATIONS", "OWN_OPERATIONS", "RowShards", "row_shards"]

OPERATIONS = {
    "concerto_attention": concerto_attention,
    "transposed_attention": transposed_attention,
    "gated_mlp": gated_mlp,
    "on_windows": on_windows,
    "depthwise_3x3": convolve_3x3,
    "convolve_to_few": convolve_3x3,
}
# Of the operations in `ops.dispatch.OWN_FORMS`. `local` is the platform's form, None where it has none.
OWN_OPERATIONS = {"convolve": convolve}
