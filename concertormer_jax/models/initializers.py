"""PyTorch's initial values, which the published networks start from."""

from functools import partial

import flax.linen as nn
import jax


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases: uniform within 1 / sqrt(fan_in) of zero."""
    bound = fan_in**-0.5
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


def torch_kaiming_normal(fan_in: int):
    """Kaiming normal with a = sqrt(5): the standard deviation is 1 / sqrt(3 fan_in)."""
    return nn.initializers.normal((3 * fan_in) ** -0.5)
