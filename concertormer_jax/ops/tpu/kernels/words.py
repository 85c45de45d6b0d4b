"""Matrices of features as 32-bit words, since a TPU reads and writes every k-th row of such numbers alone.

A word holds an entry of each of `per_word` consecutive matrices: of two in bfloat16, of one in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.platform import platform


def interpreted() -> bool:
    """Whether kernels are interpreted: where the platform that is traced for is not a TPU."""
    return platform() != "tpu"


def per_word(dtype) -> int:
    """Numbers in a word."""
    return 4 // jnp.dtype(dtype).itemsize


def pack(matrices: Sequence[jax.Array], dtype) -> jax.Array:
    """Pack `per_word` float32 matrices of one shape, rounded to `dtype`, into int32 words of this shape."""
    if len(matrices) == 1:
        return pltpu.bitcast(matrices[0], jnp.int32)
    if interpreted():
        low, high = (jax.lax.bitcast_convert_type(matrix.astype(dtype), jnp.uint16) for matrix in matrices)
        return (high.astype(jnp.int32) << 16) | low.astype(jnp.int32)
    return pltpu.bitcast(pltpu.pack_elementwise(matrices, packed_dtype=dtype), jnp.int32)


def unpack(words: jax.Array, dtype) -> list[jax.Array]:
    """The inverse of `pack`: `per_word` float32 matrices."""
    if per_word(dtype) == 1:
        return [pltpu.bitcast(words, jnp.float32)]
    return [pltpu.bitcast(bits, jnp.float32) for bits in (words << 16, words & -(2**16))]


def rows(words: jax.Array, dtype) -> jax.Array:
    """Words [R, K] as features [per_word R, K]: row r of the words has rows per_word r, per_word r + 1, ... ."""
    return pltpu.bitcast(words, dtype)


def from_rows(features: jax.Array) -> jax.Array:
    """The inverse of `rows`."""
    return pltpu.bitcast(features, jnp.int32)


def read(ref, start, count: int, stride: int) -> jax.Array:
    """`count` rows of `ref`, every stride-th from `start` on."""
    if interpreted():
        return ref[pl.ds(start, (count - 1) * stride + 1)][::stride]
    return ref[pl.ds(start, count, stride=stride)]


def write(ref, start, stride: int, values: jax.Array) -> None:
    """Write `values` to rows of `ref`, every stride-th from `start` on."""
    if interpreted():
        around = pl.ds(start, (len(values) - 1) * stride + 1)
        ref[around] = ref[around].at[::stride].set(values)
    else:
        ref[pl.ds(start, len(values), stride=stride)] = values


def read_words(ref, start: int, count: int, stride: int) -> jax.Array:
    """`read` of the words of the features in `ref`."""
    if interpreted():
        return from_rows(ref[...])[start : start + (count - 1) * stride + 1 : stride]
    return read(ref.bitcast(jnp.int32), start, count, stride)


def write_words(ref, start: int, stride: int, values: jax.Array) -> None:
    """`write` of words to the features in `ref`."""
    if interpreted():
        around = slice(start, start + (len(values) - 1) * stride + 1, stride)
        ref[...] = rows(from_rows(ref[...]).at[around].set(values), ref.dtype)
    else:
        write(ref.bitcast(jnp.int32), start, stride, values)


def stride_to_read(size: int) -> int:
    """The least multiple of 8, from `size` on, that is no multiple of 16.

    With this stride a TPU reads eight rows in two loads. With a multiple of 16, whose rows lie in one bank of memory,
    each would be a load of its own.
    """
    aligned = -(-size // 8) * 8
    return aligned if aligned % 16 else aligned + 8


def stride_to_write(size: int) -> int:
    """The least odd number from `size` on: with this stride a TPU writes eight rows in one store."""
    return size | 1
