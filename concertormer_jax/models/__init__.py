"""The networks: `create` builds one by name, `VARIANTS` lists the sizes with their cost, `ABLATIONS` the other forms.

`ConcertoSelfAttention` is the attention alone, for other networks.
"""

from concertormer_jax.models.architecture import Architecture
from concertormer_jax.models.concerto_attention import LOGITS, ConcertoSelfAttention
from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.restormer import Restormer
from concertormer_jax.models.variants import (
    ABLATIONS,
    VARIANTS,
    Network,
    Variant,
    create,
    declared_params,
    initial_params,
    parameter_shapes,
    settings_of,
    variant_name,
)

__all__ = [
    "ABLATIONS",
    "LOGITS",
    "VARIANTS",
    "Architecture",
    "ConcertoSelfAttention",
    "Concertormer",
    "Network",
    "Restormer",
    "Variant",
    "create",
    "declared_params",
    "initial_params",
    "parameter_shapes",
    "settings_of",
    "variant_name",
]
