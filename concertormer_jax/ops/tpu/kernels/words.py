"""Matrices of features as 32-bit words, the only numbers of which a TPU reads every k-th row.

A word holds the entries of `per_word` matrices that follow one another: two in bfloat16, one in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from concertormer_jax.ops.platform import platform


def interpreted() -> bool:
    """Whether kernels are interpreted, as what is traced for is no TPU."""
    return platform() != "tpu"


def per_word(dtype) -> int:
    return 4 // jnp.dtype(dtype).itemsize


def pack(matrices: Sequence[jax.Array], dtype) -> jax.Array:
    """`per_word` float32 matrices of one shape to words of this shape."""
    if len(matrices) == 1:
        return pltpu.bitcast(matrices[0], jnp.int32)
    if interpreted():
        low, high = (jax.lax.bitcast_convert_type(matrix.astype(dtype), jnp.uint16) for matrix in matrices)
        return (high.astype(jnp.int32) << 16) | low.astype(jnp.int32)
    return pltpu.bitcast(pltpu.pack_elementwise(matrices, packed_dtype=dtype), jnp.int32)


def unpack(words: jax.Array, dtype) -> list[jax.Array]:
    """The inverse of `pack`: float32 matrices."""
    if per_word(dtype) == 1:
        return [pltpu.bitcast(words, jnp.float32)]
    return [pltpu.bitcast(bits, jnp.float32) for bits in (words << 16, words & -(2**16))]


def rows(words: jax.Array, dtype) -> jax.Array:
    """Words [R, K], row r being those of the matrices r, to the features [per_word R, K] with a row for each."""
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
    """The inverse of `read`."""
    if interpreted():
        around = pl.ds(start, (len(values) - 1) * stride + 1)
        ref[around] = ref[around].at[::stride].set(values)
    else:
        ref[pl.ds(start, len(values), stride=stride)] = values


def read_words(ref, start: int, count: int, stride: int) -> jax.Array:
    """`read` of the words of a matrix in `ref`, whose rows are features."""
    if interpreted():
        return from_rows(ref[...])[start : start + (count - 1) * stride + 1 : stride]
    return read(ref.bitcast(jnp.int32), start, count, stride)


def write_words(ref, start: int, stride: int, values: jax.Array) -> None:
    """The inverse of `read_words`."""
    if interpreted():
        around = slice(start, start + (len(values) - 1) * stride + 1, stride)
        ref[...] = rows(from_rows(ref[...]).at[around].set(values), ref.dtype)
    else:
        write(ref.bitcast(jnp.int32), start, stride, values)


def stride_to_read(size: int) -> int:
    """The least number of rows from `size` on from which every k-th is read in two loads, k being a multiple of 8.

    Of a multiple of 16, which lie in one bank, each would be a load.
    """
    aligned = -(-size // 8) * 8
    return aligned if aligned % 16 else aligned + 8


def stride_to_write(size: int) -> int:
    """The least odd number from `size` on: every k-th row is then written in one store."""
    return size | 1
