"""The schedule of a run: phases of growing crops and shrinking batches, the learning rate over them, the optimiser."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from concertormer_jax.ops.platform import platform
from concertormer_jax.runtime.errors import UserError

_MUON_UPDATE_RMS = 0.2  # root mean square of a step at learning rate 1, about that of Adam (arXiv 2502.16982)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps `start` to `end` - 1, on crops of `crop_px` x `crop_px` pixels.

    batch: images per step over all devices; position: of the first image in the stream of samples.
    """

    number: int
    start: int
    end: int
    crop_px: int
    batch: int
    position: int

    def position_at(self, step: int) -> int:
        """The position in the stream of samples of the first image of the batch for `step`."""
        return self.position + (step - self.start) * self.batch

    @property
    def work(self) -> int:
        """Pixels of a step, to which its time is about proportional."""
        return self.batch * self.crop_px**2


def make_phases(steps: Sequence[int], crop_px: Sequence[int], batch: Sequence[int]) -> list[Phase]:
    """Build the phases, given as three sequences of equal length.

    Raises UserError when the lengths differ, a number is not positive, or a crop is not a multiple of 8 pixels.
    """
    if not len(steps) == len(crop_px) == len(batch) or not steps:
        raise UserError(
            f"config.stages.steps={tuple(steps)}, crop_px={tuple(crop_px)} and batch={tuple(batch)} "
            "must have one entry for each phase"
        )
    if min(*steps, *crop_px, *batch) < 1 or any(crop % 8 for crop in crop_px):
        raise UserError(
            f"config.stages.steps={tuple(steps)}, crop_px={tuple(crop_px)} and batch={tuple(batch)} "
            "must be positive, and the crops multiples of 8 pixels"
        )
    phases, start, position = [], 0, 0
    for number, (count, crop, images) in enumerate(zip(steps, crop_px, batch, strict=True), 1):
        phases.append(Phase(number, start, start + count, crop, images, position))
        start, position = start + count, position + count * images
    return phases


def require_divisible(phases: Sequence[Phase], devices: int, accumulation: int) -> None:
    """Raise UserError, with the numbers, when a phase's batch does not divide over the devices and their parts."""
    for phase in phases:
        if phase.batch % (devices * accumulation):
            raise UserError(
                f"the batch of {phase.batch} images of phase {phase.number} does not divide over {devices} devices "
                f"x {accumulation} accumulated parts; change config.stages.batch or config.train.accumulation"
            )


def cosine(learning_rate: float, final_learning_rate: float, steps: int, constant_steps: int = 0) -> optax.Schedule:
    """`learning_rate` up to step `constant_steps`, then one cosine to `final_learning_rate` at step `steps`.

    Raises UserError when nothing is left for the cosine.
    """
    if not 0 <= constant_steps < steps:
        raise UserError(
            f"config.optimizer.constant_steps={constant_steps} must be at least 0 and less than the {steps} steps of "
            "all phases"
        )
    decay = optax.cosine_decay_schedule(
        learning_rate, steps - constant_steps, alpha=final_learning_rate / learning_rate
    )
    return lambda step: decay(jnp.maximum(step - constant_steps, 0))


def global_norm(tree: Any) -> jax.Array:
    """The root of the sum of the squares of all numbers in a tree of float32 arrays.

    XLA on a CPU would compile a sum for every shape, so there the numbers are joined first.
    """
    if platform() != "cpu":
        return optax.tree.norm(tree)
    return jnp.linalg.norm(jnp.concatenate([part.reshape(-1) for part in jax.tree.leaves(tree)]))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scale the gradient down to the global norm `largest` where its norm is larger: one factor for all its numbers.

    `optax.clip_by_global_norm` divides each number by the norm. XLA does that in a pass of its own.
    """

    def update(updates, state, params=None):
        factor = largest / jnp.maximum(global_norm(updates), largest)
        return jax.tree.map(lambda part: part * factor, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def adamw(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on every parameter, after clipping the gradient to a global norm."""
    return optax.chain(
        clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay),
    )


def muon(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks and between levels, AdamW of half the learning rate for all else.

    Muon moves a matrix by its gradient's mean with all singular values set to about 1 (Newton-Schulz iterations). Both
    have Nesterov momentum. clip_norm: the largest global norm of the gradient.
    """
    return optax.chain(
        clip_by_global_norm(clip_norm),
        optax.contrib.muon(
            schedule,
            weight_decay=weight_decay,
            consistent_rms=_MUON_UPDATE_RMS,
            muon_weight_dimension_numbers=_matrices,
            adam_b1=beta1,
            adam_b2=beta2,
            eps=epsilon,
            adam_learning_rate=lambda step: 0.5 * schedule(step),
            adam_weight_decay=weight_decay,
        ),
    )


OPTIMIZERS = {"adamw": adamw, "muon": muon}


def _matrices(params):
    """Of each parameter, the axes that multiply channels as a matrix, or None: the others are AdamW's."""

    def axes(path, parameter):
        names = [entry.key for entry in path]
        if "blocks" in names and parameter.ndim == 3 and names[-1] != "temperature":  # [blocks, in, out]
            return optax.contrib.MuonDimensionNumbers(1, 2)
        if names[0].startswith(("downs_", "ups_")) and names[-1] == "kernel":  # [y, x, in, out]
            return optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
        return None

    return jax.tree_util.tree_map_with_path(axes, params)
