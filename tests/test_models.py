"""The network: its parameters, the sizes it takes, its numerical variants, and what cannot be built."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import random_images, random_params, tiny_network

from concertormer_jax.models import ABLATIONS, VARIANTS, create, initial_params, parameter_shapes
from concertormer_jax.models.blocks import Stage
from concertormer_jax.models.concerto_attention import CDC_PARAMETERS
from concertormer_jax.ops import concerto
from concertormer_jax.ops.image import downsample
from concertormer_jax.runtime.devices import run_once_options
from concertormer_jax.runtime.errors import UserError


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(module)))


@pytest.mark.parametrize(("variant", "parameters"), [("gopro", 50_535_664), ("lite", 28_985_644), ("sidd", 67_958_144)])
def test_published_parameter_counts(variant, parameters):
    assert count(create(variant)) == VARIANTS[variant].parameters == parameters


def test_parameter_count_of_the_demo_variant():
    assert count(create("demo")) == VARIANTS["demo"].parameters


def convolution(kernel, inputs, outputs, bias=True):
    return {"kernel": (kernel, kernel, inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def blocks(number, width, heads):
    hidden = 2 * width
    channels = hidden // (4 * heads)
    shapes = {
        "norm": {"scale": (width,), "bias": (width,)},
        "attention": {
            "to_q": (width, hidden),
            "to_kv": (width, 2 * hidden),
            "temperature": (4, heads),
            CDC_PARAMETERS["ripieno_spatial"]: (3, 3, heads, heads),
            CDC_PARAMETERS["ripieno_channel"]: (3, 3, heads, heads),
            CDC_PARAMETERS["concertino_channel"]: (heads, 64, 64, heads),
            CDC_PARAMETERS["concertino_spatial"]: (heads, channels, channels, heads),
            "sca_kernel": (hidden, hidden),
            "sca_bias": (hidden,),
        },
        "to_uz": (width, 2 * hidden),
        "dw_u": (3, 3, hidden),
        "project": (hidden, hidden),
        "project_out": (hidden, width),
    }
    return jax.tree.map(lambda shape: (number, *shape), shapes, is_leaf=lambda node: isinstance(node, tuple))


def test_the_parameter_tree_is_an_interface():
    """Checkpoints hold this tree: another name or shape makes those of users unreadable."""
    module = tiny_network(encoder_blocks=(3,), decoder_blocks=(2,), decoder_heads=(2,))
    second_norm = {8: {"scale": (8,), "bias": (8,)}, 16: {"scale": (16,), "bias": (16,)}}
    expected = {
        "intro": convolution(3, 3, 8),
        "encoders_0": {"blocks": blocks(3, width=8, heads=1)},
        "downs_0": convolution(2, 8, 16),
        "intros_0": convolution(3, 3, 16),
        "middle": {"blocks": blocks(1, width=16, heads=2), "norm2": second_norm[16]},
        "endings_0": convolution(3, 16, 3),
        "ups_0": convolution(1, 16, 32, bias=False),
        "decoders_0": {"blocks": blocks(2, width=8, heads=2), "norm2": second_norm[8]},
        "ending": convolution(3, 8, 3),
    }
    shapes = parameter_shapes(module)
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == expected


@pytest.mark.parametrize("setting", [{"dtype": jnp.bfloat16}, {"remat": True}, {"tlc_window": 32}])
def test_parameters_are_float32_and_the_same_under_every_setting(setting):
    assert parameter_shapes(tiny_network(**setting)) == parameter_shapes(tiny_network())
    assert {leaf.dtype for leaf in jax.tree.leaves(parameter_shapes(tiny_network(**setting)))} == {np.dtype("float32")}


@pytest.fixture(scope="module")
def initial():
    """What `initial_params` and `init` of the module draw."""
    module, images = tiny_network(encoder_blocks=(2,)), jnp.zeros((1, 16, 16, 3))
    of_init = jax.jit(lambda key: module.init(key, images)["params"], **run_once_options())(jax.random.key(0))
    return {"initial_params": initial_params(module, 0), "init": of_init}


@pytest.mark.parametrize("drawn_by", ["initial_params", "init"])
def test_initial_values(initial, drawn_by):
    params = initial[drawn_by]
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], params["encoders_0"]["blocks"]) for i in (0, 1))
    middle = jax.tree.map(lambda leaf: leaf[0], params["middle"]["blocks"])
    attention = middle["attention"]
    np.testing.assert_array_equal(attention["temperature"], 1)
    np.testing.assert_array_equal(middle["norm"]["scale"], 1)
    np.testing.assert_array_equal(middle["norm"]["bias"], 0)
    assert not np.array_equal(first["to_uz"], second["to_uz"])
    # Kaiming normal with a = sqrt(5), the fan-in being shape[1] * prod(shape[2:]).
    np.testing.assert_allclose(
        np.std(attention[CDC_PARAMETERS["concertino_channel"]]), (3 * 64 * 64 * 2) ** -0.5, rtol=0.05
    )
    # PyTorch's default of convolutions: uniform within 1 / sqrt(fan-in), that of a bias being its kernel's.
    for value, fan_in in (
        (attention["to_q"], 16),
        (middle["project"], 32),
        (attention["sca_bias"], 32),
        (attention[CDC_PARAMETERS["ripieno_spatial"]], 9 * 2),
        (middle["dw_u"], 9),
        (params["intros_0"]["kernel"], 27),
        (params["intros_0"]["bias"], 27),
        (params["ups_0"]["kernel"], 16),
    ):
        largest = np.abs(value).max() * fan_in**0.5
        assert 0.8 < largest <= 1


def test_initial_params_has_the_arrays_of_init(initial):
    drawn, of_init = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in initial.values())
    assert drawn == of_init


@pytest.mark.parametrize("name", [*VARIANTS, *ABLATIONS])
def test_every_initial_value_of_every_network_is_drawn(name):
    params = initial_params(create(name), 0)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, parameter_shapes(create(name)))
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        constant = path[-1].key in ("scale", "temperature") or "norm" in path[-2].key
        assert (np.ptp(value) == 0) == (constant or value.size == 1), jax.tree_util.keystr(path)


def test_a_seed_gives_the_same_initial_values():
    first, same, other = (initial_params(tiny_network(), seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert not np.array_equal(first["intro"]["kernel"], other["intro"]["kernel"])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("keys", [False, True])
def test_a_stage_of_one_block_computes_what_a_loop_over_it_does(remat, keys, monkeypatch):
    stage = Stage(8, 2, 1, 2, remat=remat)
    x, y = np.random.default_rng(2).normal(size=(2, 1, 16, 24, 8)).astype(np.float32)
    given = (x, y) if keys else (x,)
    shapes = jax.eval_shape(stage.init, jax.random.key(0), *given)
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)

    def squares(variables, *given):
        return jnp.square(stage.apply(variables, *given)).sum()

    def value_and_gradients():
        return jax.jit(jax.value_and_grad(squares, argnums=tuple(range(1 + len(given)))))(variables, *given)

    alone = value_and_gradients()
    monkeypatch.setattr(Stage, "_stores", lambda _: True)
    in_loop = value_and_gradients()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), alone, in_loop)


def test_equal_stages_are_traced_once(monkeypatch):
    heads = {"encoder_heads": (1, 2), "middle_heads": 4, "decoder_heads": (2, 1)}
    module = tiny_network(width=12, encoder_blocks=(1, 2), decoder_blocks=(2, 1), **heads)  # in no other test
    params, traced = parameter_shapes(module), []
    monkeypatch.setattr("concertormer_jax.models.blocks.gated_mlp", lambda x, *_, **__: (traced.append(x.shape), x)[1])
    jax.eval_shape(module.apply, {"params": params}, jnp.zeros((1, 32, 32, 3)))
    encoders, middle, last_decoder = [(1, 32, 32, 12), (1, 16, 16, 24)], (1, 8, 8, 48), (1, 32, 32, 12)
    assert traced == [*encoders, middle, last_decoder]


def test_no_attention_is_traced_for_initial_values(monkeypatch):
    monkeypatch.setattr(concerto, "concerto_attention", None)
    module = tiny_network(expansion=3)  # in no other test, so that its attention has not been traced
    assert parameter_shapes(module)
    with pytest.raises(TypeError, match="NoneType"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


@pytest.fixture(scope="module")
def params():
    return random_params(tiny_network())


@pytest.fixture(scope="module")
def images():
    return random_images(2, 16, 32, 3)


@pytest.fixture(scope="module")
def outputs(params, images):
    return jax.jit(tiny_network().apply)({"params": params}, images)


def assert_all_close(outputs, expected, atol):
    for output, array in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, array, atol=atol)


def test_outputs_are_coarsest_first_and_the_coarse_ones_padded():
    module = create("demo")
    shapes = jax.eval_shape(module.apply, {"params": parameter_shapes(module)}, jnp.zeros((2, 100, 75, 3)))
    assert [output.shape for output in shapes] == [(2, 16, 16, 3), (2, 32, 32, 3), (2, 64, 64, 3), (2, 100, 75, 3)]


def test_unshuffled_pictures_come_back_in_their_places():
    """With no kernel in its endings a network adds a bias to each of the 2x2 pixels of a position, at every scale."""
    module = tiny_network(unshuffle=2)
    assert module.multiple == 32
    params = random_params(module)
    assert params["intro"]["kernel"].shape == (3, 3, 12, 8)
    for ending in ("endings_0", "ending"):
        params[ending]["kernel"] *= 0
    images = random_images(1, 32, 64, 3)
    coarse, restored = jax.jit(module.apply)({"params": params}, images)
    for output, picture, name in ((restored, images, "ending"), (coarse, downsample(images, 2), "endings_0")):
        bias = params[name]["bias"].reshape(3, 2, 2).transpose(1, 2, 0)  # channel = c * 4 + dy * 2 + dx
        rows, columns = np.indices(output.shape[1:3])
        np.testing.assert_allclose(output[0] - picture[0], bias[rows % 2, columns % 2], atol=1e-6)


def test_any_size(params):
    """(The values at a size that is padded: see test_golden.py.)"""
    restored = jax.jit(tiny_network().apply)({"params": params}, random_images(1, 1, 1, 3))[-1]
    assert restored.shape == (1, 1, 1, 3)
    assert np.isfinite(restored).all()
    outputs = jax.eval_shape(tiny_network().apply, {"params": params}, jnp.zeros((1, 37, 53, 3)))
    assert [output.shape for output in outputs] == [(1, 24, 32, 3), (1, 37, 53, 3)]


def test_images_of_a_batch_do_not_mix(params, images, outputs):
    apply = jax.jit(tiny_network().apply)
    for index in range(2):
        alone = apply({"params": params}, images[index : index + 1])
        assert_all_close([output[index : index + 1] for output in outputs], alone, atol=1e-5)


def compiled_stage(remat, keys):
    """The value and the gradients of a stage of three blocks, compiled, and what it takes; `keys`: also features y."""
    stage = Stage(8, heads=2, blocks=3, expansion=2, remat=remat)
    given = random_images(2 if keys else 1, 1, 16, 16, 8)
    shapes = jax.eval_shape(stage.init, jax.random.key(0), *given)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), shapes)

    def squares(*taken):
        return jnp.square(stage.apply(*taken)).sum()

    taken = variables, *given
    return jax.jit(jax.value_and_grad(squares, argnums=range(len(taken)))).lower(*taken).compile(), taken


@pytest.mark.parametrize("keys", [False, True])
def test_rematerialisation_changes_nothing(keys):
    """On one stage: the network hands the setting to its stages, as the next test shows."""
    results = []
    for remat in (True, False):
        compiled, taken = compiled_stage(remat, keys)
        results.append(jax.tree.leaves(compiled(*taken)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


def test_both_loops_of_rematerialisation_find_parameters_by_their_counter_alone():
    """So that a kernel that takes some of a block's parameters is compiled once for both."""
    compiled, _ = compiled_stage(remat=True, keys=True)
    kernels = re.findall(r"^%fused_computation.*?^}", compiled.as_text(), re.MULTILINE | re.DOTALL)
    choosing = [kernel for kernel in kernels if "dynamic-slice(" in kernel]
    assert choosing
    assert not [kernel for kernel in choosing if re.search(r"s32\[\] (subtract|multiply)\(", kernel)]


def test_rematerialisation_keeps_less():
    module, images = tiny_network(), jnp.zeros((1, 64, 64, 3))

    def kept(module):
        _, backward = jax.eval_shape(
            lambda params: jax.vjp(lambda params: module.apply({"params": params}, images), params),
            parameter_shapes(module),
        )
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(module.clone(remat=True)) < kept(module) / 4


def test_bfloat16_is_close_to_float32(params, images, outputs):
    module = tiny_network(dtype=jnp.bfloat16)
    for output, expected in zip(jax.jit(module.apply)({"params": params}, images), outputs, strict=True):
        assert output.dtype == jnp.float32
        error = np.linalg.norm(output - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 2e-2


def test_bfloat16_is_the_type_of_all_feature_maps(params, images):
    module = tiny_network(dtype=jnp.bfloat16)
    apply = partial(module.apply, capture_intermediates=True, mutable=["intermediates"])
    _, state = jax.eval_shape(apply, {"params": params}, images)
    types = {name: layer["__call__"][0].dtype for name, layer in state["intermediates"].items() if name != "__call__"}
    assert {"intro", "encoders_0", "downs_0", "middle", "ups_0", "decoders_0", "ending"} <= types.keys()
    assert set(types.values()) == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_keeps_norms_and_softmax_in_float32(params, images):
    program = str(jax.make_jaxpr(tiny_network(dtype=jnp.bfloat16).apply)({"params": params}, images))
    types = {name: set(re.findall(rf":(\w+)\[[\d,]*\] = {name}\b", program)) for name in ("exp", "rsqrt")}
    assert types == {"exp": {"f32"}, "rsqrt": {"f32"}}


def test_an_unknown_variant_is_refused_with_the_names():
    with pytest.raises(UserError, match="variant 'large' is unknown; choose one of gopro, lite, sidd, demo"):
        create("large")


def test_an_unknown_field_is_refused_with_the_names():
    with pytest.raises(UserError, match=r"field 'heads' is unknown; choose one of .*middle_heads"):
        create("lite", heads=2)


def test_without_a_variant_every_field_of_the_size_is_needed():
    with pytest.raises(UserError, match="field 'middle_heads' must be given"):
        create(
            None,
            width=8,
            encoder_blocks=(1,),
            middle_blocks=1,
            decoder_blocks=(1,),
            encoder_heads=(1,),
            decoder_heads=(1,),
        )


def test_a_field_of_a_variant_can_be_overridden():
    assert create("lite", width=16, remat=True).width == 16
    assert create("lite").width == 48


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_heads": (3,)}, r"encoder_heads=\(3,\): 3 heads do not divide the 16 hidden channels"),
        ({"decoder_heads": (0,)}, r"decoder_heads=\(0,\): 0 heads do not divide the 16 hidden channels"),
        ({"middle_heads": 16}, "middle_heads=16: 16 heads do not divide the 32 hidden channels"),
        ({"decoder_blocks": (1, 1)}, r"decoder_blocks=\(1, 1\) must have one entry for each of the 1 levels"),
        ({"encoder_heads": ()}, r"encoder_heads=\(\) must have one entry for each of the 1 levels"),
        ({"encoder_blocks": (0,)}, r"encoder_blocks=\(0,\) must be at least 1"),
        ({"middle_blocks": 0}, "middle_blocks=0 must be at least 1"),
        ({"width": 0}, "width=0 must be at least 1"),
        ({"unshuffle": 0}, "unshuffle=0 must be at least 1"),
        ({"unshuffle": 2, "tlc_window": 16}, "tlc_window=16 must be a positive multiple of 32"),
        ({"tlc_window": 24}, "tlc_window=24 must be a positive multiple of 16"),
        ({"tlc_window": 0}, "tlc_window=0 must be a positive multiple of 16"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_network(**fields)


def test_decoder_heads_are_from_the_deepest_level_up():
    sizes = {"encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "encoder_heads": (1, 1)}
    tiny_network(**sizes, decoder_heads=(8, 4))
    with pytest.raises(ValueError, match="8 heads do not divide the 16"):
        tiny_network(**sizes, decoder_heads=(4, 8))


@pytest.mark.parametrize("shape", [(16, 16, 3), (1, 16, 16, 4)])
def test_images_of_another_shape_are_refused(params, shape):
    with pytest.raises(ValueError, match=rf"images of shape {re.escape(str(shape))} must be \[B, H, W, 3\]"):
        jax.eval_shape(tiny_network().apply, {"params": params}, jnp.zeros(shape))
