"""Matrices of which each of 128 lanes has its own, and their products by the vector units.

Blocks lie on the lanes. A product of two such arrays is one of all blocks at once, and needs nothing turned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.tpu.kernels import words
from concertormer_jax.ops.tpu.kernels.tiles import LANES, ROWS

UNROLLED = 8  # terms of a sum


class Matrices(NamedTuple):
    """128 matrices [I, J] of float32: entry (i, j) is row `start` + i `pitch` + j of `ref`, [rows, 128]."""

    ref: Any
    pitch: int
    start: Any = 0

    def row(self, i, j) -> jax.Array:
        """Entry (i, j) of all: [1, 128]."""
        return self.ref[pl.ds(self.start + i * self.pitch + j, 1)]

    def rows(self, i, j, count: int = ROWS):
        """Where the entries (i, j), (i, j + 1), ... are, j being a multiple of 8."""
        return pl.ds(pl.multiple_of(self.start + i * self.pitch + j, ROWS), count)

    def at(self, i, j) -> "Matrices":
        """The part that begins at entry (i, j)."""
        return self._replace(start=self.start + i * self.pitch + j)


def multiply(
    size: tuple[int, int, int], a: Callable[[Any, Any], jax.Array], b: Matrices, write: Callable[[Any, int, Any], None]
) -> None:
    """The product of a [I, R] and b [R, J], both with a matrix on each lane, size being (I, R, J), multiples of 8.

    a: (i, r) to an entry [1, 128]; write: takes i, j and the entries (i, j) to (i, j + 7) as [8, 128].
    """
    outer, terms, inner = size
    tiles = inner // ROWS
    at_once = 4 if tiles > 3 else 8  # as many sums as fit in registers
    unrolled = 1 if words.interpreted() else UNROLLED

    @pl.loop(0, outer // at_once)
    def _(n):
        def add(m, totals):
            totals = list(totals)
            for r in range(unrolled):
                right = [b.ref[b.rows(m * unrolled + r, j * ROWS)] for j in range(tiles)]
                for i in range(at_once):
                    left = a(n * at_once + i, m * unrolled + r)
                    for j, tile in enumerate(right):
                        totals[i * tiles + j] += left * tile
            return tuple(totals)

        none = jnp.zeros((ROWS, LANES), jnp.float32)
        totals = jax.lax.fori_loop(0, terms // unrolled, add, (none,) * (at_once * tiles))
        for i in range(at_once):
            for j in range(tiles):
                write(n * at_once + i, j * ROWS, totals[i * tiles + j])


def transpose(size: tuple[int, int], source: Matrices, target: Matrices) -> None:
    """Write the matrices [I, J] of `source` to `target`, [J, I]; the pitch of `source` is a `words.stride_to_read`."""
    outer, inner = size

    @pl.loop(0, inner)
    def _(j):
        for i in range(0, outer, ROWS):
            target.ref[target.rows(j, i)] = words.read(
                source.ref, source.start + i * source.pitch + j, ROWS, source.pitch
            )
