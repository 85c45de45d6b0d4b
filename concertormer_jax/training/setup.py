"""What a training run is built of, by its config: the data, the network, the programs and the first state."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from concertormer_jax.data.degrade import input_dtype, make_degradation
from concertormer_jax.data.sources import Mixture, PhotoSource, leave_out, open_source, split_source
from concertormer_jax.models import Network, create, declared_params
from concertormer_jax.models.initial_values import declaring, draw
from concertormer_jax.ops.platform import platform, training_mesh
from concertormer_jax.runtime.devices import (
    batch_sharding,
    compile_in_background,
    replicated,
    run_in_background,
    run_once_options,
)
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.memory import available_memory_bytes
from concertormer_jax.runtime.outputs import require_outside
from concertormer_jax.runtime.paths import AnyPath, local_path
from concertormer_jax.runtime.trace_cache import fingerprint, lower_cached
from concertormer_jax.training.config_limits import require_valid
from concertormer_jax.training.schedule import OPTIMIZERS, Phase, cosine
from concertormer_jax.training.step import TrainState, initial_state, make_gradient, make_train_step, make_update
from concertormer_jax.weights.checkpoints import Checkpoints, architecture_dict, load_model, require_same_architecture

_MUCH_MORE = 1.5  # a held-out part that is this many times as large as asked for is reported


class Training(NamedTuple):
    """The network of a config and the functions that train it.

    apply: `(params, images) -> outputs`; initialise: `params -> TrainState`; step: see `make_train_step`; gradient,
    update: its two parts. fingerprint: of all these, for the trace cache. input_dtype: of a batch's inputs.
    """

    module: Network
    apply: Callable
    initialise: Callable
    step: Callable
    gradient: Callable
    update: Callable
    fingerprint: str | None
    input_dtype: type


def module_from(model) -> Network:
    """The network of `config.model`; fields left at None are the variant's.

    Raises UserError for fields that are unknown or do not fit together.
    """
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


def training_from(config, phases: Sequence[Phase]) -> Training:
    """Build what `config` trains with over all `phases`.

    Raises UserError for a network that cannot be built, and for keys that make no sense.
    """
    require_valid(config)
    module = module_from(config.model)
    if (least := min(phase.crop_px for phase in phases)) < module.multiple:
        raise UserError(
            f"config.stages.crop_px={tuple(config.stages.crop_px)}: the network pads pictures to multiples of "
            f"{module.multiple} pixels; a crop of {least} must be at least as large"
        )
    last_step = phases[-1].end
    settings = config.optimizer.to_dict()
    schedule = cosine(
        settings.pop("learning_rate"), settings.pop("final_learning_rate"), last_step, settings.pop("constant_steps")
    )
    optimizer = OPTIMIZERS[settings.pop("name")](schedule, **settings)
    ema_decay = config.train.ema_decay

    def apply(params, images):
        with declaring():  # Flax traces every initialiser, to compare shapes
            return module.apply({"params": params}, images)

    def initialise(params):
        return initial_state(params, optimizer, ema_decay)

    parts = {"fft_weight": config.train.fft_weight, "accumulation": config.train.accumulation}
    return Training(
        module,
        apply,
        initialise,
        step=make_train_step(apply, optimizer, schedule, **parts, ema_decay=ema_decay),
        gradient=make_gradient(apply, **parts),
        update=make_update(optimizer, schedule, ema_decay=ema_decay),
        fingerprint=fingerprint(module, config.optimizer, config.train, f"{last_step} steps"),
        input_dtype=input_dtype(config.data.degradation),
    )


def trace_step(training: Training, state: TrainState, phase: Phase, mesh: Mesh):
    """Trace the step for the shapes of `phase` on `mesh`; the state, arrays or their shapes with shardings, is donated.

    Returns what `jax.jit(...).trace` does.
    """
    with _tracing_for(mesh):
        return jax.jit(training.step, **_options(mesh, donated=0)).trace(state, _step_images(training, phase, mesh))


def compile_step(training: Training, state: TrainState, phase: Phase, mesh: Mesh) -> Callable[[], Callable]:
    """Start to compile the step for the shapes of `phase` on `mesh`, from cached traces if there are some.

    state: of shapes with shardings. Returns a function that waits for the compiler and returns the step,
    `(state, batch) -> (state, metrics)`, to which the state is donated. A signal handler that raises ends the wait,
    though not the compiler. On a CPU the step is two programs: XLA compiles the gradient, on one thread at first, while
    JAX traces the update.
    """
    images = _step_images(training, phase, mesh)

    def start(function, *arguments, donated):
        options = _options(mesh, donated)
        return compile_in_background(lower_cached(function, *arguments, fingerprint=training.fingerprint, **options))

    with _tracing_for(mesh):
        if platform() != "cpu":
            return start(training.step, state, images, donated=0).result
        gradient = start(training.gradient, state.params, images, donated=())
        update = start(training.update, state, state.params, donated=0)
    return lambda: _step_of(gradient.result(), update.result())


@contextlib.contextmanager
def _tracing_for(mesh):
    """A context in which JAX traces a function once for its value and its derivative.

    JAX sets the mesh without axes while it traces a derivative, and a trace is for one mesh that is set, or for none.
    """
    with training_mesh(mesh), jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        yield


def _step_of(gradient_of, update):
    def step(state, batch):
        gradient, metrics = gradient_of(state.params, batch)
        state, others = update(state, gradient)
        return state, metrics | others

    return step


def _options(mesh, donated):
    return {"donate_argnums": donated, "out_shardings": replicated(mesh)}


def _step_images(training, phase, mesh):
    shape, split = (phase.batch, phase.crop_px, phase.crop_px, 3), batch_sharding(mesh)
    types = {"input": training.input_dtype, "target": np.uint8}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=split) for name, dtype in types.items()}


def starting_state(
    training: Training, checkpoints: Checkpoints, mesh: Mesh, *, seed: int, init_from: str
) -> tuple[TrainState, Callable[[], TrainState]]:
    """Go on from the latest of `checkpoints`, or start with the weights of `init_from`, or with new ones if it is "".

    Returns the shapes of the state, with shardings that keep it whole on every device of `mesh`, and a function that
    returns the state. The state of new weights is made in the background, and the function waits for it: meanwhile the
    step can be traced and compiled for the shapes.

    Raises UserError if `init_from` cannot be loaded or is of another network, and if no device can hold the state.
    """
    declared = declared_params(training.module)
    shapes = state_shapes(training, nn.meta.unbox(declared), mesh)
    _require_memory_for(shapes)
    if checkpoints.latest_step() is not None:
        restored = checkpoints.restore(shapes, training.module)
        return shapes, lambda: restored
    params = None
    if init_from:
        loaded = load_model(init_from, "config.init_from")
        require_same_architecture(init_from, architecture_dict(loaded.module), training.module)
        params = loaded.params

    def first_params():
        return jax.device_put(draw(declared, seed) if params is None else params, replicated(mesh))

    start = jax.jit(training.initialise, out_shardings=replicated(mesh), **run_once_options())
    return shapes, run_in_background(start.lower(shapes.params), first_params).result


def state_shapes(training: Training, params: Any, mesh: Mesh) -> TrainState:
    """The shapes of the training state, with shardings that keep it whole on every device of `mesh`.

    params: the shapes of the parameters.
    """
    shapes = jax.eval_shape(training.initialise, params)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), shapes)


def _require_memory_for(shapes: TrainState) -> None:
    """Raise UserError where a state of these shapes is larger than the memory of each device."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    limit = limit or available_memory_bytes() // jax.local_device_count()  # what the CPU's devices share
    if needed > limit:
        raise UserError(
            f"the weights and the optimiser's state take {needed / 2**30:.1f} GiB on each device, which has "
            f"{limit / 2**30:.1f} GiB; choose a smaller network by config.model"
        )


def sources_from(config, results: AnyPath | None = None):
    """The sources for training and validation: held-out images of the former, unless config.validation names one.

    What is validated on is left out of the training. results: the folder that the run writes to. Raises UserError like
    `open_source`, if nothing is left, and if `results` lies among photographs.
    """
    data = config.data
    degradation = make_degradation(
        data.degradation,
        min_length_px=data.blur_min_px,
        max_length_px=data.blur_max_px,
        shot_noise=data.shot_noise,
        read_noise=data.read_noise,
        jpeg_quality=data.jpeg_quality,
        sigma=data.noise_sigma,
    )
    if not _places(data.source):
        raise UserError("config.data.source is empty; name a folder with input/ and target/ or one of photographs")
    settings: dict[str, Any] = {"degradation": degradation, "data_dir": data.data_dir}
    opened = [open_source(place, cached=config.run.cache, **settings) for place in _places(data.source)]
    if _places(config.validation.source):
        held = [open_source(place, validation=True, **settings) for place in _places(config.validation.source)]
        training, validation = opened, Mixture(held) if len(held) > 1 else held[0]
    else:
        held = []
        split = [split_source(source, config.validation.fraction) for source in opened]
        training, validation = [part for part, _ in split], Mixture([part for _, part in split])
    if results is not None:
        _require_outside_photographs(results, zip(_places(data.source), opened, strict=True))
        _require_outside_photographs(results, zip(_places(config.validation.source), held, strict=True))
    training = [leave_out(source, validation.parts()) for source in training]
    for place, source in zip(_places(data.source), training, strict=True):
        if not len(source):
            whose = f"config.validation.source={config.validation.source} holds all its pictures"
            raise UserError(
                f"config.data.source={place}: {whose if held else 'all its pictures are held out'}, so that none is "
                f"left to train on; name other pictures{', or leave the latter empty' if held else ''}"
            )
    source = Mixture(training, data.shares or None) if len(training) > 1 else training[0]
    return source, validation


def _require_outside_photographs(results, places):
    """places: (what the config says, its source). In a folder of pairs no other picture counts."""
    for place, source in places:
        if isinstance(source, PhotoSource):
            require_outside(results, local_path(place))


def data_notes(source, validation, config) -> list[str]:
    """What to say of the sources at the start: kind, number, and an example of each part."""
    lines = [f"training on {part.describe()}" for part in source.parts()]
    held_out = "" if config.validation.source else "held out: "
    lines += [f"validating on {held_out}{part.describe()}" for part in validation.parts()]
    share = len(validation) / (len(source) + len(validation))
    if held_out and share > _MUCH_MORE * config.validation.fraction and len(validation) > len(validation.parts()):
        lines.append(
            f"{share:.0%} of the pictures are held out in place of {config.validation.fraction:.0%}, since whole "
            "sequences are; name pictures to validate on as config.validation.source to train on all of these"
        )
    return lines


def _places(text: str) -> list[str]:
    return [place for place in text.split(",") if place]
