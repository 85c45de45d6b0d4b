"""Pallas kernels for the published network's blocks on a TPU.

`stage` runs the blocks of a stage, and takes their derivatives. `tiles` has the layout of their features; `cut` brings
maps into it and back. The parts of a block are `begin` (shift and norm), `ripieno` (with `ripieno_layout`, `_logits`
and `_attend`), `concertino` and `mlp` (with the simplified channel attention). `block_backward` goes back through a
block, by `ripieno_backward` (with the products of `lanes`) and `mlp_backward`. Each kernel has all that it reads and
writes in VMEM.
"""
