"""The named sizes and forms of the network, and how to build any other."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.errors import UserError
from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.design import Design
from concertormer_jax.ops import concerto

SIZE_FIELDS = (
    "width",
    "encoder_blocks",
    "middle_blocks",
    "decoder_blocks",
    "encoder_heads",
    "middle_heads",
    "decoder_heads",
    "expansion",
)
DESIGN_FIELDS = tuple(field.name for field in dataclasses.fields(Design))


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named size with its cost: parameters, and GMACs at 256x256 (every convolution and matrix product counted)."""

    fields: dict
    parameters: int
    gmacs: float


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


VARIANTS = {
    "gopro": Variant(_fields((6, 8, 24), 2, (24, 8, 8)), 50_535_664, 224.36),
    "lite": Variant(_fields((4, 4, 12), 2, (12, 4, 4)), 28_985_644, 119.15),
    "sidd": Variant(_fields((2, 4, 8), 16, (8, 4, 4)), 67_958_144, 131.24),
    "demo": Variant(_fields((1, 1, 2), 1, (2, 1, 1), width=16), 1_393_928, 3.84),
}


_ONE_HEAD = {"encoder_heads": (1, 1, 1), "middle_heads": 1, "decoder_heads": (1, 1, 1)}
_BARE = {"communication": "none", "sca": False}  # attention alone
RIPIENO = ("ripieno_spatial", "ripieno_channel")
CONCERTINO = ("concertino_channel", "concertino_spatial")

# The paper's ablations in its order, each a step from the one before, and then comparisons: `full` with one setting
# changed. Every one is `lite` with these fields.
ABLATIONS = {
    "gdmlp": {"groups": (), "skip": "sum"},
    "spatial_ripieno": {"groups": ("ripieno_spatial",), **_ONE_HEAD, **_BARE},
    "spatial_csa": {"groups": ("ripieno_spatial", "concertino_spatial"), **_ONE_HEAD, **_BARE},
    "channel_csa": {**_ONE_HEAD, **_BARE},
    "sca": {**_ONE_HEAD, **_BARE, "sca": True},
    "full": {},
    "two_stage": {"two_stage": True},
    "window": {"groups": (concerto.WINDOW,)},
    "window_unshifted": {"groups": (concerto.WINDOW,), "shift": False},
    "transposed": {"groups": (concerto.TRANSPOSED,)},
    "ripieno": {"groups": RIPIENO},
    "concertino": {"groups": CONCERTINO},
    "spatial_cdc": {"communication": "spatial"},
    "channel_cdc": {"communication": "channel"},
    "block_4": {"block_px": 4},
    "block_16": {"block_px": 16},
    "single_scale": {"multiscale_input": False},
    "skip_sum": {"skip": "sum"},
    "skip_concatenation": {"skip": "concatenation"},
}


def _fields_of(variant: str | None) -> dict:
    if variant is None:
        return {}
    if variant in VARIANTS:
        return VARIANTS[variant].fields
    if variant in ABLATIONS:
        return VARIANTS["lite"].fields | ABLATIONS[variant]
    raise UserError(f"model variant {variant!r} is unknown; choose one of {', '.join([*VARIANTS, *ABLATIONS])}")


def create(variant: str | None, **overrides) -> Concertormer:
    """Build the Linen module of a named variant, any field of `Concertormer` or `Design` overridden by keyword.

    variant: a name of `VARIANTS` or `ABLATIONS`. With None all fields of the size must be given. Raises UserError for
    an unknown variant or field and ValueError for a network that cannot be built.
    """
    fields = _fields_of(variant) | overrides
    known = {field.name for field in dataclasses.fields(Concertormer)} - {"parent", "name", "design"}
    known.update(DESIGN_FIELDS)
    if unknown := sorted(set(overrides) - known):
        raise UserError(f"model field {unknown[0]!r} is unknown; choose one of {', '.join(sorted(known))}")
    if missing := sorted(set(SIZE_FIELDS) - {"expansion"} - set(fields)):
        raise UserError(f"model field {missing[0]!r} must be given, since no variant is named")
    design = Design(**{name: fields.pop(name) for name in DESIGN_FIELDS if name in fields})
    module = Concertormer(**fields, design=design)
    module.validate()
    return module


def settings_of(module: Concertormer) -> dict:
    """The fields of `module` and of its design that its parameters and its function depend on, for `create`."""
    size = {name: getattr(module, name) for name in SIZE_FIELDS}
    return size | {name: getattr(module.design, name) for name in DESIGN_FIELDS}


def variant_name(module) -> str:
    """The name of the network's size or form, "custom" if it has none."""
    for name in (*VARIANTS, *ABLATIONS):
        named = create(name)
        if all(getattr(module, field, None) == getattr(named, field) for field in (*SIZE_FIELDS, "design")):
            return name
    return "custom"


def initial_params(module: Concertormer, key: jax.Array) -> dict:
    """Draw the initial parameters of `module`."""
    images = jnp.zeros((1, module.multiple, module.multiple, 3), jnp.float32)
    return module.clone(tlc_window=None).init(key, images)["params"]


def parameter_shapes(module: Concertormer) -> dict:
    """The parameter tree of `module` as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(partial(initial_params, module), jax.random.key(0))
