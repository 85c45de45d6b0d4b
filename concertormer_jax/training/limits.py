"""The ranges of a config's numbers that no other check covers."""

import math

from concertormer_jax.errors import UserError

# By key: the least value, and the first that is too large.
_RANGES = {
    "seed": (0, 2**32),
    "train.accumulation": (1, math.inf),
    "train.ema_decay": (0, 1),
    "validation.images": (1, math.inf),
    "validation.crop_px": (1, math.inf),
    "run.log_every_steps": (1, math.inf),
    "run.checkpoint_every_steps": (1, math.inf),
}
_POSITIVE = ("optimizer.learning_rate", "optimizer.clip_norm")


def require_in_range(config) -> None:
    """Raise UserError naming the first number of `config` that is out of its range."""
    values = config.to_dict()

    def value_of(key):
        group, _, name = key.rpartition(".")
        return values[group][name] if group else values[name]

    for key in _POSITIVE:
        if not value_of(key) > 0:
            raise UserError(f"config.{key}={value_of(key)} must be greater than 0")
    for key, (least, end) in _RANGES.items():
        if not least <= value_of(key) < end:
            below = f" and less than {end}" if end < math.inf else ""
            raise UserError(f"config.{key}={value_of(key)} must be at least {least}{below}")
