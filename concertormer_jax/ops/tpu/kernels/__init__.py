"""Pallas kernels for the published network's blocks on a TPU.

`stage` runs the blocks of a stage, and goes back through them for its derivatives; `block` runs one. `tiles` has the
layout of features, and `moves` the kernels that bring maps into it and back, shift it and normalise. The other kernels
are `ripieno`, `concertino` and `mlp` (with the simplified channel attention), which has its derivatives beside it, and
`ripieno_backward`; two files named `_layout` say what these keep where in VMEM. Each kernel has all that it reads and
writes in VMEM.
"""
