"""The optimiser and the learning rate of the recipe."""

import optax


def cosine(learning_rate: float, final_learning_rate: float, steps: int) -> optax.Schedule:
    """One cosine from `learning_rate` at step 0 to `final_learning_rate` at step `steps`, no warm-up."""
    return optax.cosine_decay_schedule(learning_rate, steps, alpha=final_learning_rate / learning_rate)


def adamw(
    schedule: optax.Schedule, *, beta1: float, beta2: float, epsilon: float, weight_decay: float, clip_norm: float
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay on every parameter, after clipping the gradient to a global norm."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, b1=beta1, b2=beta2, eps=epsilon, weight_decay=weight_decay),
    )
