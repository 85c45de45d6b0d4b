"""The released PyTorch model's numbers: outputs of blocks and networks, and three steps of training.

A failure means that published weights no longer give the published pictures, or that training follows another recipe.
The numbers come from outside (see golden/README.md): mend the code, never the files.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from xla_flags import DEFAULT_OPTIONS

from concertormer_jax.models import create
from concertormer_jax.models.blocks import Stage, block_weights
from concertormer_jax.ops import reference
from concertormer_jax.ops.dispatch import IMPLEMENTATIONS
from concertormer_jax.training.schedule import adamw, cosine
from concertormer_jax.training.step import initial_state, make_train_step
from concertormer_jax.weights import params_from_torch, torch_from_params
from concertormer_jax.weights.conversion import mappings, write

GOLDEN = Path(__file__).parent / "golden"
jit = partial(jax.jit, compiler_options=DEFAULT_OPTIONS)  # compiled as a user's programs are


def nhwc(array):
    return np.moveaxis(array, -3, -1)


def with_prefix(archive, prefix):
    return {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def sample(array):
    """The elements that golden/network.npz keeps of a gradient or a weight."""
    return array.ravel()[np.linspace(0, array.size - 1, min(array.size, 512)).astype(int)]


@pytest.fixture(scope="module")
def archive():
    with np.load(GOLDEN / "network.npz") as archive:
        yield archive


@pytest.fixture(scope="module")
def module(archive):
    config = json.loads(str(archive["config"]))
    return create(
        None,
        width=config["width"],
        expansion=config["ffn_expansion_factor"],
        encoder_blocks=tuple(config["enc_blk_nums"]),
        middle_blocks=config["middle_blk_num"],
        decoder_blocks=tuple(config["dec_blk_nums"]),
        encoder_heads=tuple(config["enc_heads"]),
        middle_heads=config["middle_heads"],
        decoder_heads=tuple(config["dec_heads"]),
    )


@pytest.fixture(scope="module")
def params(archive, module):
    return params_from_torch(with_prefix(archive, "state/"), module)


def by_reference(stage, params, x, y=None):
    """What `stage` computes, by `ops.reference`."""
    keys = None if y is None else reference.layer_norm(y, params["norm2"]["scale"], params["norm2"]["bias"])
    for index in range(stage.blocks):
        p = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        norm, weights, mlp = block_weights(p)
        x = reference.block(x, keys if index == 0 else None, norm, weights, mlp, index % 2 == 1, stage.heads)
    return x


@pytest.mark.parametrize("implementation", ["by hand", *IMPLEMENTATIONS])
@pytest.mark.parametrize("case", ["heads4_shifted", "cross"])
def test_block(case, implementation):
    """By hand: `ops.reference.block`, without the modules of the network."""
    with np.load(GOLDEN / "blocks.npz") as archive:
        meta = json.loads(str(archive[f"{case}/meta"]))
        state = with_prefix(archive, f"{case}/state/")
        features, expected = nhwc(archive[f"{case}/input"]), nhwc(archive[f"{case}/output"])
    blocks, width, heads = meta["block_index"] + 1, meta["dim"], meta["heads"]
    inputs = np.split(features, 2, axis=-1) if meta["cross"] else [features]
    stage = Stage(width, heads, blocks, meta["ffn_expansion_factor"])
    # A block whose weights are zero passes its input through, as those before the tested one.
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), jax.eval_shape(stage.init, jax.random.key(0), *inputs)["params"]
    )
    # The names are those of the same stage in a network: a decoder's first block is a cross block, an encoder's is not.
    network = create(
        None,
        width=width,
        expansion=meta["ffn_expansion_factor"],
        encoder_blocks=(blocks,),
        middle_blocks=1,
        decoder_blocks=(blocks,),
        encoder_heads=(heads,),
        middle_heads=heads,
        decoder_heads=(heads,),
    )
    prefix = f"{'decoders' if meta['cross'] else 'encoders'}.0.{meta['block_index']}."
    for mapping in mappings(network):
        if mapping.torch_name.startswith(prefix):
            write({mapping.paths[0][0]: params}, mapping, state.pop(mapping.torch_name.removeprefix(prefix)))
    assert not state
    if implementation == "by hand":
        output = jit(partial(by_reference, stage))(params, *inputs)
    else:
        output = jit(stage.clone(implementation=implementation).apply)({"params": params}, *inputs)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "implementation"), [("aligned", "reference"), ("padded", "cpu"), ("padded", "tpu")])
def test_network(archive, module, params, case, implementation):
    outputs = jit(module.clone(implementation=implementation).apply)({"params": params}, nhwc(archive[f"{case}/input"]))
    assert len(outputs) == 4
    for scale, output in enumerate(outputs):
        np.testing.assert_allclose(output, nhwc(archive[f"{case}/output{scale}"]), rtol=0, atol=1e-4)


# Near zero, a query that is normalised over one block is its sign. A window of 64 pixels is one block at the deepest
# level, and one query in the last column of windows is so near zero that its sign is decided by rounding.
@pytest.mark.parametrize(("dtype", "decided_px"), [(jnp.float32, 168), (jnp.float64, None)])
def test_network_with_tlc(module, params, dtype, decided_px):
    with np.load(GOLDEN / "tlc.npz") as archive:
        (window, _), *_ = json.loads(str(archive["meta"]))["kernel_sizes"]
        image, expected = nhwc(archive["input"]), nhwc(archive["output"])
    module = module.clone(tlc_window=window, dtype=dtype)
    with jax.enable_x64(dtype == jnp.float64):
        params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
        restored = jit(module.apply)({"params": params}, image.astype(dtype))[-1]
    np.testing.assert_allclose(restored[:, :, :decided_px], expected[:, :, :decided_px], rtol=0, atol=1e-4)


def test_restormer():
    with np.load(GOLDEN / "restormer.npz") as archive:
        config = json.loads(str(archive["config"]))
        state = with_prefix(archive, "state/")
        image, expected = nhwc(archive["input"]), nhwc(archive["output"])
    *blocks, middle_blocks = config["num_blocks"]
    *heads, middle_heads = config["heads"]
    module = create(
        None,
        network="Restormer",
        width=config["dim"],
        expansion=config["ffn_expansion_factor"],
        encoder_blocks=tuple(blocks),
        middle_blocks=middle_blocks,
        decoder_blocks=tuple(reversed(blocks)),
        refinement_blocks=config["num_refinement_blocks"],
        encoder_heads=tuple(heads),
        middle_heads=middle_heads,
        decoder_heads=tuple(reversed(heads)),
    )
    params = params_from_torch(state, module)
    (restored,) = jit(module.apply)({"params": params}, image)
    np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-4)
    published = torch_from_params(params, module)
    assert published.keys() == state.keys()
    assert all((published[name] == state[name]).all() for name in state), "there and back is the identity"


def three_steps(archive, module, params, dtype):
    """Train as the golden run did. Returns (gradient of step 0, metrics of each step, parameters after the last)."""
    schedule = cosine(1e-3, 1e-7, steps=10)
    # The first transformation changes nothing and keeps the gradient that it was given.
    keep = optax.GradientTransformation(lambda params: params, lambda gradient, *_: (gradient, gradient))
    clipped_adamw = adamw(schedule, beta1=0.9, beta2=0.9, epsilon=1e-8, weight_decay=1e-3, clip_norm=0.01)
    step = jit(
        make_train_step(
            lambda params, images: module.apply({"params": params}, images),
            optax.chain(keep, clipped_adamw),
            schedule,
            fft_weight=0.1,
            accumulation=1,
            ema_decay=0.0,
        )
    )
    state = initial_state(
        jax.tree.map(lambda a: jnp.asarray(a, dtype), params), optax.chain(keep, clipped_adamw), ema_decay=0.0
    )
    history = []
    for number in range(3):
        # The golden images are floats in [0, 1], a training step takes 0 to 255.
        batch = {part: nhwc(archive[f"train/{part}"][number]).astype(dtype) * 255 for part in ("input", "target")}
        state, metrics = step(state, batch)
        history.append(jax.device_get(metrics))
        if number == 0:
            gradient = jax.device_get(state.optimizer[0])
    return gradient, history, jax.device_get(state.params)


def check_metrics(archive, history):
    for name, golden in (("loss", "losses"), ("gradient_norm", "grad_norms"), ("learning_rate", "lrs")):
        tolerance = 1e-5 if name == "loss" else 1e-4
        np.testing.assert_allclose([metrics[name] for metrics in history], archive[f"train/{golden}"], rtol=tolerance)


def gradient_errors(archive, module, gradient):
    """{published name: norm of the difference from the golden gradient, relative to its norm}."""
    ours = torch_from_params(gradient, module)
    golden = with_prefix(archive, "train/grad/")
    assert ours.keys() == golden.keys()
    return {
        name: np.linalg.norm(sample(ours[name]) - expected) / np.linalg.norm(expected)
        for name, expected in golden.items()
    }


def elements_after_training(archive, module, params):
    """Our weights after three steps and the golden ones, as two flat arrays."""
    ours = torch_from_params(params, module)
    golden = with_prefix(archive, "train/after3/")
    assert ours.keys() == golden.keys()
    return np.concatenate([sample(ours[name]) for name in golden]), np.concatenate(list(golden.values()))


def test_training_in_float32(archive, module, params):
    gradient, history, params = three_steps(archive, module, params, np.float32)
    check_metrics(archive, history)
    errors = gradient_errors(archive, module, gradient)
    assert max(errors.values()) < 1e-3, max(errors.items(), key=lambda item: item[1])
    # After clipping, some gradients are below AdamW's epsilon, and their rounding decides where it goes.
    ours, golden = elements_after_training(archive, module, params)
    assert np.mean(np.abs(ours - golden) < 1e-5) > 0.999


@pytest.mark.long  # compiled for minutes; what it adds is that float32's differences above are rounding
def test_training_in_float64(archive, module, params):
    with jax.enable_x64(True):
        gradient, history, params = three_steps(archive, module.clone(dtype=jnp.float64), params, np.float64)
    check_metrics(archive, history)
    errors = gradient_errors(archive, module, gradient)
    assert max(errors.values()) < 1e-5, max(errors.items(), key=lambda item: item[1])
    ours, golden = elements_after_training(archive, module, params)
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-5)
