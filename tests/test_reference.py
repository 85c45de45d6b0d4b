"""Every platform's form of the attention and of the block against the reference: values and gradients.

The forms run on the CPU. Also where logits are beyond what an exponential can hold.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.models import ConcertoSelfAttention
from concertormer_jax.models.blocks import Stage
from concertormer_jax.models.concerto_attention import TALKING
from concertormer_jax.ops import blocks, concerto, reference
from concertormer_jax.ops.concerto import transposed_attention
from concertormer_jax.ops.dispatch import traced_for

PLATFORMS = ("cpu", "gpu", "tpu")
RIPIENO, CONCERTINO = concerto.CONCERTO[:2], concerto.CONCERTO[2:]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.01}  # of the largest number


def random_parameters(module, *inputs, scale=0.5):
    """Normal numbers in the shapes of the module's parameters."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=scale, size=leaf.shape).astype(np.float32), shapes)


def weights_of(params):
    """The parameters of a `ConcertoSelfAttention` as the reference takes them."""
    cdc = {group: params[name] for group, name in TALKING.items() if name in params}
    rest = (params.get(name) for name in ("sca_kernel", "sca_bias"))
    return reference.AttentionWeights(params["to_q"], params["to_kv"], params.get("temperature"), cdc, *rest)


def value_and_gradients(function, params, features, goal):
    """Of function(params, *features), and of its product with `goal` by all of them."""

    def weighed(params, features):
        result = function(params, *features)
        return jnp.sum(goal * result.astype(jnp.float32)), result

    (_, value), gradients = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True))(params, features)
    return {"value": value, "parameters": gradients[0], "features": gradients[1]}


def check_forms(function, expected_function, params, features, tolerance, goal_scale=1.0, cancelling=()):
    """Assert that `function`, traced for every platform, is `expected_function`, with all derivatives.

    cancelling: parameters whose derivative is what rounding leaves of a sum that cancels, and need be finite only.
    """
    goal = goal_scale * np.random.default_rng(2).normal(size=(*features[0].shape[:3], 1)).astype(np.float32)
    expected = value_and_gradients(expected_function, params, features, goal)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(expected))

    def same(path, ours, expected, platform):
        scale = np.abs(np.asarray(expected, np.float64)).max()
        error = np.abs(np.asarray(ours, np.float64) - np.asarray(expected, np.float64)).max() / scale
        assert np.isfinite(error)
        name = jax.tree_util.keystr(path)
        assert error < tolerance or any(f"'{one}'" in name for one in cancelling), f"{platform}{name}: {error}"

    for platform in PLATFORMS:
        with traced_for(platform):
            ours = value_and_gradients(function, params, features, goal)
        jax.tree_util.tree_map_with_path(lambda *leaves, p=platform: same(*leaves, p), ours, expected)


def check_module(module, shifted, params, features, tolerance=None, **settings):
    """`check_forms` for a `ConcertoSelfAttention`. features: x, or x and keys."""
    dtype = jnp.dtype(module.dtype)

    def ours(params, *features):
        return module.apply({"params": params}, *features, shifted=shifted)

    def expected(params, *features):
        x, y = (array.astype(dtype) for array in (features[0], features[-1]))
        form = (shifted, module.heads, module.groups, module.block_px, module.tlc_window)
        return reference.concerto_attention(x, y, weights_of(params), *form)

    check_forms(ours, expected, params, features, tolerance or TOLERANCE[dtype.name], **settings)


def random_features(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize(
    ("fields", "shifted", "size", "cross"),
    [
        ({"heads": 2, "block_px": 4}, True, (8, 12), True),
        ({"groups": concerto.CONCERTO[:1], "heads": 8, "block_px": 4}, False, (8, 8), False),
        ({"groups": concerto.CONCERTO[3:], "block_px": 4, "tlc_window": 8}, True, (8, 12), False),
        ({"heads": 2, "block_px": 4, "dtype": jnp.bfloat16}, True, (8, 16), False),
        ({"groups": RIPIENO, "heads": 1, "block_px": 8}, True, (24, 16), False),
        ({"groups": RIPIENO[:1], "communication": "none", "block_px": 16}, True, (16, 16), False),
        (
            {"groups": concerto.CONCERTO[::2], "communication": "channel", "sca": False, "block_px": 4},
            True,
            (8, 8),
            True,
        ),
        ({"groups": concerto.CONCERTO[1:], "communication": "none", "block_px": 4}, False, (8, 12), False),
        ({"groups": (concerto.WINDOW, concerto.TRANSPOSED), "heads": 2, "block_px": 4}, True, (8, 12), True),
    ],
    ids=lambda part: "-".join(map(str, part.values())) if isinstance(part, dict) else None,
)
def test_every_form_of_the_attention_is_the_reference(monkeypatch, fields, shifted, size, cross):
    monkeypatch.setattr(concerto, "LARGE", 1)  # a CPU takes large groups in halves
    fields = {"groups": concerto.CONCERTO} | fields
    module = ConcertoSelfAttention(len(fields["groups"]) * fields.get("heads", 1) * 2, **fields)
    features = random_features((2, *size, 5), (2, *size, 3))[: 1 + cross]
    shifted = shifted and jnp.array(True)  # as a scanned stage gives it: traced, or never
    check_module(module, shifted, random_parameters(module, *features), features)


@pytest.mark.parametrize("cross", [False, True])
def test_every_form_of_the_block_is_the_reference(cross):
    """The second block of a stage, which is shifted, or the first of a cross stage, which is not."""
    stage = Stage(4, 1, 1 if cross else 2, 2)
    features = random_features(*[(1, 8, 16, 4)] * (1 + cross))
    params = random_parameters(stage, *features)

    def ours(params, *features):
        return stage.apply({"params": params}, *features)

    def expected(params, x, y=None):
        keys = None if y is None else reference.layer_norm(y, params["norm2"]["scale"], params["norm2"]["bias"])
        for index in range(stage.blocks):
            p = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
            mlp = reference.MLPWeights(p["to_uz"], p["dw_u"], p["project"], p["project_out"])
            norm = p["norm"]["scale"], p["norm"]["bias"]
            x = reference.block(x, keys, norm, weights_of(p["attention"]), mlp, index % 2 == 1, stage.heads)
        return x

    check_forms(ours, expected, params, features, tolerance=1e-3)


def test_the_reference_derives_forwards_too():
    x = random_features((1, 4, 4, 4))[0]
    module = ConcertoSelfAttention(4, block_px=4)
    weights = weights_of(random_parameters(module, x))

    def attend(x):
        return reference.concerto_attention(x, x, weights, True, 1, block=4).sum()

    _, along = jax.jit(lambda x: jax.jvp(attend, (x,), (x,)))(x)
    np.testing.assert_allclose(along, jnp.sum(x * jax.grad(attend)(x)), rtol=1e-3)


def alike(module, features, temperature, cdc):
    """Parameters under which all cosines are near 1, so that all logits are about `temperature` times `cdc`.

    cdc: what every map is multiplied by in its communication.
    """
    params = jax.tree.map(np.abs, random_parameters(module, *features, scale=0.3))
    params["temperature"] = np.full_like(params["temperature"], temperature)
    for name in set(TALKING.values()) & params.keys():
        kernel = 0.01 * random_parameters(module, *features)[name]
        if kernel.shape[:2] == (3, 3):
            kernel[1, 1] += np.eye(module.heads)
        else:
            kernel += np.eye(module.heads * kernel.shape[1]).reshape(kernel.shape)
        params[name] = cdc * kernel
    return params


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
    groups = concerto.CONCERTO if communication == "both" else (*CONCERTINO, concerto.TRANSPOSED)
    module = ConcertoSelfAttention(4 * len(groups), 2, groups, communication, block_px=4, dtype=jnp.dtype(dtype))
    features = tuple(map(np.abs, random_features((1, 8, 8, 5))))
    # At such logits a step of float16 or bfloat16 in a query moves a logit by much.
    tolerance = {"float32": 2e-3, "bfloat16": 0.1, "float16": 0.05}[dtype]
    params = alike(module, features, temperature, cdc)
    check_module(module, jnp.array(True), params, features, tolerance, cancelling=["temperature"])


@pytest.mark.parametrize("temperature", [-75, 75])
def test_derivatives_do_not_sink_below_what_a_number_can_hold(temperature):
    """The derivatives are divided by the sum of the exponentials, which may be large."""
    module = ConcertoSelfAttention(8, 1, ("ripieno_spatial",), "none", sca=False, block_px=4)
    features = tuple(map(np.abs, random_features((1, 4, 8, 5))))
    params = alike(module, features, temperature, 0)
    check_module(module, False, params, features, 1e-3, goal_scale=1e-7, cancelling=["temperature"])


def test_large_logits_of_both_signs():
    """Here the derivative by the temperature does not cancel."""
    module = ConcertoSelfAttention(8, 1, block_px=4)
    features = random_features((1, 8, 8, 5))
    params = random_parameters(module, *features)
    params["temperature"] = np.full_like(params["temperature"], 60)
    check_module(module, jnp.array(True), params, features, tolerance=2e-3)


@pytest.mark.parametrize("temperature", [-50.0, 500.0])
def test_restormers_attention_beyond_an_exponential(temperature):
    q, k, v = map(np.abs, random_features(*[(1, 4, 4, 6)] * 3))

    def ours(temperature, q, k, v):
        return transposed_attention(q, k, v, temperature)

    def expected(temperature, q, k, v):
        q, k, v = (part.reshape(1, 1, 16, 2, 3) for part in (q, k, v))
        q, k = reference.normalise(q, (1, 2)) * temperature[:, None], reference.normalise(k, (1, 2))
        group = reference.GROUPS["transposed"]
        attended = jnp.einsum(group.result, reference.softmax(jnp.einsum(group.logits, q, k)), v)
        return attended.reshape(1, 4, 4, 6)

    check_forms(ours, expected, jnp.full(2, temperature), (q, k, v), tolerance=1e-3)


def test_no_logit_exceeds_its_bound_and_one_can_reach_it():
    """Where all cosines are 1 and no weight is negative, the largest logit after communication is the bound."""
    temperature = jnp.array([[0.5], [2.0]])
    grid = blocks.Grid(3, 3, 4)
    for group, shape, maps in (
        ("ripieno_spatial", (3, 3, 2, 2), jnp.broadcast_to(temperature[..., None], (1, 9, 2, 16, 16))),
        ("ripieno_channel", (3, 3, 2, 2), jnp.broadcast_to(temperature[..., None], (1, 9, 2, 3, 3))),
        ("concertino_channel", (2, 16, 16, 2), jnp.broadcast_to(temperature[..., None], (1, 16, 2, 3, 3))),
        ("concertino_spatial", (2, 3, 3, 2), jnp.repeat(temperature, 3, 0)[None, :, :, None] * jnp.ones((16, 16))),
    ):
        cdc = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        function, _, bound = concerto._communication(group, concerto.CONCERTO, cdc, temperature, grid, False)
        np.testing.assert_allclose(function(maps, jnp.abs(cdc)).max(), bound, rtol=1e-5)
        assert jnp.abs(function(maps, cdc)).max() < bound
