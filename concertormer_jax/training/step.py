"""One training step as a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax import export

from concertormer_jax.training import losses
from concertormer_jax.training.schedule import global_norm


class TrainState(flax.struct.PyTreeNode):
    """All that training changes: after n updates `step` is n. `average` is the moving average of `params`, or None."""

    step: jax.Array
    params: Any
    optimizer: Any
    average: Any


# So that a trace of the step can be kept.
export.register_pytree_node_serialization(
    TrainState,
    serialized_name="concertormer_jax.TrainState",
    serialize_auxdata=lambda _: b"",
    deserialize_auxdata=lambda _: (),
)
for _state in (
    optax.EmptyState,
    optax.MaskedNode,
    optax.MaskedState,
    optax.PartitionState,
    optax.ScaleByAdamState,
    optax.ScaleByScheduleState,
    optax.contrib.MuonState,
):
    export.register_namedtuple_serialization(_state, serialized_name=f"optax.{_state.__name__}")


def initial_state(params: Any, optimizer: optax.GradientTransformation, ema_decay: float) -> TrainState:
    """The state before the first step. The average starts as the parameters; `ema_decay` 0 keeps none."""
    average = jax.tree.map(jnp.copy, params) if ema_decay else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def batch_psnr(restored: jax.Array, target: jax.Array) -> jax.Array:
    """PSNR in dB of each image, clipped to [0, 1] and not rounded. [B, H, W, 3] twice, in [0, 1]; returns [B]."""
    squared = jnp.square(jnp.clip(restored, 0, 1) - target).mean(axis=(1, 2, 3))
    return -10 * jnp.log10(jnp.maximum(squared, 1e-10))


def to_unit(images: jax.Array) -> jax.Array:
    """Pixels on the scale from 0 to 255, of any type, to float32 on that from 0 to 1."""
    return images.astype(jnp.float32) / 255


def make_gradient(apply: Callable, *, fft_weight: float, accumulation: int) -> Callable:
    """Build `(params, batch) -> (gradient, {"loss", "psnr"})`: the first part of `make_train_step`'s function."""

    def loss_and_psnr(params, part):
        target = to_unit(part["target"])
        outputs = apply(params, to_unit(part["input"]))
        return losses.multiscale_l1_fft(outputs, target, fft_weight), batch_psnr(outputs[-1], target).mean()

    gradient_of = jax.value_and_grad(loss_and_psnr, has_aux=True)

    def accumulate(params, batch):
        # Every accumulation-th image goes into one part, so that no image leaves the device it is on.
        parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, accumulation, *a.shape[1:]), 1, 0), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient_of(params, part)), None

        zeros = jax.tree.map(
            lambda a: jnp.zeros(a.shape, a.dtype),
            jax.eval_shape(gradient_of, params, jax.tree.map(lambda a: a[0], parts)),
        )
        total, _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda a: a / accumulation, total)

    def gradient(params, batch):
        (loss, psnr), gradient = (gradient_of if accumulation == 1 else accumulate)(params, batch)
        return gradient, {"loss": loss, "psnr": psnr}

    return gradient


def make_update(optimizer: optax.GradientTransformation, schedule: optax.Schedule, *, ema_decay: float) -> Callable:
    """Build `(state, gradient) -> (state, {"gradient_norm", "learning_rate"})`: the second part of the step."""

    def update(state: TrainState, gradient: Any) -> tuple[TrainState, dict]:
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if ema_decay:
            # After n updates at most (1 + n) / (10 + n) of the average is kept, which soon forgets the initial weights.
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(params, average, 1 - decay)
        metrics = {"gradient_norm": global_norm(gradient), "learning_rate": schedule(state.step)}
        return TrainState(state.step + 1, params, optimizer_state, average), metrics

    return update


def make_train_step(
    apply: Callable,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    fft_weight: float,
    accumulation: int,
    ema_decay: float,
) -> Callable:
    """Build `(state, batch) -> (state, metrics)`.

    apply: `(params, images) -> outputs` of the network. batch: {"input", "target"}: uint8 (the input may be float32 on
    the same scale) [B, H, W, 3], B a multiple of `accumulation`; the gradient is that of the mean over the whole batch,
    computed in `accumulation` parts.
    metrics: scalars "loss", "psnr" (mean of the batch, dB), "gradient_norm" (before clipping) and "learning_rate".
    """
    gradient_of = make_gradient(apply, fft_weight=fft_weight, accumulation=accumulation)
    update = make_update(optimizer, schedule, ema_decay=ema_decay)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        gradient, metrics = gradient_of(state.params, batch)
        state, others = update(state, gradient)
        return state, metrics | others

    return step
