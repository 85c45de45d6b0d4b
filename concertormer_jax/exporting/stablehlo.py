"""A program as StableHLO, in the file format of `jax.export`: one file for CPUs, GPUs and TPUs, and for any batch."""

import jax
from jax import export

from concertormer_jax.exporting.program import Program

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH = "batch"


def stablehlo(program: Program) -> tuple[bytes, dict]:
    """Return the file's content, which `jax.export.deserialize` reads, and its manifest."""
    (batch,) = export.symbolic_shape(BATCH)
    with jax.default_matmul_precision("highest"):
        exported = export.export(jax.jit(program.function()), platforms=PLATFORMS)(program.shape(batch))
    how = {"format": "StableHLO, written by jax.export", "platforms": PLATFORMS}
    return bytes(exported.serialize()), program.manifest(BATCH, **how)
