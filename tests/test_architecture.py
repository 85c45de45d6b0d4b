"""What a network is made of: what the forms see, how their cost grows, how features enter, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import random_images, random_params, tiny_network

from concertormer_jax.models import ABLATIONS, Architecture, costs, create, parameter_shapes, settings_of, variant_name
from concertormer_jax.models.blocks import Stage
from concertormer_jax.ops.concerto import GROUPS
from concertormer_jax.ops.dispatch import traced_for
from concertormer_jax.runtime.errors import UserError

BARE = {"communication": "none", "sca": False}


def block_output(architecture, blocks=1):
    """A function of [1, H, W, 6], a stage of equal blocks, jitted."""
    stage = Stage(6, 1, blocks, 2, architecture)
    shapes = jax.eval_shape(stage.init, jax.random.key(0), jnp.zeros((1, 8, 8, 6)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(scale=0.5, size=leaf.shape).astype(np.float32), shapes)
    return jax.jit(lambda x: stage.apply(params, x))


def reached(function, height, width, pixel):
    """Which pixels of the output change with `pixel` of the input: booleans [height, width]."""
    x = np.random.default_rng(1).normal(size=(1, height, width, 6)).astype(np.float32)
    changed = x.copy()
    changed[0, *pixel, 0] += 1
    return np.abs(function(changed) - function(x)).max(axis=(0, 3)) > 1e-6


def rectangles(height, width, *ranges):
    expected = np.zeros((height, width), bool)
    for top, bottom, left, right in ranges:
        expected[top:bottom, left:right] = True
    return expected


@pytest.mark.parametrize("group", ["window", "ripieno_spatial", "ripieno_channel"])
def test_one_stage_sees_a_window_and_the_neighbours_of_a_pixel(group):
    """The attention reaches the pixel's block; the depthwise convolution, beside it, one pixel further around it."""
    function = block_output(Architecture(groups=(group,), block_px=4, **BARE))
    expected = rectangles(12, 12, (4, 8, 4, 8), (6, 9, 6, 9))
    np.testing.assert_array_equal(reached(function, 12, 12, (7, 7)), expected)


def test_two_stages_see_the_neighbours_of_a_window():
    """The depthwise convolution comes after the attention: it reaches one pixel further around the whole block."""
    function = block_output(Architecture(groups=("window",), block_px=4, two_stage=True, **BARE))
    np.testing.assert_array_equal(reached(function, 12, 12, (5, 5)), rectangles(12, 12, (3, 9, 3, 9)))


@pytest.mark.parametrize(("shift", "sides"), [(True, (2, 10)), (False, (3, 9))])
def test_a_second_block_sees_over_the_border_of_a_window_when_it_is_shifted(shift, sides):
    """The first reaches 4 to 8, the pixel's window; of that, the second's windows, from 2, 6, 10 or from 4, 8, 12.

    Around 4 to 8 the second's depthwise convolution reaches one pixel further.
    """
    architecture = Architecture(groups=("window",), block_px=4, shift=shift, **BARE)
    np.testing.assert_array_equal(reached(block_output(architecture), 16, 16, (5, 5)), rectangles(16, 16, (4, 8, 4, 8)))
    np.testing.assert_array_equal(
        reached(block_output(architecture, blocks=2), 16, 16, (5, 5)), rectangles(16, 16, (*sides, *sides))
    )


def test_without_attention_a_block_sees_the_neighbours_of_a_pixel():
    function = block_output(Architecture(groups=(), skip="sum"))
    np.testing.assert_array_equal(reached(function, 12, 12, (5, 5)), rectangles(12, 12, (4, 7, 4, 7)))


@pytest.mark.parametrize("group", GROUPS)
def test_products_of_every_group_grow_linearly_in_the_number_of_pixels(group):
    """Those of the program: what a further pixel costs does not depend on how many there are."""
    stage = Stage(8, 2, 1, 2, Architecture(groups=(group,), communication="none"))
    shapes = jax.eval_shape(stage.init, jax.random.key(0), jnp.zeros((1, 16, 16, 8)))

    def flops(size):
        images = jax.ShapeDtypeStruct((1, size, size, 8), jnp.float32)
        with traced_for("gpu"):  # a CPU takes products for some sums
            return costs.flops(jax.jit(stage.apply).trace(shapes, images).jaxpr)

    small, medium, large = map(flops, (16, 32, 64))
    assert large - medium == 4 * (medium - small) > 0


def names_of(**settings):
    return set(parameter_shapes(tiny_network(**settings)))


def test_parameters_follow_how_features_enter():
    stages = {"encoders_0", "middle", "decoders_0"}
    convolutions = {"intro", "downs_0", "intros_0", "endings_0", "ups_0", "ending"}
    assert names_of() == names_of(skip="sum") == stages | convolutions
    assert names_of(skip="concatenation") == stages | convolutions | {"merges_0"}
    assert names_of(multiscale_input=False) == stages | convolutions - {"intros_0"}
    without_attention = parameter_shapes(tiny_network(groups=(), skip="sum"))
    assert set(without_attention["decoders_0"]["blocks"]) == {"norm", "to_uz", "dw_u", "project_out"}
    for settings, crossing in (
        ({}, {"middle", "decoders_0"}),
        ({"skip": "sum"}, {"middle"}),
        ({"multiscale_input": False}, {"decoders_0"}),
        ({"groups": (), "skip": "sum"}, set()),
    ):
        shapes = parameter_shapes(tiny_network(**settings))
        assert {stage for stage in stages if "norm2" in shapes[stage]} == crossing


@pytest.mark.parametrize("skip", ["cross_attention", "sum", "concatenation"])
def test_the_encoder_reaches_the_decoder_by_the_skip_connection(skip):
    """The way down and up is cut: what the first convolution gives enters the decoder by the skip alone."""
    groups = ("window",) if skip == "cross_attention" else ()
    module = tiny_network(groups=groups, skip=skip, multiscale_input=False, sca=False)
    params = random_params(module)
    params["downs_0"] = jax.tree.map(np.zeros_like, params["downs_0"])
    images = random_images(1, 16, 16, 3)

    @jax.jit
    def learned(params):
        return module.apply({"params": params}, images)[-1] - images

    other = params | {"intro": jax.tree.map(lambda leaf: leaf * 2, params["intro"])}
    assert np.abs(learned(params) - learned(other)).max() > 1e-3


def test_a_coarser_picture_enters_without_attention_too():
    module = tiny_network(groups=(), skip="sum")
    params = random_params(module)
    other = params | {"intros_0": jax.tree.map(lambda leaf: leaf * 2, params["intros_0"])}
    images = random_images(1, 16, 16, 3)
    apply = jax.jit(module.apply)
    coarse = [apply({"params": p}, images)[0] for p in (params, other)]
    assert np.abs(coarse[0] - coarse[1]).max() > 1e-3


@pytest.mark.parametrize("block_px", [4, 16])
def test_the_padding_follows_the_block(block_px):
    module = create("lite", block_px=block_px)
    assert module.multiple == 8 * block_px
    assert create("lite", block_px=block_px, tlc_window=8 * block_px).tlc_window == 8 * block_px
    with pytest.raises(ValueError, match=f"multiple of {8 * block_px} pixels, so that blocks of {block_px}x{block_px}"):
        create("lite", block_px=block_px, tlc_window=12 * block_px)


def test_full_is_lite():
    """The same module: with the same parameters the same program, and so the same bits."""
    assert create("full") == create("lite")
    assert variant_name(create("full")) == "lite"


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "full"])
def test_every_ablation_is_a_form_of_its_own(name):
    module = create(name)
    assert variant_name(module) == name
    assert create(None, **settings_of(module)) == module


def test_a_network_without_a_name_is_custom():
    assert variant_name(create("gdmlp", width=16)) == variant_name(create("gopro", sca=False)) == "custom"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": ("transpose",)}, "groups: 'transpose' is unknown; choose from ripieno_spatial"),
        ({"groups": ("window", "window")}, "must not name a group twice"),
        ({"communication": "some"}, "communication='some' is unknown; choose one of both, spatial, channel, none"),
        ({"block_px": 7}, "block_px=7 must be a positive even number of pixels"),
        ({"block_px": 0}, "block_px=0 must be a positive even number of pixels"),
        ({"skip": "add"}, "skip='add' is unknown; choose one of cross_attention, sum, concatenation"),
        ({"groups": ()}, "skip='cross_attention' needs attention"),
        ({"groups": (), "skip": "sum", "two_stage": True}, "two_stage=True needs attention"),
        ({"groups": GROUPS[:3]}, "1 heads do not divide the 16 hidden channels of their level into 3 groups"),
    ],
)
def test_a_design_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_network(**fields)


def test_the_names_of_ablations_are_in_the_error():
    with pytest.raises(UserError, match=r"'gdmpl' is unknown; choose one of gopro, .*gdmlp, spatial_ripieno"):
        create("gdmpl")
