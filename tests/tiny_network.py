"""A network of one level for tests, and weights for it that no test has to wait for."""

import jax
import numpy as np

from concertormer_jax.models import Concertormer, create, parameter_shapes


def tiny_network(**overrides) -> Concertormer:
    """One block in each of three stages, 8 channels; any field overridden."""
    fields = {
        "width": 8,
        "encoder_blocks": (1,),
        "middle_blocks": 1,
        "decoder_blocks": (1,),
        "encoder_heads": (1,),
        "middle_heads": 2,
        "decoder_heads": (1,),
    }
    return create(None, **(fields | overrides))


def random_params(module: Concertormer) -> dict:
    """Normal numbers of standard deviation 0.3 in place of the initial values, so that every parameter matters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32), parameter_shapes(module)
    )


def random_images(*shape: int) -> np.ndarray:
    """Float images in [0, 1]."""
    return np.random.default_rng(1).random(shape, np.float32)
