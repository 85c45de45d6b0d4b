"""Numerators of a softmax over parts of the lanes, without a maximum where none is needed."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LARGEST = 29.0  # up to which bound of logits their exponentials, and sums and quotients of these, stay in float32


def numerators(
    bounded: jax.Array,
    count: int,
    logits: Callable[[int], jax.Array],
    parts: Sequence[jax.Array],
    keep: Callable[[int, jax.Array], None],
    kept: Callable[[int], jax.Array],
    write: Callable[[int, jax.Array], None],
) -> None:
    """For i < count: write(i, exponentials of logits(i) [R, 128], 0 outside of `parts`).

    parts: masks [1, 128] of the lanes of each softmax. Unless `bounded`, which says that no logit exceeds `LARGEST`,
    the largest logit of each part is subtracted; keep(i, them) and kept(i) keep these between two passes.
    """
    used = parts[0]
    for part in parts[1:]:
        used |= part

    @pl.loop(0, jnp.where(bounded, 0, count))
    def _(i):
        rows = logits(i)
        largest = jnp.zeros_like(rows)
        for part in parts:
            largest = jnp.where(part, jnp.where(part, rows, -jnp.inf).max(axis=1, keepdims=True), largest)
        keep(i, largest)

    @pl.loop(0, count // 2)
    def _(n):
        for i in (2 * n, 2 * n + 1):
            shift = jnp.where(bounded, 0.0, kept(i))
            write(i, jnp.where(used, jnp.exp(logits(i) - shift), 0.0))
