"""The network: `create` builds it by name, `VARIANTS` lists the names with their cost."""

from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.variants import VARIANTS, Variant, create, initial_params, parameter_shapes

__all__ = ["VARIANTS", "Concertormer", "Variant", "create", "initial_params", "parameter_shapes"]
