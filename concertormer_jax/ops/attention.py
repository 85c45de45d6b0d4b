"""Attention between positions and between channels, and the communication of its maps (paper, section 3).

Queries and keys are normalised along the contracted axis. That is done after their product: the logits are scaled by
the inverse norms, which touches the small attention maps in place of the large feature maps. Products are accumulated,
and logits and softmax computed, in float32 whatever the type of the features.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SMALLEST_SQUARED_NORM = 1e-24


def _wide(features: jax.Array):
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum, accumulated in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=_wide(a))


def _inverse_norm(features: jax.Array, axis: int) -> jax.Array:
    squared = jnp.sum(jnp.square(features.astype(_wide(features))), axis=axis)
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))  # 1 / max(norm, 1e-12)


def _weights(logits, inverse_norm_q, inverse_norm_k, temperature, communicate):
    logits *= (inverse_norm_q * temperature)[..., None] * inverse_norm_k[..., None, :]
    return jax.nn.softmax(communicate(logits), axis=-1)


def spatial_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Softmax attention with normalised queries and keys, its logits passed through `communicate`.

    q, k, v: [..., A, K], attended and contracted axes last; temperature: broadcasts against [..., A].
    communicate: a map of the logits [..., A, A]. Returns [..., A, K].
    """
    logits = _product("...ak,...bk->...ab", q, k)
    weights = _weights(logits, _inverse_norm(q, -1), _inverse_norm(k, -1), temperature, communicate)
    return jnp.einsum("...ab,...bk->...ak", weights.astype(v.dtype), v)


def channel_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """As `spatial_attention` between the channels of each head.

    q, k, v: [..., K, m c], the contracted axis and then m heads of c channels; temperature: [m, 1].
    communicate: a map of the logits [..., m, c, c]. Returns [..., K, m c].
    """
    heads = temperature.shape[0]

    def split(norms):
        return norms.reshape(*norms.shape[:-1], heads, -1)

    logits = _diagonal_blocks(_product("...ka,...kb->...ab", q, k), heads)
    norms = [split(_inverse_norm(part, -2)) for part in (q, k)]
    weights = _weights(logits, *norms, temperature, communicate)
    return jnp.einsum("...ab,...kb->...ka", _block_diagonal(weights.astype(v.dtype)), v)


def _diagonal_blocks(matrices: jax.Array, count: int) -> jax.Array:
    """[..., m c, m c] to [..., m, c, c] for m = count."""
    size = matrices.shape[-1] // count
    ranges = [slice(i * size, (i + 1) * size) for i in range(count)]
    return jnp.stack([matrices[..., part, part] for part in ranges], axis=-3)


def _block_diagonal(blocks: jax.Array) -> jax.Array:
    """The inverse of `_diagonal_blocks`, with zeros elsewhere."""
    count, size = blocks.shape[-3:-1]
    none = [(0, 0)] * (blocks.ndim - 2)
    rows = [jnp.pad(blocks[..., i, :, :], [*none, (i * size, (count - 1 - i) * size)]) for i in range(count)]
    return jnp.concatenate(rows, axis=-2)


def communicate_over_maps(logits: jax.Array, matrix: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Concertino: every map becomes a weighted sum of all maps.

    logits: [B, ..., A, A], the axes between numbering D maps; matrix: [D, D] (map in, map out). Returns logits' shape.
    """
    maps = logits.reshape(logits.shape[0], matrix.shape[0], -1)
    return jnp.einsum("st,bse->bte", matrix, maps).reshape(logits.shape)


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """softmax(communicate(q k^T / sqrt(K))) v, the usual attention. q, k, v: [..., A, K]. Returns [..., A, K]."""
    logits = _product("...ak,...bk->...ab", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(communicate(logits), axis=-1)
    return jnp.einsum("...ab,...bk->...ak", weights.astype(v.dtype), v)


def mean_of_blocks(features: jax.Array) -> jax.Array:
    """The mean of [B, P, N, C] over P and N; first over P by a matrix product, several times faster than such a sum."""
    share = jnp.full(features.shape[1], 1 / features.shape[1], features.dtype)
    means = jnp.einsum("p,bpnc->bnc", share, features, preferred_element_type=_wide(features), precision="highest")
    return means.mean(axis=1)
