"""A Restormer of one level for tests."""

from concertormer_jax.models import Restormer, create

TINY_FIELDS = {
    "width": 8,
    "encoder_blocks": (2,),
    "middle_blocks": 1,
    "decoder_blocks": (1,),
    "refinement_blocks": 1,
    "encoder_heads": (2,),
    "middle_heads": 2,
    "decoder_heads": (2,),
}


def tiny_restormer(variant: str = "restormer", **overrides) -> Restormer:
    """At most two blocks in each of four stages, 8 channels, 2 heads; any field overridden."""
    return create(variant, **(TINY_FIELDS | overrides))
