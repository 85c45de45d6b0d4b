"""Attention between positions and between channels, and the communication of its maps (paper, section 3).

Queries and keys are normalised along the contracted axis. That is done after their product: the logits are scaled by
the inverse norms, which touches the small attention maps in place of the large feature maps. The softmax divides after
its product with the values for the same reason. Products are accumulated, and logits and softmax computed, in float32
whatever the type of the features.

Normalised queries and keys bound the logits by the temperature, and communication by its weights as well. Where that
bound is small, the softmax takes no maximum first: `softmax_numerators` decides it from the weights.

The derivatives are written out: what they need besides matrix products are then sums over the features' rows, where the
automatic ones pass over the attention maps for each sum.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from concertormer_jax.ops.dispatch import on_platform, sum_over

SMALLEST_SQUARED_NORM = 1e-24


def _wide(features: jax.Array):
    """float32, or the type of `features` if that is wider."""
    return jnp.promote_types(features.dtype, jnp.float32)


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum, accumulated in float32."""
    return jnp.einsum(axes, a, b, preferred_element_type=_wide(a))


@dataclasses.dataclass(frozen=True)
class _Spatial:
    """Products of features [..., A, K] whose rows are attended, and of their maps [..., A', A] for A' queries."""

    def maps_shape(self, features, entries):
        return *features.shape[:-2], entries // math.prod(features.shape[:-1]), features.shape[-2]

    def maps(self, a, b):
        return _product("...ak,...bk->...ab", a, b)

    def mix(self, maps, features):
        return _product("...ab,...bk->...ak", maps, features)

    def mix_transposed(self, maps, features):
        return _product("...ab,...ak->...bk", maps, features)

    def sum(self, features):
        """Over the contracted axis, to [..., A]."""
        return sum_over(features, -1)

    def over(self, sums):
        """The inverse of `sum` in shape: what multiplies the features row by row."""
        return sums[..., None]


@dataclasses.dataclass(frozen=True)
class _Channel:
    """The same for features [..., K, m c], whose columns are attended in m heads, and their maps [..., m, c, c].

    All heads are multiplied at once and the diagonal blocks of the product kept (c is small: it costs less than to
    separate the heads of the feature maps).
    """

    heads: int

    def maps_shape(self, features, _):
        channels = features.shape[-1] // self.heads
        return *features.shape[:-2], self.heads, channels, channels

    def maps(self, a, b):
        return _diagonal_blocks(_product("...ka,...kb->...ab", a, b), self.heads)

    def mix(self, maps, features):
        return _product("...ab,...kb->...ka", _block_diagonal(maps), features)

    def mix_transposed(self, maps, features):
        return _product("...ab,...ka->...kb", _block_diagonal(maps), features)

    def sum(self, features):
        sums = sum_over(features, -2)
        return sums.reshape(*sums.shape[:-1], self.heads, -1)

    def over(self, sums):
        return sums.reshape(*sums.shape[:-2], 1, -1)


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


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logits(kind, q, k, temperature):
    """The cosines of the rows of q with those of k, times the temperature [..., 1]."""
    return _logits_forward(kind, q, k, temperature)[0]


def _inverse_norms(kind, features):
    squared = kind.sum(jnp.square(features.astype(_wide(features))))
    return jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))  # 1 / max(norm, 1e-12)


@partial(jax.jit, static_argnums=0)
def _logits_forward(kind, q, k, temperature):
    inverse_q, inverse_k = _inverse_norms(kind, q), _inverse_norms(kind, k)
    products = kind.maps(q, k)
    logits = products * ((inverse_q * temperature)[..., None] * inverse_k[..., None, :])
    return logits, (q, k, temperature, inverse_q, inverse_k, None if _fewer(q, products) else products)


@partial(jax.jit, static_argnums=0)
def _logits_backward(kind, saved, gradient):
    q, k, temperature, inverse_q, inverse_k, products = saved
    gradient = (gradient * (inverse_q[..., None] * inverse_k[..., None, :])).astype(q.dtype)

    def through_norm(features, inverse, mixed, axis):  # only what is at right angles to a vector turns it
        along = kind.sum(features * mixed) if products is None else sum_over(gradient * products, axis)
        tangent = mixed - features * kind.over(along * jnp.square(inverse))
        scale = kind.over(jnp.broadcast_to(temperature, along.shape))
        return along, (tangent * scale).astype(features.dtype)

    along, gradient_q = through_norm(q, inverse_q, kind.mix(gradient, k), -1)
    _, gradient_k = through_norm(k, inverse_k, kind.mix_transposed(gradient, q), -2)
    over = tuple(range(along.ndim - temperature.ndim))
    gradient_temperature = along.sum(axis=-1, keepdims=True).sum(axis=over)
    return gradient_q, gradient_k, gradient_temperature.astype(temperature.dtype)


def _fewer(features, maps):
    """Whether sums that are the same over the features and over the maps are taken over the features."""
    return features.size < maps.size


_logits.defvjp(_logits_forward, _logits_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def softmax_numerators(communicate, dtype, logits, parameters, bound):
    """exp(l - a maximum) for l = communicate(logits, *parameters), in its shape and as `dtype`.

    logits: [..., A', A]; communicate: to any shape with the maps in the same order. bound: a number that no |l|
    exceeds, None where none is known. The maximum is that of each row of A, or 0 where `bound` is so small that neither
    the exponentials, nor their sums, nor what the derivatives divide by them leave the range of `dtype`.
    """
    return _numerators_forward(communicate, dtype, logits, parameters, bound)[0]


def largest_bound(dtype) -> float:
    """Up to which bound of the logits the softmax takes no maximum: a third of the largest exponent of `dtype`."""
    return math.log(float(jnp.finfo(dtype).max)) / 3


def _numerators_forward(communicate, dtype, logits, parameters, bound):
    after, derivative = jax.vjp(communicate, logits, *parameters)
    bounded = jnp.asarray(False) if bound is None else bound <= largest_bound(dtype)

    def exponentials(rows, maxima):
        return jnp.exp(rows - maxima[..., None]).reshape(after.shape).astype(dtype)

    def minus_chosen_maxima():
        rows = after.reshape(logits.shape)
        return exponentials(rows, jax.lax.cond(bounded, _zeros_for_rows, _maxima_of_rows, rows))

    def corrected():
        """A TPU computes communication and exponential in one loop; what it chooses between are their results.

        Behind the barrier it keeps them in the shape of `communicate` and as `dtype`: it would compute them both for
        their sum and for their product with the values, of float32 maps whose short axes it pads to twice their size.
        """
        without_maximum = jax.lax.optimization_barrier(jnp.exp(after).astype(dtype))

        def with_maximum(_, logits, parameters):
            rows = communicate(logits, *parameters).reshape(logits.shape)
            return exponentials(rows, _maxima_of_rows(rows))

        return jax.lax.cond(bounded, lambda result, *_: result, with_maximum, without_maximum, logits, parameters)

    numerators = on_platform(tpu=corrected, default=minus_chosen_maxima)
    return numerators, (numerators, derivative)


def _maxima_of_rows(rows):
    return rows.max(axis=-1)


def _zeros_for_rows(rows):
    return jnp.zeros(rows.shape[:-1], rows.dtype)


def _numerators_backward(communicate, dtype, saved, gradient):
    numerators, derivative = saved
    wide = _wide(numerators)
    gradient_logits, *gradient_parameters = derivative(gradient.astype(wide) * numerators.astype(wide))
    return gradient_logits, tuple(gradient_parameters), None


softmax_numerators.defvjp(_numerators_forward, _numerators_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(kind, weights, v):
    """The mean of v with the `weights` of maps, in any shape."""
    return _mix_forward(kind, weights, v)[0]


@partial(jax.jit, static_argnums=0)
def _mix_forward(kind, weights, v):
    maps = weights.reshape(kind.maps_shape(v, weights.size))
    share = 1 / on_platform(maps, tpu=sums_by_product, default=partial(sum_over, axis=-1))
    mixed = (kind.mix(maps, v) * kind.over(share)).astype(v.dtype)
    return mixed, (weights, share, v, mixed)


def sums_by_product(maps: jax.Array) -> jax.Array:
    """Sums over the last axis, in float32, by a product with ones: a TPU adds across its lanes several times slower.

    Of one column of ones its compiler would make a sum again.
    """
    return _product("...ab,bk->...ak", maps, jnp.ones((maps.shape[-1], 8), maps.dtype))[..., 0]


@partial(jax.jit, static_argnums=0)
def _mix_backward(kind, saved, gradient):
    weights, share, v, mixed = saved
    maps = weights.reshape(kind.maps_shape(v, weights.size))
    gradient = (gradient * kind.over(share)).astype(v.dtype)
    gradient_weights = kind.maps(gradient, v)
    if _fewer(v, maps):
        along = kind.sum(gradient.astype(share.dtype) * mixed)
    else:
        along = sum_over(maps * gradient_weights, -1) * share
    gradient_weights = (gradient_weights - along[..., None]).astype(weights.dtype)
    return gradient_weights.reshape(weights.shape), kind.mix_transposed(maps, gradient).astype(v.dtype)


_mix.defvjp(_mix_forward, _mix_backward)


class Communication(NamedTuple):
    """What is done to the logits [..., A', A] before their softmax: function(logits, *parameters).

    function: to any shape with the maps in the same order. bound: a number that no logit exceeds after it, whatever the
    features; None where none is known.
    """

    function: Callable[..., jax.Array]
    parameters: tuple[jax.Array, ...] = ()
    bound: jax.Array | None = None


def spatial_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array, communication: Communication
) -> jax.Array:
    """Softmax attention with normalised queries and keys.

    q: [..., A', K] of A' queries, k, v: [..., A, K], attended and contracted axes last; temperature: [..., 1],
    broadcasts against [..., A']. communication: of the logits [..., A', A]. Returns [..., A', K].
    """
    function, parameters, bound = communication
    logits = _logits(_Spatial(), q, k, temperature)
    return _mix(_Spatial(), softmax_numerators(function, v.dtype, logits, parameters, bound), v)


def channel_attention(
    parts: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
    temperature: jax.Array,
    communication: Communication,
) -> list[jax.Array]:
    """As `spatial_attention` between the channels of each head; its features may come in parts of some heads each.

    parts: q, k and v of each, [..., K, m' c], the contracted axis and then m' heads of c channels; temperature: [m, 1]
    for the m heads of all parts. communication: of the logits [..., m, c, c].
    Returns the parts' results, [..., K, m' c].
    """
    kind = _Channel(temperature.shape[0] // len(parts))
    temperatures = jnp.split(temperature, len(parts))
    logits = [
        on_platform(q, k, own, tpu=logits_by_heads, default=partial(_logits, kind))
        for (q, k, _), own in zip(parts, temperatures, strict=True)
    ]
    function, parameters, bound = communication
    together = logits[0] if len(parts) == 1 else jnp.concatenate(logits, axis=-3)
    weights = softmax_numerators(function, parts[0][2].dtype, together, parameters, bound)
    apart = [weights] if len(parts) == 1 else jnp.split(weights.reshape(together.shape), len(parts), axis=-3)
    by_heads = partial(mix_by_heads, kind.heads)
    return [
        on_platform(own, v, tpu=by_heads, default=partial(_mix, kind))
        for own, (_, _, v) in zip(apart, parts, strict=True)
    ]


# A TPU writes the features of each head apart for nothing, which diagonal blocks of its products are not.


def logits_by_heads(q: jax.Array, k: jax.Array, temperature: jax.Array) -> jax.Array:
    """The logits [..., m, c, c] of `channel_attention` by products for each head."""
    heads = len(temperature)
    return _logits(_Spatial(), _heads_first(q, heads), _heads_first(k, heads), temperature)


def mix_by_heads(heads: int, weights: jax.Array, v: jax.Array) -> jax.Array:
    """The means of v with the `weights` of `channel_attention`, by products for each head."""
    mixed = _mix(_Spatial(), weights, _heads_first(v, heads))
    return jnp.moveaxis(mixed, -1, -3).reshape(v.shape)


def _heads_first(features, heads):
    """[..., K, m c] to [..., m, c, K]."""
    return jnp.moveaxis(features.reshape(*features.shape[:-1], heads, -1), -3, -1)


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, communicate: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """softmax(communicate(q k^T / sqrt(K))) v, the usual attention. q, k, v: [..., A, K]. Returns [..., A, K]."""
    logits = _product("...ak,...bk->...ab", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(communicate(logits), axis=-1)
    return jnp.einsum("...ab,...bk->...ak", weights.astype(v.dtype), v)


def communicate_over_maps(logits: jax.Array, matrix: jax.Array) -> jax.Array:
    """Cross-dimensional communication of a Concertino: every map becomes a weighted sum of all maps.

    logits: [B, ..., A, A], the axes between numbering D maps; matrix: [D, D] (map in, map out).
    Returns the maps as rows, [B, D, A * A].
    """
    maps = logits.reshape(logits.shape[0], matrix.shape[0], -1)
    to_maps = jnp.broadcast_to(matrix.T, (len(maps), *matrix.shape))
    return jnp.matmul(to_maps, maps)
