"""Every form of the operations against the reference: values and all derivatives, on maps of 8x8 to 24x16 pixels.

The forms for a GPU and a TPU run on the CPU. Also where logits are beyond what an exponential can hold.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.models import ConcertoSelfAttention, create
from concertormer_jax.models.blocks import Stage
from concertormer_jax.models.concerto_attention import CDC_PARAMETERS
from concertormer_jax.models.restormer import TransformerStage
from concertormer_jax.ops import concerto, layers, reference
from concertormer_jax.ops.blocks import Grid
from concertormer_jax.ops.cpu import concerto as cpu
from concertormer_jax.ops.cpu.cdc import over_grid
from concertormer_jax.ops.dispatch import IMPLEMENTATIONS, form, own_form, traced_for
from concertormer_jax.ops.gpu import concerto as gpu
from concertormer_jax.ops.shared import taps
from concertormer_jax.ops.shared.attention import logits
from concertormer_jax.ops.shared.cdc import cdc_of
from concertormer_jax.ops.tpu import concerto as tpu

FAST = IMPLEMENTATIONS[1:]
CONCERTO = concerto.CONCERTO
RIPIENO, CONCERTINO = CONCERTO[:2], CONCERTO[2:]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}  # of the largest number

every_form = pytest.mark.parametrize("implementation", FAST)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def random_parameters(module, *inputs, scale=0.5):
    """Normal numbers in the shapes of the module's parameters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=scale, size=leaf.shape).astype(np.float32), shapes)


def random_arrays(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def value_and_gradients(function, arguments, goal_scale=1.0):
    """Of function(*arguments), and of its product with random numbers by all arguments."""

    def weighed(arguments):
        result = function(*arguments).astype(jnp.float32)
        goal = goal_scale * jax.random.normal(jax.random.key(2), (*result.shape[:-1], 1))
        return jnp.sum(goal * result), result

    (_, value), gradients = jax.jit(jax.value_and_grad(weighed, has_aux=True))(arguments)
    return jax.device_get({"value": value, "gradients": gradients})


def assert_same(ours, expected, tolerance, cancelling=()):
    """cancelling: arrays whose derivative is what rounding leaves of a sum that cancels, and need be finite only."""
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(expected))

    def same(path, ours, expected):
        scale = np.abs(np.asarray(expected, np.float64)).max()
        error = np.abs(np.asarray(ours, np.float64) - np.asarray(expected, np.float64)).max() / scale
        name = jax.tree_util.keystr(path)
        assert np.isfinite(error), name
        assert error < tolerance or any(f"'{one}'" in name for one in cancelling), f"{name}: {error}"

    jax.tree_util.tree_map_with_path(same, ours, expected)


def results_of(module, params, features, goal_scale=1.0, **settings):
    """`value_and_gradients` of a module by its parameters and features."""

    def apply(params, *features):
        return module.apply({"params": params}, *features, **settings)

    return value_and_gradients(apply, (params, *features), goal_scale)


def case(size, groups=CONCERTO, channels=2, cross=False, shifted=True, **fields):
    """An attention with `channels` in every head, and what it is called with."""
    module = ConcertoSelfAttention(len(groups) * fields.get("heads", 1) * channels, groups=groups, **fields)
    return module, size, cross, shifted


CASES = {
    "all_cross": case((8, 12), heads=2, block_px=4, cross=True),
    "all_unshifted_tlc": case((8, 12), block_px=4, tlc_window=8, shifted=False),
    "all_bfloat16": case((8, 16), heads=2, block_px=4, dtype=jnp.bfloat16),
    "ripieno": case((24, 16), RIPIENO),
    "eight_heads_unshifted": case((8, 8), RIPIENO[:1], heads=8, block_px=4, shifted=False),
    "large_block_without_cdc": case((16, 16), RIPIENO[:1], block_px=16, communication="none"),
    "channel_cdc_without_sca": case((8, 8), CONCERTO[::2], block_px=4, communication="channel", sca=False, cross=True),
    "without_cdc": case((8, 12), CONCERTO[1:], block_px=4, communication="none", shifted=False),
    "more_blocks_than_positions": case((24, 16), CONCERTO[3:], block_px=4),
    "fewer_blocks_than_channels": case((8, 16), CONCERTO[2:3], channels=4),
    "fewer_positions_than_channels": case((16, 16), CONCERTO[:2], channels=20, block_px=4),
    "tlc_of_shifted_blocks": case((8, 12), CONCERTO[::3], block_px=4, tlc_window=8),
    "bfloat16_cross_tlc": case((16, 8), CONCERTINO, heads=8, block_px=4, dtype=jnp.bfloat16, tlc_window=8, cross=True),
    "other_networks": case((8, 12), (concerto.WINDOW, concerto.TRANSPOSED), heads=2, block_px=4, cross=True),
}


@functools.cache
def results_of_case(name, implementation):
    module, size, cross, shifted = CASES[name]
    features = random_arrays((2, *size, 5), (2, *size, 3))[: 1 + cross]
    shifted = shifted and jnp.array(True)  # as a scanned stage gives it: traced, or never
    params = random_parameters(module, *features)
    return results_of(module.clone(implementation=implementation), params, features, shifted=shifted)


@every_form
@pytest.mark.parametrize("name", CASES)
def test_attention(monkeypatch, name, implementation):
    monkeypatch.setattr("concertormer_jax.ops.cpu.concerto.LARGE", 1)  # a CPU takes large groups in halves
    tolerance = TOLERANCE[jnp.dtype(CASES[name][0].dtype).name]
    assert_same(results_of_case(name, implementation), results_of_case(name, "reference"), tolerance)


STAGES = {
    "second_block": (Stage(4, 1, 2, 2), [(1, 8, 16, 4)]),  # shifted
    "cross_block": (Stage(4, 1, 1, 2), [(1, 8, 16, 4)] * 2),
    "restormer": (TransformerStage(4, 2, 1, 2.0, tlc_window=8), [(1, 8, 12, 4)]),
}


@functools.cache
def results_of_stage(name, implementation):
    stage, shapes = STAGES[name]
    features = random_arrays(*shapes)
    return results_of(stage.clone(implementation=implementation), random_parameters(stage, *features), features)


@every_form
@pytest.mark.parametrize("name", STAGES)
def test_blocks_of_a_network(name, implementation):
    assert_same(results_of_stage(name, implementation), results_of_stage(name, "reference"), tolerance=1e-3)


def gated_mlp(residual, x, attended, *kernels, **form):
    return layers.gated_mlp(residual, x, attended, reference.MLPWeights(*kernels), **form)


def mlp_alone(residual, x, to_uz, depthwise, to_output, **form):
    return layers.gated_mlp(residual, x, None, reference.MLPWeights(to_uz, depthwise, None, to_output), **form)


def mean_of_windows(x, y, **form):
    def function(x, y):
        return jnp.square(x.mean(axis=(1, 2), keepdims=True)) * y

    return layers.on_windows(function, (x, y), 8, **form)


def shapes_of_mlp(rows):
    return [(2, rows, 5, 3), (2, rows, 5, 3), (2, rows, 5, 6), (3, 12), (3, 3, 6), (6, 6), (6, 3)]


OPERATIONS = {
    "gated_mlp_16": (gated_mlp, shapes_of_mlp(16)),  # a CPU takes one strip of 16 rows
    "gated_mlp_40": (gated_mlp, shapes_of_mlp(40)),  # strips of 10 rows
    "gated_mlp_7": (gated_mlp, shapes_of_mlp(7)),
    "gated_mlp_17": (gated_mlp, shapes_of_mlp(17)),  # strips of one row
    "mlp_alone": (mlp_alone, [(2, 24, 5, 3), (2, 24, 5, 3), (3, 12), (3, 3, 6), (6, 3)]),
    "windows": (mean_of_windows, [(2, 11, 14, 3), (2, 11, 14, 3)]),
    "one_window": (mean_of_windows, [(2, 5, 7, 3), (2, 5, 7, 3)]),
    "to_picture": (layers.convolve_to_few, [(2, 5, 7, 6), (3, 3, 6, 3)]),
    "one_pixel": (layers.convolve_to_few, [(1, 1, 1, 6), (3, 3, 6, 3)]),
    "depthwise": (layers.depthwise_3x3, [(2, 5, 7, 6), (3, 3, 6)]),
    "transposed_attention": (concerto.transposed_attention, [(2, 4, 6, 6)] * 3 + [(2,)]),
}


@every_form
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name, implementation):
    function, shapes = OPERATIONS[name]
    arrays = random_arrays(*shapes)
    ours, plain = (functools.partial(function, implementation=one) for one in (implementation, "reference"))
    expected = value_and_gradients(plain, arrays)
    assert_same(value_and_gradients(ours, arrays), expected, tolerance=1e-4)
    assert_same(jax.jit(ours)(*arrays), expected["value"], tolerance=1e-4)  # it may be another program


def test_the_reference_derives_forwards_too():
    x = jnp.asarray(random_arrays((1, 4, 4, 4))[0])
    module = ConcertoSelfAttention(4, block_px=4, implementation="reference")
    params = random_parameters(module, x)

    def attend(x):
        return module.apply({"params": params}, x, shifted=True).sum()

    _, along = jax.jit(lambda x: jax.jvp(attend, (x,), (x,)))(x)
    np.testing.assert_allclose(along, jnp.sum(x * jax.grad(attend)(x)), rtol=1e-3)


# Logits beyond what an exponential can hold.


def alike(module, features, temperature, cdc):
    """Parameters under which all cosines are near 1, so that all logits are about `temperature` times `cdc`.

    cdc: what every map is multiplied by in its communication.
    """
    params = jax.tree.map(np.abs, random_parameters(module, *features, scale=0.3))
    params["temperature"] = np.full_like(params["temperature"], temperature)
    for name in set(CDC_PARAMETERS.values()) & params.keys():
        kernel = 0.01 * random_parameters(module, *features)[name]
        if kernel.shape[:2] == (3, 3):
            kernel[1, 1] += np.eye(module.heads)
        else:
            kernel += np.eye(module.heads * kernel.shape[1]).reshape(kernel.shape)
        params[name] = cdc * kernel
    return params


def assert_forms_are_the_reference(module, params, features, tolerance, shifted, goal_scale=1.0, cancelling=()):
    expected = results_of(module.clone(implementation="reference"), params, features, goal_scale, shifted=shifted)
    for implementation in FAST:
        ours = results_of(module.clone(implementation=implementation), params, features, goal_scale, shifted=shifted)
        assert_same(ours, expected, tolerance, cancelling)


@pytest.mark.parametrize(
    ("communication", "temperature", "cdc", "dtype"),
    [
        ("both", 2, 100, "float32"),
        ("both", 1, -200, "float32"),
        ("none", 300, 0, "bfloat16"),
        ("none", -300, 0, "float16"),
    ],
)
def test_logits_beyond_an_exponential_are_those_of_a_softmax_with_its_maximum(communication, temperature, cdc, dtype):
    """All of a row are large, or all are very negative; some are masked. Without a maximum: 0 / 0 or inf / inf."""
    groups = CONCERTO if communication == "both" else (*CONCERTINO, concerto.TRANSPOSED)
    module = ConcertoSelfAttention(4 * len(groups), 2, groups, communication, block_px=4, dtype=jnp.dtype(dtype))
    features = tuple(map(np.abs, random_arrays((1, 8, 8, 5))))
    # At such logits a step of float16 or bfloat16 in a query moves a logit by much.
    tolerance = {"float32": 2e-3, "bfloat16": 0.1, "float16": 0.05}[dtype]
    params = alike(module, features, temperature, cdc)
    assert_forms_are_the_reference(module, params, features, tolerance, jnp.array(True), cancelling=["temperature"])


@pytest.mark.parametrize("temperature", [-75, 75])
def test_derivatives_do_not_sink_below_what_a_number_can_hold(temperature):
    """The derivatives are divided by the sum of the exponentials, which may be large."""
    module = ConcertoSelfAttention(8, 1, ("ripieno_spatial",), "none", sca=False, block_px=4)
    features = tuple(map(np.abs, random_arrays((1, 4, 8, 5))))
    params = alike(module, features, temperature, 0)
    assert_forms_are_the_reference(
        module, params, features, 1e-3, shifted=False, goal_scale=1e-7, cancelling=["temperature"]
    )


def test_large_logits_of_both_signs():
    """Here the derivative by the temperature does not cancel."""
    module = ConcertoSelfAttention(8, 1, block_px=4)
    features = random_arrays((1, 8, 8, 5))
    params = random_parameters(module, *features)
    params["temperature"] = np.full_like(params["temperature"], 60)
    assert_forms_are_the_reference(module, params, features, 2e-3, shifted=jnp.array(True))


@every_form
@pytest.mark.parametrize("temperature", [-50.0, 500.0])
def test_restormers_attention_beyond_an_exponential(temperature, implementation):
    arrays = (*map(np.abs, random_arrays(*[(1, 4, 4, 6)] * 3)), np.full(2, temperature, np.float32))
    ours, expected = (
        value_and_gradients(functools.partial(concerto.transposed_attention, implementation=one), arrays)
        for one in (implementation, "reference")
    )
    # In float32 a logit of 500 is rounded by 3e-5, and the derivative by the temperature is what is left of a sum that
    # cancels: the reference itself is 6e-4 away from float64.
    assert_same(ours, expected, tolerance=2e-3)


@pytest.mark.parametrize(("columns", "heads", "is_product"), [(1, 2, True), (8, 3, True), (9, 2, False), (4, 1, False)])
def test_on_a_cpu_the_communication_between_blocks_is_a_convolution(columns, heads, is_product):
    maps, kernel = random_arrays((2, 3, columns, heads, 2, 5), (3, 3, heads, heads))

    def convolved(maps, kernel):
        images = jnp.moveaxis(maps.reshape(*maps.shape[:4], -1), -1, 1).reshape(-1, *maps.shape[1:4])
        result = reference.conv3x3(images, kernel)
        return jnp.moveaxis(result.reshape(2, 10, *maps.shape[1:4]), 1, -1).reshape(maps.shape)

    def ours(maps, kernel):
        blocks = maps.reshape(2, -1, *maps.shape[3:])
        return taps.cdc_over_blocks(Grid(3, columns, 4), blocks, kernel, over_grid).reshape(maps.shape)

    assert_same(*(value_and_gradients(form, (maps, kernel)) for form in (ours, convolved)), tolerance=1e-5)
    assert ("products_over_grid" in str(jax.make_jaxpr(over_grid)(maps, kernel))) == is_product


@every_form
def test_no_logit_exceeds_its_bound_and_one_can_reach_it(implementation):
    """Where all cosines are 1 and no weight is negative, the largest logit after CDC is the bound."""
    temperature = jnp.array([[0.5], [2.0]])
    grid = Grid(3, 3, 4)
    over_blocks = functools.partial((tpu if implementation == "tpu" else taps).cdc_over_blocks, grid)
    for group, shape, maps in (
        ("ripieno_spatial", (3, 3, 2, 2), jnp.broadcast_to(temperature[..., None], (1, 9, 2, 16, 16))),
        ("ripieno_channel", (3, 3, 2, 2), jnp.broadcast_to(temperature[..., None], (1, 9, 2, 3, 3))),
        ("concertino_channel", (2, 16, 16, 2), jnp.broadcast_to(temperature[..., None], (1, 16, 2, 3, 3))),
        ("concertino_spatial", (2, 3, 3, 2), jnp.repeat(temperature, 3, 0)[None, :, :, None] * jnp.ones((16, 16))),
    ):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        function, _, bound = cdc_of(group, CONCERTO, kernel, temperature, over_blocks)
        np.testing.assert_allclose(function(maps, jnp.abs(kernel)).max(), bound, rtol=1e-5)
        assert jnp.abs(function(maps, kernel)).max() < bound


@every_form
def test_zero_features_have_finite_results_and_derivatives(implementation):
    module = ConcertoSelfAttention(8, 2, block_px=4, communication="none", sca=False, implementation=implementation)
    features = np.zeros((1, 4, 8, 5), np.float32)
    results = results_of(module, random_parameters(module, features), (features,))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(results))
    assert not np.any(results["value"])


# In bfloat16 a sum of ones, added one by one, would stop at 256.


@pytest.mark.parametrize("kind", [cpu.SPATIAL, gpu.SPATIAL, tpu.SPATIAL], ids=FAST)
def test_sums_and_logits_of_bfloat16_are_float32(kind):
    ones = jnp.ones((1, 1024, 1000), jnp.bfloat16)
    sums = kind.arithmetic.sum_over(ones, -1), kind.arithmetic.sum_over(ones, -2), kind.arithmetic.sum_weights(ones)
    for result, expected in zip(sums, (1000, 1024, 1000), strict=True):
        assert result.dtype == jnp.float32
        assert (result == expected).all()
    q, k = jax.random.normal(jax.random.key(0), (2, 6, 200), jnp.bfloat16)
    wide_q, wide_k = np.float64([q, k])
    norms = np.linalg.norm(wide_q, axis=-1)[:, None] * np.linalg.norm(wide_k, axis=-1)
    np.testing.assert_allclose(logits(kind, q, k, jnp.ones(1)), wide_q @ wide_k.T / norms, atol=1e-5)


@every_implementation
def test_depthwise_kernel_gradient_of_bfloat16_is_added_in_float32(implementation):
    features = jnp.ones((1, 64, 64, 1), jnp.bfloat16)

    def total(kernel):
        convolved = layers.depthwise_3x3(features, kernel, implementation=implementation)
        return convolved.astype(jnp.float32).sum()

    gradient = jax.grad(total)(jnp.zeros((3, 3, 1), jnp.bfloat16))
    assert gradient[1, 1, 0] == 64 * 64


@pytest.mark.parametrize("shape, stride", [((3, 3, 3, 8), 1), ((2, 2, 8, 4), 2), ((1, 1, 8, 4), 1), ((3, 3, 20, 4), 1)])
def test_convolutions_of_a_tpu(shape, stride):
    features, kernel = random_arrays((2, 8, 6, shape[2]), shape)
    padding = "SAME" if stride == 1 else "VALID"

    def plain(features, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(features, kernel, (stride, stride), padding, dimension_numbers=dimensions)

    def ours(features, kernel):
        return own_form("convolve", "tpu")(features, kernel, stride)

    expected = value_and_gradients(plain, (features, kernel))
    assert_same(value_and_gradients(ours, (features, kernel)), expected, 1e-5)


# Which form is taken.


@pytest.mark.parametrize("platform", [*FAST, None])
def test_the_form_follows_the_platform_that_is_traced_for(platform):
    with traced_for(platform):
        assert form("gated_mlp", None) is form("gated_mlp", platform or "cpu")


def test_a_platform_without_forms_takes_those_of_a_gpu():
    with traced_for("METAL"):
        assert form("concerto_attention", None) is form("concerto_attention", "gpu")


def test_a_program_is_traced_again_for_another_platform():
    x = jnp.ones((1, 16, 8, 2))
    jitted = jax.jit(lambda x: layers.on_windows(jnp.sin, (x,), 8))
    programs = []
    for platform in FAST:
        with traced_for(platform):
            programs.append("while" in jitted.lower(x).as_text())
    assert programs == [True, False, False]  # a CPU takes one window after the other


@pytest.mark.parametrize(
    "call",
    [
        lambda x, name: concerto.transposed_attention(x, x, x, x[0, 0, 0], implementation=name),
        lambda x, name: layers.on_windows(jnp.sin, (x,), 8, implementation=name),
        lambda x, name: ConcertoSelfAttention(8, implementation=name).init(jax.random.key(0), x),
        lambda _, name: create("lite", implementation=name),
        lambda _, name: create("restormer", implementation=name),
    ],
)
def test_an_unknown_form_is_refused_with_the_names(call):
    with pytest.raises(ValueError, match="implementation='cuda' is unknown; choose one of reference, cpu, gpu, tpu"):
        call(jnp.ones((1, 8, 8, 2)), "cuda")
