"""Restormer: its parameters, its attention and norms by hand, sizes, settings. (Its values: see test_golden.py.)"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import random_images, random_params
from tiny_restormer import tiny_restormer

from concertormer_jax.models import VARIANTS, create, parameter_shapes
from concertormer_jax.models.concerto_attention import CDC_PARAMETERS
from concertormer_jax.models.costs import flops
from concertormer_jax.models.restormer import TransformerBlock, TransformerStage, layer_norm
from concertormer_jax.ops.concerto import transposed_attention
from concertormer_jax.ops.dispatch import traced_for
from concertormer_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("restormer", 26_126_644), ("restormer_bias_free", 26_111_668), ("restormer_csa", 31_004_520)],
)
def test_parameter_counts(variant, parameters):
    """The first two are published."""
    count = sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(create(variant))))
    assert count == VARIANTS[variant].parameters == parameters


def convolutions_of(blocks, pixels):
    """Multiplications of all convolutions in the blocks of a stage; `blocks`: the shapes of their parameters."""
    attention = blocks["attention"]
    for_each_pixel = [blocks["attention_out"], *blocks["feed_forward"].values()]
    for_each_pixel += [attention[name] for name in ("to_qkv", "dw_qkv", "to_q", "to_kv") if name in attention]
    total = pixels * sum(leaf.size for leaf in for_each_pixel)
    if "to_q" in attention:
        # The convolutions over the blocks serve every entry of the maps, 64 x 64 or c x c in a block.
        channels = attention["to_q"].shape[-1] // (4 * attention["temperature"].shape[-1])
        spatial, channel = (attention[CDC_PARAMETERS[f"ripieno_{kind}"]].size for kind in ("spatial", "channel"))
        total += spatial * pixels * 64 + channel * pixels // 64 * channels**2 + attention["sca_kernel"].size
    return total


def gmacs_of_convolutions(variant):
    """The paper's accounting on 256x256 pixels: the convolutions, those of 1x1 pixel among them, and nothing else."""
    level = {"intro": 0, "middle": 3, "refinement": 0, "ending": 0}
    for index in range(3):
        level |= {f"encoders_{index}": index, f"downs_{index}": index, f"ups_{index}": 3 - index}
        level |= {f"reductions_{index}": 2 - index, f"decoders_{index}": 2 - index}
    total = 0
    for name, part in parameter_shapes(create(variant)).items():
        pixels = 256**2 // 4 ** level[name]
        total += convolutions_of(part["blocks"], pixels) if "blocks" in part else pixels * part["kernel"].size
    return total / 1e9


def test_cost_in_the_papers_accounting():
    """Restormer's own figure, and 0.5 % fewer with Concerto self-attention."""
    own, with_csa = gmacs_of_convolutions("restormer"), gmacs_of_convolutions("restormer_csa")
    assert own == pytest.approx(140.99, abs=0.005)
    assert with_csa == pytest.approx(140.20, abs=0.005)
    assert with_csa / own - 1 == pytest.approx(-0.005, abs=0.001)


def test_cost_with_the_products_of_the_attention():
    module = create("restormer")
    with traced_for("gpu"):  # a CPU takes products for some sums
        program = jax.make_jaxpr(module.apply)({"params": parameter_shapes(module)}, jnp.zeros((1, 256, 256, 3)))
    depthwise = (
        9
        * 65536
        * sum(
            blocks * (3 * width + 2 * int(2.66 * width)) / 4**level
            for width, blocks, level in ((48, 4, 0), (96, 12, 1), (192, 12, 2), (384, 8, 3), (96, 8, 0))
        )
    )  # shifted multiply-adds, which are not in the count of matrix products
    assert (flops(program) / 2 + depthwise) / 1e9 == pytest.approx(VARIANTS["restormer"].gmacs, abs=0.005)


def blocks(number, width, norm):
    hidden = int(2.66 * width)
    shapes = {
        "norm1": norm(width),
        "attention": {
            "to_qkv": (width, 3 * width),
            "dw_qkv": (3, 3, 3 * width),
            "temperature": (2,),
        },
        "attention_out": (width, width),
        "norm2": norm(width),
        "feed_forward": {"project_in": (width, 2 * hidden), "dw": (3, 3, 2 * hidden), "project_out": (hidden, width)},
    }
    shapes = jax.tree.map(lambda shape: (number, *shape), shapes, is_leaf=lambda node: isinstance(node, tuple))
    return {"blocks": shapes}


def kernel(*shape):
    return {"kernel": shape}


@pytest.mark.parametrize("bias", [True, False])
def test_the_parameter_tree_is_an_interface(bias):
    """Checkpoints hold this tree: another name or shape makes those of users unreadable."""

    def norm(width):
        return {"scale": (width,)} | ({"bias": (width,)} if bias else {})

    expected = {
        "intro": kernel(3, 3, 3, 8),
        "encoders_0": blocks(2, 8, norm),
        "downs_0": kernel(3, 3, 8, 4),
        "encoders_1": blocks(1, 16, norm),
        "downs_1": kernel(3, 3, 16, 8),
        "middle": blocks(1, 32, norm),
        "ups_0": kernel(3, 3, 32, 64),
        "reductions_0": kernel(1, 1, 32, 16),
        "decoders_0": blocks(2, 16, norm),
        "ups_1": kernel(3, 3, 16, 32),
        "decoders_1": blocks(1, 16, norm),
        "refinement": blocks(3, 16, norm),
        "ending": kernel(3, 3, 16, 3),
    }
    two_levels = {
        "encoder_blocks": (2, 1),
        "decoder_blocks": (2, 1),
        "refinement_blocks": 3,
        "encoder_heads": (2, 2),
        "decoder_heads": (2, 2),
    }
    shapes = parameter_shapes(tiny_restormer(norm_bias=bias, **two_levels))
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == expected


@pytest.mark.parametrize("setting", [{"dtype": jnp.bfloat16}, {"remat": True}, {"tlc_window": 32}])
def test_parameters_are_float32_and_the_same_under_every_setting(setting):
    assert parameter_shapes(tiny_restormer(**setting)) == parameter_shapes(tiny_restormer())
    assert {leaf.dtype for leaf in jax.tree.leaves(parameter_shapes(tiny_restormer(**setting)))} == {
        np.dtype("float32")
    }


def test_with_concerto_self_attention_the_rest_stays():
    own, with_csa = (parameter_shapes(tiny_restormer(attention=kind)) for kind in ("transposed", "concerto"))
    attention = with_csa["middle"]["blocks"].pop("attention")
    del own["middle"]["blocks"]["attention"]
    assert own["middle"] == with_csa["middle"]
    names = {"to_q", "to_kv", "temperature", *CDC_PARAMETERS.values(), "sca_kernel", "sca_bias"}
    assert set(attention) == names
    assert attention["to_kv"].shape == (1, 16, 32)


def test_concerto_self_attention_is_shifted_in_every_other_block():
    x = jnp.asarray(random_images(1, 16, 16, 8))
    stage = TransformerStage(8, heads=2, blocks=2, expansion=2.66, attention="concerto")
    params = stage.init(jax.random.key(0), x)["params"]["blocks"]
    expected = x
    block = TransformerBlock(8, heads=2, expansion=2.66, attention="concerto")
    for index, shifted in enumerate((False, True)):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], params)
        expected = jax.jit(block.apply)({"params": one}, expected, shifted)
    np.testing.assert_allclose(jax.jit(stage.apply)({"params": {"blocks": params}}, x), expected, atol=1e-5)


def test_multiple_holds_the_blocks_of_the_attention():
    assert create("restormer").multiple == 8
    assert create("restormer_csa").multiple == 64


def test_norms_by_hand():
    rng = np.random.default_rng(0)
    x, scale, bias = rng.normal(3, 2, (2, 3, 4, 8)), rng.normal(size=8), rng.normal(size=8)
    deviation = np.sqrt(np.mean((x - x.mean(-1, keepdims=True)) ** 2, -1, keepdims=True) + 1e-5)
    features = jnp.asarray(x, jnp.float32)
    with_bias = layer_norm("norm", bias=True).apply({"params": {"scale": scale, "bias": bias}}, features)
    np.testing.assert_allclose(with_bias, (x - x.mean(-1, keepdims=True)) / deviation * scale + bias, atol=1e-5)
    bias_free = layer_norm("norm", bias=False).apply({"params": {"scale": scale}}, features)
    np.testing.assert_allclose(bias_free, x / deviation * scale, atol=1e-5)


def attended_by_hand(q, k, v, temperature):
    """Of one image and head, [pixels, channels], a loop over the channels that attend."""
    result = np.zeros(v.shape)
    for channel in range(q.shape[1]):
        unit = [part / np.linalg.norm(part, axis=0) for part in (q, k)]
        logits = np.array([temperature * unit[0][:, channel] @ unit[1][:, other] for other in range(q.shape[1])])
        weights = np.exp(logits) / np.exp(logits).sum()
        result[:, channel] = v @ weights
    return result


def test_transposed_attention_by_hand():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 4, 6, 8)).astype(np.float32)
    temperature = jnp.array([0.5, 2.0])
    attended = transposed_attention(*map(jnp.asarray, (q, k, v)), temperature, implementation="reference")
    attended = np.asarray(attended).reshape(2, 24, 8)
    for image in range(2):
        for head, channels in enumerate((slice(0, 4), slice(4, 8))):
            parts = [part[image].reshape(24, 8)[:, channels] for part in (q, k, v)]
            expected = attended_by_hand(*parts, temperature[head])
            np.testing.assert_allclose(attended[image, :, channels], expected, atol=1e-5)


def test_transposed_attention_does_not_know_where_a_pixel_is():
    """Permuted pixels are attended by the same maps, so the result is permuted alike."""
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 4, 6, 8)).astype(np.float32)
    order = np.random.default_rng(1).permutation(24)

    def permuted(x):
        return x.reshape(1, 24, 8)[:, order].reshape(1, 4, 6, 8)

    q, k, v = map(jnp.asarray, (q, k, v))
    expected = permuted(transposed_attention(q, k, v, jnp.ones(2)))
    attended = transposed_attention(*map(permuted, (q, k, v)), jnp.ones(2))
    np.testing.assert_allclose(attended, expected, atol=1e-6)


@pytest.fixture(scope="module")
def params():
    return random_params(tiny_restormer())


@pytest.fixture(scope="module")
def images():
    return random_images(1, 11, 16, 3)


@pytest.fixture(scope="module")
def restored(params, images):
    return jax.jit(tiny_restormer().apply)({"params": params}, images)[0]


def test_any_size_is_padded_by_reflection_and_cut(params, images, restored):
    assert restored.shape == images.shape
    padded = np.pad(images, [(0, 0), (0, 1), (0, 0), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(jax.jit(tiny_restormer().apply)({"params": params}, padded)[0][:, :11], restored)
    shapes = jax.eval_shape(create("restormer").apply, {"params": parameter_shapes(create("restormer"))}, images[:, :1])
    assert [output.shape for output in shapes] == [(1, 1, 16, 3)]


@pytest.mark.long
def test_rematerialisation_changes_nothing(params, images):
    def gradient(module):
        def loss(params):
            return jnp.square(module.apply({"params": params}, images)[0]).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    leaves = [gradient(tiny_restormer(remat=remat)) for remat in (True, False)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_rematerialisation_keeps_less():
    def kept(module):
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(lambda params: module.apply({"params": params}, jnp.zeros((1, 64, 64, 3))), params),
            parameter_shapes(module),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(tiny_restormer(remat=True)) < kept(tiny_restormer()) / 4


def test_bfloat16_is_close_to_float32(params, images, restored):
    (output,) = jax.jit(tiny_restormer(dtype=jnp.bfloat16).apply)({"params": params}, images)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - restored) / np.linalg.norm(restored)
    assert 1e-5 < error < 2e-2


def test_tlc_windows_are_attended_apart(params):
    """A window as large as the picture changes nothing; smaller ones do not see each other through the attention."""
    picture = random_images(1, 64, 32, 3)
    changed = picture.copy()
    changed[:, 48:] = 0

    @functools.cache
    def network(window):
        return jax.jit(tiny_restormer(tlc_window=window).apply)

    def far_from_the_change(images, window):
        return np.asarray(network(window)({"params": params}, images)[0])[:, :8]

    np.testing.assert_allclose(far_from_the_change(picture, 64), far_from_the_change(picture, None), atol=1e-4)
    assert not np.allclose(far_from_the_change(changed, None), far_from_the_change(picture, None), atol=1e-2)
    np.testing.assert_allclose(far_from_the_change(changed, 16), far_from_the_change(picture, 16), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_heads": (3,)}, r"encoder_heads=\(3,\): 3 heads do not divide the 8 channels"),
        ({"decoder_heads": (3,)}, r"decoder_heads=\(3,\): 3 heads do not divide the 16 channels"),
        ({"middle_heads": 0}, "middle_heads=0: 0 heads do not divide the 16 channels"),
        ({"decoder_blocks": (1, 1)}, r"decoder_blocks=\(1, 1\) must have one entry for each of the 1 levels"),
        ({"refinement_blocks": 0}, "refinement_blocks=0 must be at least 1"),
        ({"width": 7}, "width=7 must be even"),
        ({"expansion": 0.1}, "expansion=0.1 times it at least one"),
        ({"attention": "csa"}, "attention='csa' is unknown; choose one of transposed, concerto"),
        ({"attention": "concerto", "encoder_heads": (4,)}, r"encoder_heads=\(4,\): 4 heads do not .* into 4 groups"),
        ({"attention": "concerto", "tlc_window": 24}, "tlc_window=24 must be a positive multiple of 16"),
        ({"tlc_window": 3}, "tlc_window=3 must be a positive multiple of 2"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_restormer(**fields)


def test_fields_of_the_other_network_are_refused():
    with pytest.raises(UserError, match="field 'refinement_blocks' is unknown"):
        create("lite", refinement_blocks=2)
    with pytest.raises(UserError, match="field 'refinement_blocks' must be given"):
        create(None, network="Restormer", **VARIANTS["lite"].fields)
