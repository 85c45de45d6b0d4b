"""One training step: accumulation, several devices, moving average and metrics. (Its values: see test_golden.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_runs as runs
from tiny_network import random_params, tiny_network

from concertormer_jax.models import parameter_shapes
from concertormer_jax.ops import concerto
from concertormer_jax.ops.platform import traced_for
from concertormer_jax.runtime.devices import batch_sharding, data_mesh, replicated
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.schedule import adamw, clip_by_global_norm, cosine, global_norm, make_phases, muon
from concertormer_jax.training.setup import state_shapes, trace_step, training_from
from concertormer_jax.training.step import batch_psnr, initial_state, make_train_step, to_unit
from configs import common

SCHEDULE = cosine(1e-2, 1e-4, steps=10)
SETTINGS = {"beta1": 0.9, "beta2": 0.9, "epsilon": 1e-8, "weight_decay": 1e-3, "clip_norm": 0.01}
ADAMW = adamw(SCHEDULE, **SETTINGS)
GRADIENT_DESCENT = optax.sgd(1.0)


def toy_network(params, images):
    """A network of four parameters and one scale."""
    return (images * params["gain"] + params["offset"],)


def toy_params():
    """Values with which no output is equal to a target: there, rounding decides the gradient of the loss."""
    return {"gain": jnp.array([0.5, 1.0, 1.5]), "offset": jnp.array(0.1234)}


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {part: rng.integers(0, 256, (8, 16, 16, 3), np.uint8) for part in ("input", "target")}


def make_step(apply=toy_network, optimizer=ADAMW, accumulation=1, ema_decay=0.0):
    step = make_train_step(apply, optimizer, SCHEDULE, fft_weight=0.1, accumulation=accumulation, ema_decay=ema_decay)
    return jax.jit(step)


def assert_close(tree, expected, rtol):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=rtol), tree, expected)


def test_accumulated_parts_are_one_batch(batch):
    """With plain gradient descent, so that an error in the size of the gradient is not normalised away."""
    state = initial_state(toy_params(), GRADIENT_DESCENT, ema_decay=0.0)
    whole, metrics = make_step(optimizer=GRADIENT_DESCENT)(state, batch)
    for accumulation in (2, 8):
        parts, same_metrics = make_step(optimizer=GRADIENT_DESCENT, accumulation=accumulation)(state, batch)
        assert_close(parts.params, whole.params, rtol=1e-5)
        assert_close(same_metrics, metrics, rtol=1e-5)
    assert not np.allclose(whole.params["gain"], state.params["gain"], rtol=1e-2)


def test_accumulated_parts_hold_every_nth_image(batch):
    """An image then stays on its device: with 2 devices of 4 images and 2 parts, each part has 2 images of both."""
    seen = []

    def spy(params, images):
        jax.debug.callback(lambda images: seen.append(np.asarray(images)), images, ordered=True)
        return toy_network(params, images)

    state = initial_state(toy_params(), GRADIENT_DESCENT, ema_decay=0.0)
    jax.block_until_ready(make_step(spy, GRADIENT_DESCENT, accumulation=2)(state, batch))
    jax.effects_barrier()
    first, second = seen
    np.testing.assert_array_equal(np.rint(first * 255), batch["input"][0::2])
    np.testing.assert_array_equal(np.rint(second * 255), batch["input"][1::2])


def test_every_attention_is_traced_once_for_its_value_and_its_derivative(monkeypatch):
    settings = {"model.encoder_blocks": (2,), "model.middle_blocks": 2, "model.decoder_blocks": (2,)}
    settings |= {"model.width": 12, "model.expansion": 1, "model.remat": True}  # in no other test
    config = runs.override(common.get_config(), runs.TINY_RUN | runs.ONE_STAGE | settings)
    (phase,) = phases = make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)
    training, mesh, traced, own = training_from(config, phases), data_mesh(), [], concerto.concerto_attention
    shapes = state_shapes(training, parameter_shapes(training.module), mesh)

    def attention(x, keys, *given, **settings):
        traced.append((x.shape[1:], keys is not x))
        return own(x, keys, *given, **settings)

    monkeypatch.setattr(concerto, "concerto_attention", attention)
    trace_step(training, shapes, phase, mesh)
    encoder, middle, decoder = ((16, 16, 12), False), ((8, 8, 24), True), ((16, 16, 12), True)
    assert traced == [encoder, middle, decoder]


def test_metrics(batch):
    state = initial_state(toy_params(), ADAMW, ema_decay=0.0)
    step = make_step()
    state, first = step(state, batch)
    assert first.keys() == {"loss", "psnr", "gradient_norm", "learning_rate"}
    (restored,) = toy_network(toy_params(), batch["input"].astype(np.float64) / 255)
    squared = np.square(np.clip(restored, 0, 1) - batch["target"] / 255).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(first["psnr"], np.mean(-10 * np.log10(squared)), rtol=1e-5)
    assert first["gradient_norm"] > 0.1  # the optimiser clips at 0.01
    _, second = step(state, batch)
    np.testing.assert_allclose([first["learning_rate"], second["learning_rate"]], [SCHEDULE(0), SCHEDULE(1)])
    assert int(state.step) == 1


def test_psnr_of_each_image():
    target = jnp.full((3, 4, 4, 3), 0.5)
    restored = target.at[0].add(0.1).at[1].set(7.0)
    np.testing.assert_allclose(batch_psnr(restored, target), [20, -20 * np.log10(0.5), 100], rtol=1e-5)


def test_uint8_to_unit():
    unit = to_unit(jnp.array([0, 51, 255], jnp.uint8))
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, [0, 0.2, 1])


def test_moving_average(batch):
    step = make_step(ema_decay=0.9)
    states = [initial_state(toy_params(), ADAMW, ema_decay=0.9)]
    for _ in range(3):
        states.append(step(states[-1], batch)[0])
    expected = toy_params()
    for n, state in enumerate(states[1:]):
        decay = min(0.9, (1 + n) / (10 + n))
        expected = optax.incremental_update(state.params, expected, 1 - decay)
        assert_close(state.average, expected, rtol=1e-6)
    assert not np.array_equal(states[3].average["gain"], states[3].params["gain"])


def test_without_moving_average_none_is_kept(batch):
    state, _ = make_step()(initial_state(toy_params(), ADAMW, ema_decay=0.0), batch)
    assert state.average is None


def test_constant_then_cosine():
    """Restormer's schedule: 3e-4 for 92,000 steps, then a cosine to 1e-6 over the other 208,000."""
    schedule = cosine(3e-4, 1e-6, steps=300_000, constant_steps=92_000)
    rates = [float(schedule(step)) for step in (0, 92_000, 196_000, 300_000)]
    np.testing.assert_allclose(rates, [3e-4, 3e-4, (3e-4 + 1e-6) / 2, 1e-6], rtol=1e-5)


@pytest.mark.parametrize("constant_steps", [-1, 10, 11])
def test_no_steps_for_the_cosine_are_refused(constant_steps):
    message = f"config.optimizer.constant_steps={constant_steps} must be at least 0 and less than the 10 steps"
    with pytest.raises(UserError, match=message):
        cosine(3e-4, 1e-6, steps=10, constant_steps=constant_steps)


def test_cosine_from_first_to_last_learning_rate():
    np.testing.assert_allclose([SCHEDULE(0), SCHEDULE(5), SCHEDULE(10)], [1e-2, (1e-2 + 1e-4) / 2, 1e-4], rtol=1e-5)


def test_weight_decay_is_decoupled_and_on_every_parameter():
    params = toy_params()
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = ADAMW.update(zero, ADAMW.init(params), params)
    assert_close(updates, jax.tree.map(lambda value: -1e-2 * 1e-3 * value, params), rtol=1e-5)


def test_eight_devices_are_one_device(batch):
    """One step of the real network: the parameters after it and the metrics, within rounding."""
    module = tiny_network()
    params = random_params(module)
    step = make_train_step(
        lambda params, images: module.apply({"params": params}, images),
        GRADIENT_DESCENT,
        SCHEDULE,
        fft_weight=0.1,
        accumulation=1,
        ema_decay=0.0,
    )

    def train(devices):
        mesh = data_mesh(devices)
        state = jax.device_put(initial_state(params, GRADIENT_DESCENT, ema_decay=0.0), replicated(mesh))
        placed = jax.device_put(batch, batch_sharding(mesh))
        program = jax.jit(step, out_shardings=replicated(mesh))
        state, metrics = program(state, placed)
        assert len(metrics["loss"].sharding.device_set) == len(devices)
        return jax.device_get((state.params, metrics))

    assert len(jax.devices()) == 8
    one_params, one_metrics = train(jax.devices()[:1])
    params_of_8, metrics_of_8 = train(jax.devices())
    assert_close(metrics_of_8, one_metrics, rtol=1e-5)
    for start, one, eight in zip(*map(jax.tree.leaves, (params, one_params, params_of_8)), strict=True):
        assert np.linalg.norm(one - eight) <= 1e-4 * np.linalg.norm(one - start)


@pytest.mark.parametrize("largest", [1.0, 4.0, 5.0, 6.0])
def test_a_gradient_is_clipped_to_a_global_norm_as_optax_does(largest):
    for gradient in ({"a": jnp.array([3.0]), "b": jnp.array([[4.0, 0.0]])}, {"a": jnp.zeros(2)}):  # of norm 5 and 0
        ours, theirs = (
            clip.update(gradient, clip.init(gradient))[0]
            for clip in (clip_by_global_norm(largest), optax.clip_by_global_norm(largest))
        )
        assert_close(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_global_norm_is_that_of_all_numbers(platform):
    with traced_for(platform):
        assert global_norm({"a": jnp.array([3.0]), "b": jnp.array([[4.0, 0.0], [0.0, 12.0]])}) == pytest.approx(13)


def test_muon_moves_matrices_along_all_directions_alike_and_all_else_like_adam():
    params = random_params(tiny_network(encoder_blocks=(3,)))
    gradient = jax.tree.map(lambda leaf: leaf**3, params)

    def moved(optimizer):
        return optimizer.update(gradient, optimizer.init(params), params)[0]

    by_muon = moved(muon(SCHEDULE, **SETTINGS | {"weight_decay": 0.0}))
    by_nadam = moved(optax.chain(optax.clip_by_global_norm(0.01), optax.nadam(5e-3, b1=0.9, b2=0.9)))
    block = by_muon["encoders_0"]["blocks"]
    matrices = [block["to_uz"], block["attention"]["to_q"], by_muon["downs_0"]["kernel"].reshape(1, -1, 16)]
    for matrix in matrices:
        singular = np.linalg.svd(matrix, compute_uv=False) / (1e-2 * 0.2 * max(matrix.shape[1:]) ** 0.5)
        assert singular.shape[0] == len(matrix)
        assert 0.5 < singular.min() < singular.max() < 1.5  # five Newton-Schulz iterations come as near to 1 as that
    for name in ("intro", "ending"):
        assert_close(by_muon[name], by_nadam[name], rtol=1e-4)
    for name in ("dw_u", "norm"):
        assert_close(block[name], by_nadam["encoders_0"]["blocks"][name], rtol=1e-4)
