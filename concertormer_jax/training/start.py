"""The state that a training run starts from: its latest checkpoint, or new weights."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from concertormer_jax import kept_traces
from concertormer_jax.checkpoints import Checkpoints, load_model, require_same_size, size_of
from concertormer_jax.data.cache import available_memory_bytes
from concertormer_jax.devices import replicated, run_in_background, to_run_once
from concertormer_jax.errors import UserError
from concertormer_jax.paths import user_path
from concertormer_jax.training.setup import Training
from concertormer_jax.training.step import TrainState


def starting_state(config, training: Training, checkpoints: Checkpoints, mesh: Mesh) -> tuple[TrainState, Callable]:
    """Go on from the latest of `checkpoints`, or draw new weights as `config` says, whole on every device of `mesh`.

    Returns the state's shapes with their shardings, and what gives the state itself: it waits for new weights, which
    are drawn in the background, so that the step can be traced and compiled for the shapes meanwhile.

    Raises UserError when config.init_from cannot be loaded or is of another network, and for what no device can hold.
    """
    seed, whole = np.uint32(config.seed), replicated(mesh)
    drawing = kept_traces.lower(
        training.initialise, seed, made_from=training.made_from, out_shardings=whole, **to_run_once()
    )
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), drawing.out_info)
    _require_memory_for(shapes)
    if checkpoints.latest_step() is not None:
        restored = checkpoints.restore(shapes, training.module)
        return shapes, lambda: restored
    drawn = run_in_background(drawing, seed)
    if not config.init_from:
        return shapes, drawn.result
    loaded = load_model(user_path(config.init_from, "config.init_from"))
    require_same_size(config.init_from, size_of(loaded.module), training.module)
    params = jax.device_put(loaded.params, whole)
    average = None if shapes.average is None else jax.tree.map(jnp.copy, params)

    def with_loaded() -> TrainState:
        state = drawn.result()
        for weights in jax.tree.leaves((state.params, state.average)):
            weights.delete()  # what was drawn would stay on the devices as long as `drawn`
        return state.replace(params=params, average=average)

    return shapes, with_loaded


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
