"""The programs that a recipe runs, traced for devices that need not be there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from concertormer_jax.devices import batch_sharding, replicated
from concertormer_jax.evaluation.forward import restore_bytes
from concertormer_jax.evaluation.opening import protocol_of_training
from concertormer_jax.models import parameter_shapes
from concertormer_jax.ops.image import padded_size
from concertormer_jax.training.setup import module_from, trace_step, training_from
from concertormer_jax.training.stages import make_stages, require_divisible


@dataclasses.dataclass(frozen=True)
class Task:
    """One program. kind: "train", "evaluate" or "forward"; images: in each run, over `devices` devices.

    traced: what `jax.jit(...).trace` returns; steps: how often the recipe runs it, None if that is open.
    """

    kind: str
    name: str
    images: int
    devices: int
    traced: Any
    steps: int | None = None


def _placed(shapes, sharding):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)


def training_stages(config):
    """The stages of `config.stages`."""
    return make_stages(config.stages.steps, config.stages.crop_px, config.stages.batch)


def require_trainable(config, devices: int) -> None:
    """Raise UserError, as the training itself does, for keys that make no sense and batches that do not divide."""
    stages = training_stages(config)
    training_from(config, stages)
    require_divisible(stages, devices, config.train.accumulation)


def training_task(config, mesh: Mesh, number: int) -> Task:
    """The training step of stage `number` (from 1), as `training.loop` compiles it.

    Raises UserError when a stage's batch does not divide over the devices of `mesh`.
    """
    require_trainable(config, mesh.size)
    stages = training_stages(config)
    stage = stages[number - 1]
    training = training_from(config, stages)
    state = _placed(jax.eval_shape(training.initialise, config.seed), replicated(mesh))
    traced = trace_step(training.step, state, stage, mesh)
    name = f"stage {number} ({stage.crop_px} px x {stage.batch})"
    return Task("train", name, stage.batch, mesh.size, traced, stage.end - stage.start)


def evaluation_task(config, mesh: Mesh, width: int, height: int, tlc: str) -> Task:
    """The restoration of one picture of width x height pixels on each device, in float32 as evaluate.py computes it.

    tlc: see `evaluation.protocols.Protocol.tlc_window`; the protocol is that of the benchmark that is trained for.
    """
    module = module_from(config.model)
    protocol = protocol_of_training(config.data.source)
    window = protocol.tlc_window(tlc, max(stage.crop_px for stage in training_stages(config)), module.multiple)
    module = module.clone(tlc_window=window, dtype=jnp.float32, remat=False)
    shape = (mesh.size, padded_size(height, module.multiple), padded_size(width, module.multiple), 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(mesh))
    whole, split = replicated(mesh), batch_sharding(mesh)
    restore = jax.jit(restore_bytes(module), in_shardings=(whole, split), out_shardings=(split, split))
    traced = restore.trace(_placed(parameter_shapes(module), whole), images)
    windows = "without TLC" if window is None else f"TLC windows of {window} px"
    return Task(
        "evaluate", f"evaluation ({width}x{height}, {windows}, protocol {protocol.name})", mesh.size, mesh.size, traced
    )


def forward_task(config, mesh: Mesh, width: int, height: int) -> Task:
    """The bare network on one float32 picture on one device, without TLC and without gradients."""
    module = module_from(config.model)

    def forward(params, images):
        return module.apply({"params": params}, images)[-1]

    one = replicated(Mesh(mesh.devices[:1], mesh.axis_names))
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32, sharding=one)
    traced = jax.jit(forward).trace(_placed(parameter_shapes(module), one), images)
    return Task("forward", f"forward ({width}x{height})", 1, 1, traced)
