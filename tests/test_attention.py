"""Attention: the shift's mask, the communication of maps, and degenerate features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops import attention, blocks, concerto, reference
from concertormer_jax.ops.attention import Communication
from concertormer_jax.ops.dispatch import traced_for


def only_spatial_ripieno_values():
    """Weights for two channels: keys see the first, values the second, and no communication or channel attention."""
    none = jnp.zeros((2, 4))
    one_head = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    return reference.AttentionWeights(
        to_q=none.at[0].set(1),
        to_kv=jnp.concatenate([none.at[0].set(1), none.at[1].set(1)], axis=1),
        temperature=jnp.ones((4, 1)),
        cdc={
            "ripieno_spatial": one_head,
            "ripieno_channel": one_head,
            "concertino_channel": jnp.zeros((1, 64, 64, 1)),
            "concertino_spatial": jnp.zeros((1, 1, 1, 1)),
        },
        sca_kernel=jnp.zeros((4, 4)),
        sca_bias=jnp.ones(4),
    )


@pytest.fixture(scope="module")
def spatial_ripieno():
    """(features, shifted) -> output of the group Rs, [H, W]."""
    weights = only_spatial_ripieno_values()
    return jax.jit(lambda x, shifted: concerto.concerto_attention(x, x, weights, shifted, heads=1)[0, :, :, 0])


@pytest.mark.parametrize(
    ("pixel", "shifted", "rows", "columns"),
    [
        ((0, 0), False, (0, 8), (0, 8)),
        ((15, 23), False, (8, 16), (16, 24)),
        ((0, 0), True, (0, 4), (0, 4)),  # in a block with pixels of all four corners of the image
        ((3, 7), True, (0, 4), (4, 12)),  # at the upper border only
        ((15, 12), True, (12, 16), (12, 20)),
        ((7, 23), True, (4, 12), (20, 24)),  # at the right border only
        ((4, 11), True, (4, 12), (4, 12)),  # away from the border a shifted block is whole
    ],
)
def test_spatial_attention_stays_in_the_block_and_on_one_side_of_the_border(
    spatial_ripieno, pixel, shifted, rows, columns
):
    features = jax.random.normal(jax.random.key(0), (1, 16, 24, 2))
    changed = features.at[0, *pixel, 1].add(100)  # in the channel of the values, so that no map changes
    difference = np.asarray(spatial_ripieno(changed, shifted) - spatial_ripieno(features, shifted))
    expected = np.zeros((16, 24), bool)
    expected[slice(*rows), slice(*columns)] = True
    np.testing.assert_array_equal(np.abs(difference) > 1e-3, expected)
    np.testing.assert_array_equal(difference[~expected], 0)


@pytest.fixture
def halves(monkeypatch):
    """Halves of the queries at every size; the numbers of queries and keys of each spatial attention, as they come."""
    seen = []

    def spatial_attention(q, k, v, temperature, communication):
        seen.append((q.shape[-2], k.shape[-2]))
        return attention.spatial_attention(q, k, v, temperature, communication)

    monkeypatch.setattr(concerto, "LARGE", 1)
    monkeypatch.setattr(concerto, "spatial_attention", spatial_attention)
    return seen


def random_weights(heads, channels, size):
    """Weights for features of `size` channels, so small that no softmax takes one value alone."""
    hidden = 4 * heads * channels
    shapes = reference.AttentionWeights(
        to_q=(size, hidden),
        to_kv=(size, 2 * hidden),
        temperature=(4, heads),
        cdc={
            "ripieno_spatial": (3, 3, heads, heads),
            "ripieno_channel": (3, 3, heads, heads),
            "concertino_channel": (heads, 64, 64, heads),
            "concertino_spatial": (heads, channels, channels, heads),
        },
        sca_kernel=(hidden, hidden),
        sca_bias=(hidden,),
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(scale=0.3, size=shape), jnp.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple) and not isinstance(leaf, reference.AttentionWeights),
    )


def test_halves_of_queries_and_of_heads_make_the_whole(halves):
    x, y, goal = jax.random.normal(jax.random.key(0), (3, 2, 16, 24, 5))
    weights = random_weights(heads=2, channels=3, size=5)

    def result_and_gradient(platform):
        def weighed(x, y, weights):
            attended = concerto.concerto_attention(x, y, weights, jnp.array(True), heads=2)
            return jnp.sum(goal[..., :1] * attended), attended

        with traced_for(platform):
            return jax.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))(x, y, weights)

    whole, cut = result_and_gradient("gpu"), result_and_gradient("cpu")
    assert halves == [(64, 64), (64, 64), (32, 64), (32, 64), (32, 64), (32, 64)]

    def same(ours, plain):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4 * float(jnp.abs(plain).max()))

    jax.tree.map(same, cut, whole)


@pytest.mark.parametrize("shifted", [True, False])
def test_maps_are_masked_as_rows_too(shifted):
    grid, heads = blocks.Grid(2, 4, 2), 3
    logits = jax.random.normal(jax.random.key(0), (2, 8, heads, 4, 4))
    rows = logits.reshape(2, 2, 2, 2 * heads, 16)  # two neighbouring blocks together
    expected = concerto.mask_maps(grid, logits, shifted)
    assert np.any(expected != logits) == shifted
    np.testing.assert_array_equal(concerto.mask_rows(grid, heads, rows, shifted), expected.reshape(rows.shape))


def test_maps_are_mixed_by_the_matrix():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 5))
    matrix = jax.random.normal(jax.random.key(1), (12, 12))
    mixed = attention.communicate_over_maps(logits, matrix)
    maps = logits.reshape(2, 12, 5, 5)
    for to in range(12):
        expected = sum(matrix[source, to] * maps[:, source] for source in range(12))  # [B, A, A]
        np.testing.assert_allclose(mixed.reshape(maps.shape)[:, to], expected, atol=1e-5)


def cosine(q, k):
    """[..., A, K] twice to [..., A, A] in float64."""
    q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in np.float64([q, k]))
    return np.einsum("...ak,...bk->...ab", q, k)


def test_queries_and_keys_are_normalised():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 4))
    temperature = jnp.array([0.5, 2.0])[:, None]
    attended = spatial_attention(q, k, v, temperature, lambda logits: logits)
    expected = cosine(q, k) * temperature[..., None]
    np.testing.assert_allclose(attended, jax.nn.softmax(expected) @ v, atol=1e-5)


def channel_attention(q, k, v, temperature, communicate):
    """`attention.channel_attention` of all heads at once."""
    (attended,) = attention.channel_attention([(q, k, v)], temperature, Communication(communicate))
    return attended


def channel_attention_by_heads(q, k, v, temperature, communicate):
    """`channel_attention` as on a TPU."""
    with traced_for("tpu"):
        return channel_attention(q, k, v, temperature, communicate)


def spatial_attention(q, k, v, temperature, communicate):
    return attention.spatial_attention(q, k, v, temperature, Communication(communicate))


def test_channel_attention_is_spatial_attention_of_each_heads_transposed_features():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 12))  # 3 heads of 4 channels
    temperature = jnp.array([0.5, 1.0, 2.0])[:, None]

    def communicate(logits):  # [2, 3, 4, 4]
        return logits + logits[:, ::-1] ** 2

    def heads(features):
        return features.reshape(2, 7, 3, 4).transpose(0, 2, 3, 1)

    expected = spatial_attention(heads(q), heads(k), heads(v), temperature, communicate)
    for attend in (channel_attention, channel_attention_by_heads):
        np.testing.assert_allclose(heads(attend(q, k, v, temperature, communicate)), expected, atol=1e-5)


def test_channel_attention_of_halves_of_the_heads_is_that_of_all():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 7, 16))  # 4 heads of 4 channels
    temperature = jnp.array([0.5, 1.0, 2.0, 3.0])[:, None]

    def communicate(logits):  # [2, 4, 4, 4], to the maps as rows
        return (logits + logits[:, ::-1] ** 2).reshape(2, 4, 16)

    halves = list(zip(*(jnp.split(features, 2, axis=-1) for features in (q, k, v)), strict=True))
    attended = attention.channel_attention(halves, temperature, Communication(communicate))
    expected = channel_attention(q, k, v, temperature, communicate)
    np.testing.assert_allclose(jnp.concatenate(attended, axis=-1), expected, atol=1e-5)


def plain_spatial_attention(q, k, v, temperature, communicate):
    q, k = (features / jnp.linalg.norm(features, axis=-1, keepdims=True) for features in (q, k))
    logits = communicate(q @ k.swapaxes(-1, -2) * temperature[..., None])
    return jax.nn.softmax(logits, axis=-1) @ v


def plain_channel_attention(q, k, v, temperature, communicate):
    def heads(features):
        return features.reshape(*features.shape[:-1], len(temperature), -1).swapaxes(-3, -2).swapaxes(-2, -1)

    attended = plain_spatial_attention(heads(q), heads(k), heads(v), temperature, communicate)
    return attended.swapaxes(-2, -1).swapaxes(-3, -2).reshape(q.shape)


@pytest.mark.parametrize(
    ("ours", "plain", "shape", "fewer"),  # what there are fewer of, over which the derivatives sum: shapes [..., A, K]
    [
        (spatial_attention, plain_spatial_attention, (2, 3, 6, 5), "features"),
        (spatial_attention, plain_spatial_attention, (2, 3, 5, 6), "maps"),
        (channel_attention, plain_channel_attention, (2, 3, 12), "features"),  # [..., K, m c] of m = 3 heads
        (channel_attention, plain_channel_attention, (2, 6, 12), "maps"),
        (channel_attention_by_heads, plain_channel_attention, (4, 3, 12), "features"),
        (channel_attention_by_heads, plain_channel_attention, (4, 6, 12), "maps"),
    ],
)
def test_derivatives_are_those_of_the_formula(monkeypatch, ours, plain, shape, fewer):
    *qkv, weight = jax.random.normal(jax.random.key(0), (4, *shape))
    temperature = jnp.array([0.5, 1.0, 2.0])[:, None]
    function, chosen = attention._fewer, set()
    monkeypatch.setattr(attention, "_fewer", lambda *sizes: chosen.add(function(*sizes)) or function(*sizes))

    def gradients(attend):
        def weighed(qkv, temperature):
            return jnp.sum(weight * attend(*qkv, temperature, lambda logits: jnp.sin(3 * logits)))

        return jax.jit(jax.grad(weighed, argnums=(0, 1)))(qkv, temperature)

    for ours_one, plain_one in zip(*map(jax.tree.leaves, (gradients(ours), gradients(plain))), strict=True):
        assert np.abs(plain_one).max() > 0.01
        np.testing.assert_allclose(ours_one, plain_one, atol=1e-5)
    assert chosen == {fewer == "features"}


@pytest.mark.parametrize("attend", [spatial_attention, channel_attention])
def test_communicated_maps_may_be_rows(attend):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 1, 6, 4))
    temperature = jnp.full((1, 1), 2.0)

    def gradients(shaped):
        def total(qkv):
            return jnp.sum(jnp.sin(attend(*qkv, temperature, lambda logits: shaped(jnp.sin(3 * logits)))))

        return jax.grad(total)((q, k, v))

    rows = gradients(lambda logits: logits.reshape(2, -1, logits.shape[-1] ** 2))
    for ours, plain in zip(rows, gradients(lambda logits: logits), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)


def test_sums_of_rows_by_a_product():
    maps = jax.random.normal(jax.random.key(0), (2, 3, 5, 7))
    np.testing.assert_allclose(attention.sums_by_product(maps), maps.sum(axis=-1), atol=1e-5)
    many = jnp.full((1, 1024), 1, jnp.bfloat16)  # one by one in bfloat16, the sum would stop at 256
    assert attention.sums_by_product(many) == 1024


def test_absurd_logits_give_no_absurd_numbers():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 4))

    def total(qkv):
        return spatial_attention(*qkv, jnp.full((1, 1), 1e6), lambda logits: logits).sum()

    value, gradient = jax.value_and_grad(total)((q, k, v))
    assert np.isfinite(value)
    assert all(np.isfinite(part).all() for part in gradient)


def test_logits_of_bfloat16_features_are_accumulated_in_float32():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 6, 200), jnp.bfloat16)
    logits, _ = attention._logits_forward(attention._Spatial(), q, k, jnp.ones(1))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, cosine(q, k), atol=1e-5)
    assert spatial_attention(q, k, v, jnp.ones(1), lambda logits: logits).dtype == jnp.bfloat16


@pytest.mark.parametrize("attend", [spatial_attention, channel_attention])
def test_zero_features_have_finite_results_and_gradients(attend):
    def mean(qkv):
        return attend(*qkv, jnp.ones((1, 1)), lambda logits: logits).mean()

    value, gradient = jax.value_and_grad(mean)(jnp.zeros((3, 1, 5, 4)))
    assert value == 0
    assert np.isfinite(gradient).all()
