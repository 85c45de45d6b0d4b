"""Pallas kernels for the published network's blocks on a TPU.

`stage` runs the blocks of a stage. `tiles` has the layout of their features; `cut` brings maps into it and back. The
parts of a block are `begin` (shift and norm), `ripieno` (with `ripieno_layout`, `_logits` and `_attend`), `concertino`
and `mlp` (with the simplified channel attention). Each kernel has all that it reads and writes in VMEM.
"""
