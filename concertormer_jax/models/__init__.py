"""The network: `create` builds it by name, `VARIANTS` lists the names with their cost."""

from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.restormer import Restormer
from concertormer_jax.models.variants import (
    VARIANTS,
    Network,
    Variant,
    create,
    initial_params,
    parameter_shapes,
    size_of,
)

__all__ = [
    "VARIANTS",
    "Concertormer",
    "Network",
    "Restormer",
    "Variant",
    "create",
    "initial_params",
    "parameter_shapes",
    "size_of",
]
