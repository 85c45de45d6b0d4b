"""The optimiser and the learning rate of the recipe."""

import jax.numpy as jnp
import optax

from concertormer_jax.errors import UserError


def cosine(learning_rate: float, final_learning_rate: float, steps: int, constant_steps: int = 0) -> optax.Schedule:
    """`learning_rate` up to step `constant_steps`, then one cosine to `final_learning_rate` at step `steps`.

    Raises UserError when nothing is left for the cosine.
    """
    if not 0 <= constant_steps < steps:
        raise UserError(
            f"config.optimizer.constant_steps={constant_steps} must be at least 0 and less than the {steps} steps of "
            "all stages"
        )
    decay = optax.cosine_decay_schedule(
        learning_rate, steps - constant_steps, alpha=final_learning_rate / learning_rate
    )
    return lambda step: decay(jnp.maximum(step - constant_steps, 0))


def adamw(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on every parameter, after clipping the gradient to a global norm."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay),
    )
