"""The named sizes of the network, and how to build any other."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.errors import UserError
from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.restormer import Restormer

Network = Concertormer | Restormer
NETWORKS = {"Concertormer": Concertormer, "Restormer": Restormer}
SETTINGS = ("tlc_window", "dtype", "remat")  # fields of a network that its parameters do not depend on


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named size with its cost: parameters, and GMACs at 256x256 (every convolution and matrix product counted).

    fields: those of `network` that make its size.
    """

    fields: dict
    parameters: int
    gmacs: float
    network: type[Network] = Concertormer


def _fields(encoder_blocks, middle_blocks, decoder_blocks, width=48):
    return {
        "width": width,
        "encoder_blocks": encoder_blocks,
        "middle_blocks": middle_blocks,
        "decoder_blocks": decoder_blocks,
        "encoder_heads": (1, 2, 4),
        "middle_heads": 8,
        "decoder_heads": (4, 2, 1),
        "expansion": 2,
    }


RESTORMER = {
    "width": 48,
    "encoder_blocks": (4, 6, 6),
    "middle_blocks": 8,
    "decoder_blocks": (6, 6, 4),
    "refinement_blocks": 4,
    "encoder_heads": (1, 2, 4),
    "middle_heads": 8,
    "decoder_heads": (4, 2, 1),
    "expansion": 2.66,
    "norm_bias": True,
}

VARIANTS = {
    "gopro": Variant(_fields((6, 8, 24), 2, (24, 8, 8)), 50_535_664, 224.36),
    "lite": Variant(_fields((4, 4, 12), 2, (12, 4, 4)), 28_985_644, 119.15),
    "sidd": Variant(_fields((2, 4, 8), 16, (8, 4, 4)), 67_958_144, 131.24),
    "demo": Variant(_fields((1, 1, 2), 1, (2, 1, 1), width=16), 1_393_928, 3.84),
    "restormer": Variant(RESTORMER, 26_126_644, 154.88, Restormer),
    "restormer_bias_free": Variant({**RESTORMER, "norm_bias": False}, 26_111_668, 154.88, Restormer),
}


def create(variant: str | None, network: str = "Concertormer", **overrides) -> Network:
    """Build the Linen module of a named variant, any field of its network overridden by keyword.

    With `variant=None` all fields of the size must be given, and the `network` that has them, a name of `NETWORKS`.
    Raises UserError for an unknown variant or field and ValueError for a network that cannot be built.
    """
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"model variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    kind = VARIANTS[variant].network if variant is not None else NETWORKS[network]
    known = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
    if unknown := sorted(set(overrides) - known):
        raise UserError(f"model field {unknown[0]!r} is unknown; choose one of {', '.join(sorted(known))}")
    fields = VARIANTS[variant].fields if variant is not None else {}
    optional = {field.name for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}
    if missing := sorted(known - optional - set(fields) - set(overrides)):
        raise UserError(f"model field {missing[0]!r} must be given, since no variant is named")
    module = kind(**{**fields, **overrides})
    module.validate()
    return module


def size_of(module: Network) -> dict:
    """What the parameters of `module` depend on: `create(None, **size_of(module))` has the same."""
    names = [field.name for field in dataclasses.fields(module) if field.name not in (*SETTINGS, "parent", "name")]
    return {"network": type(module).__name__, **{name: getattr(module, name) for name in names}}


def initial_params(module: Network, key: jax.Array) -> dict:
    """Draw the initial parameters of `module`."""
    images = jnp.zeros((1, module.multiple, module.multiple, 3), jnp.float32)
    return module.clone(tlc_window=None).init(key, images)["params"]


def parameter_shapes(module: Network) -> dict:
    """The parameter tree of `module` as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(partial(initial_params, module), jax.random.key(0))
