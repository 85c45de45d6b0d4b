"""The attention as a module of its own: its formula written out in NumPy, what it sees, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.models import ConcertoSelfAttention
from concertormer_jax.models.concerto_attention import CDC_PARAMETERS, LOGITS
from concertormer_jax.ops import concerto

RIPIENO, CONCERTINO = concerto.CONCERTO[:2], concerto.CONCERTO[2:]


def random_features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters_of(module, *inputs):
    """Normal numbers of standard deviation 0.5 in the shapes of the module's parameters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), shapes)


@functools.cache
def compiled(module, shifted=False, **settings):
    return jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs, shifted=shifted, **settings))


def attend(module, params, *inputs, shifted=False):
    return np.asarray(compiled(module, shifted)(params, *inputs))


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def by_hand(module, params, x, keys, shifted=False):
    """The formula of section 3 in float64, one image: loops over heads, and over maps where they mix."""
    k, heads, groups = module.block_px, module.heads, module.groups
    height, width, _ = x.shape
    rows, columns = height // k, width // k
    channels = module.features // (len(groups) * heads)
    half = k // 2 if shifted else 0
    x, keys = (np.roll(features, (-half, -half), axis=(0, 1)) for features in (x, keys))

    def blocks(features):  # [n, k * k, C]
        cut = features.reshape(rows, k, columns, k, -1).transpose(0, 2, 1, 3, 4)
        return cut.reshape(rows * columns, k * k, -1)

    def unit(array, axis):
        return array / np.maximum(np.linalg.norm(array, axis=axis, keepdims=True), 1e-12)

    p = {name: np.float64(leaf) for name, leaf in params.items()}
    q = blocks(np.float64(x) @ p["to_q"])
    key, value = np.split(blocks(np.float64(keys) @ p["to_kv"]), 2, axis=-1)
    results = []
    for index, group in enumerate(groups):
        start = index * heads * channels

        def heads_of(features, start=start):  # [m, n, k * k, c]
            part = features[..., start : start + heads * channels]
            return part.reshape(rows * columns, k * k, heads, channels).transpose(2, 0, 1, 3)

        qs, ks, vs = heads_of(q), heads_of(key), heads_of(value)
        axis = {"ripieno_spatial": 3, "ripieno_channel": 2}.get(group, 1)  # that the norm and the product contract
        qs, ks = unit(qs, axis), unit(ks, axis)
        axes = {
            "ripieno_spatial": "mnpc,mnqc->mnpq",
            "ripieno_channel": "mnpc,mnpd->mncd",
            "concertino_channel": "mnpc,mnpd->mpcd",
            "concertino_spatial": "mnpc,mnqc->mcpq",
        }[group]
        logits = np.einsum(axes, qs, ks) * p["temperature"][index][:, None, None, None]
        kernel = p.get(CDC_PARAMETERS[group])
        mixed = np.zeros_like(logits)
        if kernel is None:
            subtract = group in RIPIENO and group.replace("ripieno", "concertino") in groups
            mixed = logits - logits.mean(axis=1, keepdims=True) if subtract else logits
        elif group in RIPIENO:
            for source in range(heads):
                for to in range(heads):
                    for block in range(rows * columns):
                        for down in (-1, 0, 1):
                            for right in (-1, 0, 1):
                                row, column = block // columns + down, block % columns + right
                                if 0 <= row < rows and 0 <= column < columns:
                                    weight = kernel[down + 1, right + 1, source, to]
                                    mixed[to, block] += weight * logits[source, row * columns + column]
        else:
            for source in range(heads):
                for to in range(heads):
                    for one in range(logits.shape[1]):
                        for other in range(logits.shape[1]):
                            mixed[to, other] += kernel[source, one, other, to] * logits[source, one]
        if group == "ripieno_spatial" and shifted:
            for block in range(rows * columns):
                for one in range(k * k):
                    for other in range(k * k):
                        # Where the two pixels are on the map, and how far apart they are in the block.
                        places = [
                            (
                                (block // columns * k + at // k + half) % height,
                                (block % columns * k + at % k + half) % width,
                            )
                            for at in (one, other)
                        ]
                        apart = np.subtract(*places) == (one // k - other // k, one % k - other % k)
                        mixed[:, block, one, other] -= 0 if apart.all() else 100
        back = {
            "ripieno_spatial": "mnpq,mnqc->mnpc",
            "ripieno_channel": "mncd,mnpd->mnpc",
            "concertino_channel": "mpcd,mnpd->mnpc",
            "concertino_spatial": "mcpq,mnqc->mnpc",
        }[group]
        attended = np.einsum(back, softmax(mixed), vs).transpose(1, 2, 0, 3)  # [n, k * k, m, c]
        results.append(attended.reshape(rows, columns, k, k, heads * channels))
    output = np.concatenate(results, axis=-1).transpose(0, 2, 1, 3, 4).reshape(height, width, -1)
    if module.sca:
        output = output * (output.mean(axis=(0, 1)) @ p["sca_kernel"] + p["sca_bias"])
    return np.roll(output, (half, half), axis=(0, 1))


@pytest.mark.parametrize("implementation", ["reference", None])
@pytest.mark.parametrize(("size", "shifted", "cross"), [((4, 4), False, True), ((8, 12), True, False)])
def test_attention_is_what_the_formula_says_by_hand(size, shifted, cross, implementation):
    """All four groups with communication between heads, positions and channels, and the channel attention."""
    module = ConcertoSelfAttention(16, heads=2, block_px=4, implementation=implementation)
    x, y = random_features(1, *size, 6), random_features(1, *size, 5, seed=3)
    inputs = (x, y) if cross else (x,)
    params = parameters_of(module, *inputs)
    expected = by_hand(module, params, x[0], inputs[-1][0], shifted)
    np.testing.assert_allclose(attend(module, params, *inputs, shifted=shifted)[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    "groups", [concerto.CONCERTO, ("ripieno_spatial", "concertino_spatial"), RIPIENO, ("concertino_channel",)]
)
def test_without_communication_the_ripieno_gives_its_mean_to_its_concertino(groups):
    """The paper's first form, on six blocks: the mean is subtracted where the Concertino of the same axis has it."""
    settings = {"communication": "none", "sca": False, "block_px": 4, "implementation": "reference"}
    module = ConcertoSelfAttention(16, heads=2, groups=groups, **settings)
    x = random_features(1, 8, 12, 6)
    params = parameters_of(module, x)
    np.testing.assert_allclose(attend(module, params, x)[0], by_hand(module, params, x[0], x[0]), atol=1e-4)


def test_window_attention_is_the_plain_softmax_of_each_window():
    module = ConcertoSelfAttention(8, 2, groups=("window",), sca=False, block_px=4, implementation="reference")
    x = random_features(1, 4, 8, 6)
    params = parameters_of(module, x)
    assert set(params) == {"to_q", "to_kv"}
    result = attend(module, params, x)
    for window in (slice(0, 4), slice(4, 8)):
        pixels = x[0, :, window].reshape(16, 6)
        q, (k, v) = pixels @ params["to_q"], np.split(pixels @ params["to_kv"], 2, axis=-1)
        heads = [slice(0, 4), slice(4, 8)]
        expected = [softmax(q[:, head] @ k[:, head].T / 2) @ v[:, head] for head in heads]  # 2 = sqrt(4 channels)
        np.testing.assert_allclose(result[0, :, window].reshape(16, 8), np.concatenate(expected, axis=-1), atol=1e-5)


def permuted(features, order):
    return features.reshape(1, -1, features.shape[-1])[:, order].reshape(features.shape)


def maps_of(module, params, x):
    """The logits of the only group of `module`, after communication."""
    _, told = compiled(module, mutable=LOGITS)(params, x)
    (before_and_after,) = told[LOGITS].values()
    return np.asarray(before_and_after[1])


@pytest.mark.parametrize(
    ("group", "invariant"), [("transposed", True), ("ripieno_channel", False), ("concertino_channel", False)]
)
def test_only_transposed_attention_does_not_see_where_pixels_are(group, invariant):
    """Its map stays when pixels are permuted, and its output is permuted with them; channel CSA's maps change."""
    module = ConcertoSelfAttention(8, heads=2, groups=(group,), communication="none", sca=False, block_px=4)
    x = random_features(1, 8, 8, 6)
    order = np.random.default_rng(2).permutation(64)
    params = parameters_of(module, x)
    maps, maps_permuted = (maps_of(module, params, features) for features in (x, permuted(x, order)))
    same_maps = np.abs(maps - maps_permuted).max() < 1e-5
    output, of_permuted = (attend(module, params, features) for features in (x, permuted(x, order)))
    same_output = np.abs(permuted(output, order) - of_permuted).max() < 1e-5
    assert (same_maps, same_output) == (invariant, invariant)


@pytest.mark.parametrize(
    ("groups", "crosses"),
    [
        (("ripieno_spatial",), False),
        (("ripieno_channel",), False),
        (RIPIENO, False),
        (("window",), False),
        (("concertino_channel",), True),
        (("concertino_spatial",), True),
        (("ripieno_spatial", "concertino_channel"), True),
        (("transposed",), True),
    ],
)
def test_only_what_a_concertino_says_crosses_the_borders_of_blocks(groups, crosses):
    """One of six blocks is changed; without communication and channel attention, unshifted."""
    module = ConcertoSelfAttention(16, groups=groups, communication="none", sca=False, block_px=4)
    x = random_features(1, 8, 12, 6)
    changed = x.copy()
    changed[:, 4:8, 4:8] = random_features(1, 4, 4, 6, seed=5)
    params = parameters_of(module, x)
    difference = np.abs(attend(module, params, changed) - attend(module, params, x)).max(axis=(0, 3))
    blocks = difference.reshape(2, 4, 3, 4).max(axis=(1, 3)) > 1e-6
    assert blocks[1, 1]
    assert blocks.all() if crosses else blocks.sum() == 1


def test_a_shift_moves_the_blocks_and_keeps_the_border():
    """Shifted plain windows: a pixel reaches the block around it, and nothing on the other side of the border."""
    module = ConcertoSelfAttention(8, groups=("window",), sca=False, block_px=4)
    x = random_features(1, 8, 8, 6)
    params = parameters_of(module, x)
    shifted = jax.jit(lambda x, shifted: module.apply({"params": params}, x, shifted=shifted))
    for pixel, rows, columns in (((3, 4), (2, 6), (2, 6)), ((0, 0), (0, 2), (0, 2)), ((7, 3), (6, 8), (2, 6))):
        changed = x.copy()
        changed[0, *pixel] += 1
        reached = np.abs(shifted(changed, True) - shifted(x, True)).max(axis=(0, 3)) > 1e-6
        expected = np.zeros((8, 8), bool)
        expected[slice(*rows), slice(*columns)] = True
        np.testing.assert_array_equal(reached, expected)
    np.testing.assert_allclose(shifted(x, False), attend(module, params, x), atol=1e-6)  # traced or known


def test_tlc_with_a_window_for_the_whole_map_changes_nothing():
    module = ConcertoSelfAttention(8, block_px=4)
    x = random_features(1, 8, 12, 6)
    params = parameters_of(module, x)
    whole = attend(module, params, x)
    np.testing.assert_allclose(attend(module.clone(tlc_window=12), params, x), whole, atol=1e-6)
    assert np.abs(attend(module.clone(tlc_window=4), params, x) - whole).max() > 1e-3


def test_parameters_are_only_those_that_the_settings_need():
    def names(**settings):
        module = ConcertoSelfAttention(16, heads=2, block_px=4, **settings)
        shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4, 4, 6)))["params"]
        return {name: leaf.shape for name, leaf in shapes.items()}

    projections = {"to_q": (6, 16), "to_kv": (6, 32)}
    sca = {"sca_kernel": (16, 16), "sca_bias": (16,)}
    rs, rc, cc, cs = (CDC_PARAMETERS[group] for group in concerto.CONCERTO)
    spatial = {rs: (3, 3, 2, 2), cs: (2, 2, 2, 2)}
    channel = {rc: (3, 3, 2, 2), cc: (2, 16, 16, 2)}
    four = projections | {"temperature": (4, 2)}
    assert names() == four | sca | spatial | channel
    assert names(communication="spatial") == four | sca | spatial
    assert names(communication="channel", sca=False) == four | channel
    assert names(communication="none", sca=False) == four
    assert names(groups=("window", "transposed"), sca=False) == projections | {"temperature": (1, 2)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": ()}, "groups=.. must name at least one group"),
        ({"groups": ("rippieno",)}, "'rippieno' is unknown; choose from ripieno_spatial, .*transposed"),
        ({"groups": ("window", "window")}, "must not name a group twice"),
        ({"features": 12, "heads": 2}, "features=12 must be a multiple of the 4 groups times heads=2"),
        ({"heads": 0}, "heads=0"),
        ({"communication": "all"}, "communication='all' is unknown; choose one of both, spatial, channel, none"),
        ({"block_px": 5}, "block_px=5 must be a positive even number"),
        ({"tlc_window": 12}, "tlc_window=12 must be a positive multiple of block_px=8"),
    ],
)
def test_an_attention_that_cannot_be_is_refused(fields, message):
    module = ConcertoSelfAttention(**({"features": 8} | fields))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 4)))


@pytest.mark.parametrize(
    ("x", "keys", "message"),
    [
        (
            (1, 8, 12, 4),
            None,
            r"x of shape \(1, 8, 12, 4\) must be \[B, H, W, C\] with H and W multiples of block_px=8",
        ),
        ((8, 8, 4), None, "must be .B, H, W, C."),
        ((1, 8, 8, 4), (1, 16, 8, 4), r"keys of shape \(1, 16, 8, 4\) must have the batch, height and width of x"),
    ],
)
def test_features_that_do_not_fit_are_refused(x, keys, message):
    inputs = [jnp.zeros(shape) for shape in (x, keys) if shape is not None]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(ConcertoSelfAttention(8).init, jax.random.key(0), *inputs)
