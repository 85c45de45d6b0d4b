"""What a config says of the network and the step, built without data and without weights."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from concertormer_jax import kept_traces
from concertormer_jax.devices import batch_sharding, replicated
from concertormer_jax.errors import UserError
from concertormer_jax.models import Network, create, initial_params
from concertormer_jax.training.config_limits import require_valid
from concertormer_jax.training.optimizer import adamw, cosine
from concertormer_jax.training.stages import Stage
from concertormer_jax.training.step import TrainState, initial_state, make_train_step


class Training(NamedTuple):
    """How a config trains.

    apply: `(params, images) -> outputs`; initialise: `seed -> TrainState`, one program for all seeds; step: see
    `make_train_step`. made_from: all that these depend on, as text.
    """

    module: Network
    apply: Callable
    initialise: Callable
    step: Callable
    made_from: str


def module_from(model) -> Network:
    """The network of `config.model`; fields left at None are the variant's."""
    fields = {name: value for name, value in model.items() if value is not None and name not in ("variant", "dtype")}
    if isinstance(fields.get("expansion"), float) and fields["expansion"].is_integer():
        fields["expansion"] = int(fields["expansion"])
    if "groups" in fields:
        fields["groups"] = tuple(name.strip() for name in fields["groups"].split(",") if name.strip())
    try:
        return create(model.variant or None, dtype=getattr(jnp, model.dtype), **fields)
    except UserError as error:
        raise UserError(f"config.model: {error}") from error
    except ValueError as error:
        raise UserError(f"config.model.{error}") from error


def training_from(config, stages: Sequence[Stage]) -> Training:
    """Build what `config` trains with over all `stages`.

    Raises UserError for a network that cannot be built, and for keys that make no sense.
    """
    require_valid(config)
    module = module_from(config.model)
    if (least := min(stage.crop_px for stage in stages)) < module.multiple:
        raise UserError(
            f"config.stages.crop_px={tuple(config.stages.crop_px)}: the network pads pictures to multiples of "
            f"{module.multiple} pixels; a crop of {least} must be at least as large"
        )
    made_from = f"{module} {config.optimizer.to_dict()} {config.train.to_dict()} {stages[-1].end}"
    settings = config.optimizer.to_dict()
    schedule = cosine(
        settings.pop("learning_rate"),
        settings.pop("final_learning_rate"),
        stages[-1].end,
        settings.pop("constant_steps"),
    )
    optimizer = adamw(schedule, **settings)
    ema_decay = config.train.ema_decay

    def apply(params, images):
        return module.apply({"params": params}, images)

    def initialise(seed):
        params = initial_params(module, jax.random.key(seed))
        return initial_state(params, optimizer, ema_decay)

    step = make_train_step(
        apply,
        optimizer,
        schedule,
        fft_weight=config.train.fft_weight,
        accumulation=config.train.accumulation,
        ema_decay=ema_decay,
    )
    return Training(module, apply, initialise, step, made_from)


def trace_step(step: Callable, state: TrainState, stage: Stage, mesh: Mesh):
    """Trace `step` for the shapes of `stage` on `mesh`; the state, arrays or their shapes with shardings, is donated.

    Returns what `jax.jit(...).trace` does.
    """
    return jax.jit(step, **_step_options(mesh)).trace(state, _step_images(stage, mesh))


def lower_step(training: Training, state: TrainState, stage: Stage, mesh: Mesh) -> jax.stages.Lowered:
    """As `trace_step` does, but lowered, and from a trace that was kept if there is one."""
    images = _step_images(stage, mesh)
    return kept_traces.lower(training.step, state, images, made_from=training.made_from, **_step_options(mesh))


def _step_options(mesh):
    return {"donate_argnums": 0, "out_shardings": replicated(mesh)}


def _step_images(stage, mesh):
    shape = (stage.batch, stage.crop_px, stage.crop_px, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh))
    return {"input": images, "target": images}
