"""Softmax attention with normalised queries and keys, and with derivatives that are written out.

    l_ab = temperature cos(q_a, k_b)      w = exp(CDC(l) - maximum)      result_a = sum_b w_ab v_b / sum_b w_ab

The norms of queries and keys divide the logits, and the sums of the weights w divide the result, so that no divided
copies of queries, keys and weights are made. Products are accumulated, and logits and weights computed, in float32 at
least.

Cosines are bounded by 1, so the temperature bounds the logits before CDC, and its weights bound them after it. Where
that bound is small, a platform may leave the maximum out.

Automatic derivatives would take every sum over the attention maps; the written ones take it over the features where
these are smaller.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.ops.reference import SMALLEST_SQUARED_NORM, wide
from concertormer_jax.ops.shared.cdc import CDC


class Arithmetic(NamedTuple):
    """How a platform sums and exponentiates.

    sum_over: of an array over its axis -1 or -2, in float32 at least.
    sum_weights: of [..., A', A] over the last axis, in float32 at least.
    numerators: `softmax_numerators` of (cdc, dtype, after, logits, parameters, bounded) with after = cdc(logits,
        *parameters); where the boolean `bounded` is true, the maximum may be left out.
    """

    sum_over: Callable[[Array, int], Array]
    sum_weights: Callable[[Array], Array]
    numerators: Callable[..., Array]


@partial(jax.jit, static_argnums=1)
def sum_over(array: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """`Arithmetic.sum_over` that leaves the sum to XLA."""
    return jnp.sum(array, axis=axis, dtype=wide(array))


def product(axes: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """einsum, accumulated in float32 at least."""
    return jnp.einsum(axes, a, b, preferred_element_type=wide(a))


@dataclasses.dataclass(frozen=True)
class Spatial:
    """Attention between the rows of features [..., A, K]: its maps are [..., A', A] for A' queries."""

    arithmetic: Arithmetic

    def maps_shape(self, features, entries):
        """The shape of maps with `entries` numbers in all."""
        return *features.shape[:-2], entries // math.prod(features.shape[:-1]), features.shape[-2]

    def maps(self, a, b):
        """The products of every row of a with every row of b."""
        return product("...ak,...bk->...ab", a, b)

    def mix(self, maps, features):
        """The sums of the rows of the features with the weights of the maps."""
        return product("...ab,...bk->...ak", maps, features)

    def mix_transposed(self, maps, features):
        """`mix` with every map transposed."""
        return product("...ab,...ak->...bk", maps, features)

    def sum(self, features):
        """Over the contracted axis K, to [..., A]."""
        return self.arithmetic.sum_over(features, -1)

    def spread(self, sums):
        """Numbers [..., A] in a shape that multiplies the features row by row."""
        return sums[..., None]


@dataclasses.dataclass(frozen=True)
class Channel:
    """Attention between the columns of features [..., K, m c], in m heads; its maps are [..., m, c, c].

    All heads are multiplied at once and the diagonal blocks of the product kept: as c is small, that costs less than to
    separate the heads of the feature maps.
    """

    arithmetic: Arithmetic
    heads: int

    def maps_shape(self, features, _):
        """The shape of the maps of the features."""
        channels = features.shape[-1] // self.heads
        return *features.shape[:-2], self.heads, channels, channels

    def maps(self, a, b):
        """The products of every column of a with every column of b in the same head."""
        return _diagonal_blocks(product("...ka,...kb->...ab", a, b), self.heads)

    def mix(self, maps, features):
        """The sums of the columns of the features with the weights of the maps."""
        return product("...ab,...kb->...ka", _block_diagonal(maps), features)

    def mix_transposed(self, maps, features):
        """`mix` with every map transposed."""
        return product("...ab,...ka->...kb", _block_diagonal(maps), features)

    def sum(self, features):
        """Over the contracted axis K, to [..., m, c]."""
        sums = self.arithmetic.sum_over(features, -2)
        return sums.reshape(*sums.shape[:-1], self.heads, -1)

    def spread(self, sums):
        """Numbers [..., m, c] in a shape that multiplies the features column by column."""
        return sums.reshape(*sums.shape[:-2], 1, -1)


def _diagonal_blocks(matrices, count):
    """[..., m c, m c] to [..., m, c, c] for m = count."""
    size = matrices.shape[-1] // count
    ranges = [slice(i * size, (i + 1) * size) for i in range(count)]
    return jnp.stack([matrices[..., part, part] for part in ranges], axis=-3)


def _block_diagonal(blocks):
    """The inverse of `_diagonal_blocks`, with zeros elsewhere."""
    count, size = blocks.shape[-3:-1]
    none = [(0, 0)] * (blocks.ndim - 2)
    rows = [jnp.pad(blocks[..., i, :, :], [*none, (i * size, (count - 1 - i) * size)]) for i in range(count)]
    return jnp.concatenate(rows, axis=-2)


Kind = Spatial | Channel


def attend(
    kind: Kind,
    q: Float[Array, "..."],
    k: Float[Array, "*batch"],
    v: Float[Array, "*batch"],
    temperature: Float[Array, "..."],
    cdc: CDC,
) -> Float[Array, "..."]:
    """The attention of features as `kind` lays them out: softmax(CDC(temperature cos(q, k))) v.

    Spatial: q [..., A', K], k and v [..., A, K], the temperature broadcasts against [..., A']. Channel: q, k and v
    [..., K, m c], temperature [m, 1]. cdc: of the logits, [..., A', A] or [..., m, c, c]. Returns q's shape.
    """
    return mix(kind, softmax_numerators(kind.arithmetic, v.dtype, logits(kind, q, k, temperature), cdc), v)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def logits(
    kind: Kind, q: Float[Array, "..."], k: Float[Array, "..."], temperature: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The cosines of every query of q with every key of k, times the temperature."""
    return _logits_forward(kind, q, k, temperature)[0]


def _inverse_norms(kind, features):
    squared = kind.sum(jnp.square(features.astype(wide(features))))
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))  # 1 / max(norm, 1e-12)


@partial(jax.jit, static_argnums=0)
def _logits_forward(kind, q, k, temperature):
    inverse_q, inverse_k = _inverse_norms(kind, q), _inverse_norms(kind, k)
    products = kind.maps(q, k)
    logits = products * ((inverse_q * temperature)[..., None] * inverse_k[..., None, :])
    return logits, (q, k, temperature, inverse_q, inverse_k, None if _features_are_smaller(q, products) else products)


@partial(jax.jit, static_argnums=0)
def _logits_backward(kind, saved, gradient):
    q, k, temperature, inverse_q, inverse_k, products = saved
    gradient = (gradient * (inverse_q[..., None] * inverse_k[..., None, :])).astype(q.dtype)

    def through_norm(features, inverse, mixed, axis):
        """Through the normalisation, whose derivative keeps what is at right angles to a vector."""
        by_features = products is None
        along = kind.sum(features * mixed) if by_features else kind.arithmetic.sum_over(gradient * products, axis)
        tangent = mixed - features * kind.spread(along * jnp.square(inverse))
        scale = kind.spread(jnp.broadcast_to(temperature, along.shape))
        return along, (tangent * scale).astype(features.dtype)

    along, gradient_q = through_norm(q, inverse_q, kind.mix(gradient, k), -1)
    _, gradient_k = through_norm(k, inverse_k, kind.mix_transposed(gradient, q), -2)
    over = tuple(range(along.ndim - temperature.ndim))
    gradient_temperature = along.sum(axis=-1, keepdims=True).sum(axis=over)
    return gradient_q, gradient_k, gradient_temperature.astype(temperature.dtype)


def _features_are_smaller(features, maps):
    """Whether to take a sum over the features, rather than the same sum over the maps."""
    return features.size < maps.size


logits.defvjp(_logits_forward, _logits_backward)


def softmax_numerators(
    arithmetic: Arithmetic, dtype: Any, logits: Float[Array, "..."], cdc: CDC
) -> Float[Array, "..."]:
    """exp(l - a maximum) for l = CDC(logits), in its shape and as `dtype`. logits: [..., A', A].

    The maximum is that of each row of A. `arithmetic` may take 0 for it where the bound of l is so small that neither
    the exponentials, nor their sums, nor what the derivatives divide by them leave the range of `dtype`.
    """
    return _numerators(arithmetic.numerators, cdc.function, dtype, logits, cdc.parameters, cdc.bound)


def largest_bound(dtype: Any) -> float:
    """The largest bound of logits whose softmax needs no maximum: a third of the largest exponent of `dtype`."""
    return math.log(float(jnp.finfo(dtype).max)) / 3


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _numerators(numerators, cdc, dtype, logits, parameters, bound):
    return _numerators_forward(numerators, cdc, dtype, logits, parameters, bound)[0]


def _numerators_forward(numerators, cdc, dtype, logits, parameters, bound):
    with jax.named_scope("cdc"):
        after, derivative = jax.vjp(cdc, logits, *parameters)
    bounded = jnp.asarray(False) if bound is None else bound <= largest_bound(dtype)
    result = numerators(cdc, dtype, after, logits, parameters, bounded)
    return result, (result, derivative)


def _numerators_backward(_, cdc, dtype, saved, gradient):
    result, derivative = saved
    gradient_logits, *gradient_parameters = derivative(gradient.astype(wide(result)) * result.astype(wide(result)))
    return gradient_logits, tuple(gradient_parameters), None


_numerators.defvjp(_numerators_forward, _numerators_backward)


def minus_maxima(
    cdc: Callable,
    dtype: Any,
    after: Float[Array, "..."],
    logits: Float[Array, "*batch q k"],
    parameters: tuple[Array, ...],
    bounded: Bool[Array, ""],
) -> Float[Array, "..."]:
    """`Arithmetic.numerators` that subtracts the maxima of the rows, whatever the bound."""
    rows = after.reshape(logits.shape)
    return jnp.exp(rows - rows.max(axis=-1, keepdims=True)).reshape(after.shape).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def mix(kind: Kind, weights: Float[Array, "..."], v: Float[Array, "*shape"]) -> Float[Array, "..."]:
    """The mean of v with these weights: maps in their order, in any shape."""
    return _mix_forward(kind, weights, v)[0]


@partial(jax.jit, static_argnums=0)
def _mix_forward(kind, weights, v):
    maps = weights.reshape(kind.maps_shape(v, weights.size))
    share = 1 / kind.arithmetic.sum_weights(maps)
    mixed = (kind.mix(maps, v) * kind.spread(share)).astype(v.dtype)
    return mixed, (weights, share, v, mixed)


@partial(jax.jit, static_argnums=0)
def _mix_backward(kind, saved, gradient):
    weights, share, v, mixed = saved
    maps = weights.reshape(kind.maps_shape(v, weights.size))
    gradient = (gradient * kind.spread(share)).astype(v.dtype)
    gradient_weights = kind.maps(gradient, v)
    if _features_are_smaller(v, maps):
        along = kind.sum(gradient.astype(share.dtype) * mixed)
    else:
        along = kind.arithmetic.sum_over(maps * gradient_weights, -1) * share
    gradient_weights = (gradient_weights - along[..., None]).astype(weights.dtype)
    return gradient_weights.reshape(weights.shape), kind.mix_transposed(maps, gradient).astype(v.dtype)


mix.defvjp(_mix_forward, _mix_backward)


def plain_attention(
    q: Float[Array, "*batch p c"], k: Float[Array, "*batch p c"], v: Float[Array, "*batch p c"], cdc: CDC
) -> Float[Array, "*batch p c"]:
    """softmax(q k^T / sqrt(c)) v, the usual attention. cdc: what else is done to the logits, the shift's mask."""
    logits = product("...ak,...bk->...ab", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(cdc.function(logits, *cdc.parameters), axis=-1)
    return jnp.einsum("...ab,...bk->...ak", weights.astype(v.dtype), v)


def transposed_attention(
    kind: Spatial,
    q: Float[Array, "b H W mc"],
    k: Float[Array, "b H W mc"],
    v: Float[Array, "b H W mc"],
    temperature: Float[Array, " m"],
) -> Float[Array, "b H W mc"]:
    """Restormer's attention between the channels of every head (arXiv 2111.09881, section 3.1)."""
    batch, height, width, _ = q.shape
    heads = temperature.shape[0]

    def channels_first(features):  # [b, m, c, pixels]
        return features.reshape(batch, height * width, heads, -1).transpose(0, 2, 3, 1)

    unchanged = CDC(lambda logits: logits, bound=jnp.abs(temperature).max())
    attended = attend(kind, *map(channels_first, (q, k, v)), temperature[:, None], unchanged)
    return attended.transpose(0, 3, 1, 2).reshape(q.shape)
