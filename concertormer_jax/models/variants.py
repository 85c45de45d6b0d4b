"""The named sizes and forms of the network, and how to build any other."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from concertormer_jax.models.architecture import Architecture
from concertormer_jax.models.concerto_attention import weights_alone
from concertormer_jax.models.concertormer import Concertormer
from concertormer_jax.models.initial_values import declaring, draw
from concertormer_jax.models.restormer import Restormer
from concertormer_jax.ops import concerto
from concertormer_jax.runtime.errors import UserError

Network = Concertormer | Restormer
NETWORKS = {"Concertormer": Concertormer, "Restormer": Restormer}
RUN_FIELDS = {"tlc_window", "dtype", "remat", "implementation"}  # what may differ between two uses of the same weights
ARCHITECTURE_FIELDS = tuple(field.name for field in dataclasses.fields(Architecture))


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


# For laptops: the finest level works on 2x2 pixels at once, where wide products suit a CPU better than narrow ones.
_POCKET = {
    "width": 32,
    "unshuffle": 2,
    "encoder_blocks": (1, 2),
    "middle_blocks": 4,
    "decoder_blocks": (2, 1),
    "encoder_heads": (1, 2),
    "middle_heads": 4,
    "decoder_heads": (2, 1),
}

_RESTORMER = {
    "width": 48,
    "encoder_blocks": (4, 6, 6),
    "middle_blocks": 8,
    "decoder_blocks": (6, 6, 4),
    "refinement_blocks": 4,
    "encoder_heads": (1, 2, 4),
    "middle_heads": 8,
    "decoder_heads": (4, 2, 1),
    "expansion": 2.66,
}

VARIANTS = {
    "gopro": Variant(_fields((6, 8, 24), 2, (24, 8, 8)), 50_535_664, 224.36),
    "lite": Variant(_fields((4, 4, 12), 2, (12, 4, 4)), 28_985_644, 119.15),
    "sidd": Variant(_fields((2, 4, 8), 16, (8, 4, 4)), 67_958_144, 131.24),
    "demo": Variant(_fields((1, 1, 2), 1, (2, 1, 1), width=16), 1_393_928, 3.84),
    "pocket": Variant(_POCKET, 2_187_440, 3.76),
    "restormer": Variant(_RESTORMER, 26_126_644, 154.88, Restormer),
    "restormer_bias_free": Variant({**_RESTORMER, "norm_bias": False}, 26_111_668, 154.88, Restormer),
    "restormer_csa": Variant({**_RESTORMER, "attention": "concerto"}, 31_004_520, 148.90, Restormer),
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


def create(variant: str | None, network: str = "Concertormer", **overrides) -> Network:
    """Build the Linen module of a named variant, any field of it (or of its `Architecture`) overridden by keyword.

    variant: a name of `VARIANTS` or `ABLATIONS`. With None all fields of the size must be given, and `network` says
    which of `NETWORKS` has them. Raises UserError for an unknown variant or field and ValueError for a network that
    cannot be built.
    """
    fields = _fields_of(variant) | overrides
    kind = VARIANTS[variant].network if variant in VARIANTS else NETWORKS[network]
    known = {field.name: field for field in _dataclass_fields(kind) if field.name not in ("parent", "name")}
    needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
    names = set(known) - {"architecture"} | (set(ARCHITECTURE_FIELDS) if "architecture" in known else set())
    if unknown := sorted(set(overrides) - names):
        raise UserError(f"model field {unknown[0]!r} is unknown; choose one of {', '.join(sorted(names))}")
    if missing := sorted(needed - set(fields)):
        raise UserError(f"model field {missing[0]!r} must be given, since no variant is named")
    if "architecture" in known:
        fields["architecture"] = Architecture(
            **{name: fields.pop(name) for name in ARCHITECTURE_FIELDS if name in fields}
        )
    module = kind(**fields)
    module.validate()
    return module


def _dataclass_fields(module: Any) -> tuple[dataclasses.Field, ...]:
    """The fields of a Linen module or its class, of which Linen makes a dataclass."""
    return dataclasses.fields(module)


def settings_of(module: Network) -> dict:
    """What the parameters and the function of `module` depend on, as `create(None, **settings)` takes it."""
    fields = {field.name: getattr(module, field.name) for field in _dataclass_fields(module)}
    architecture = fields.pop("architecture", None)
    settings = {name: value for name, value in fields.items() if name not in RUN_FIELDS | {"parent", "name"}}
    return {"network": type(module).__name__} | settings | (dataclasses.asdict(architecture) if architecture else {})


def variant_name(module) -> str:
    """The name of the network's size or form, "custom" if it has none."""
    for name in (*VARIANTS, *ABLATIONS):
        named = create(name)
        if type(module) is type(named) and settings_of(module) == settings_of(named):
            return name
    return "custom"


def initial_params(module: Network, seed: int) -> dict:
    """Return initial parameters of `module`: a tree of float32 arrays of NumPy, the same for the same `seed` from 0."""
    return draw(declared_params(module), seed)


def parameter_shapes(module: Network) -> dict:
    """The parameter tree of `module` as `jax.ShapeDtypeStruct`s."""
    return nn.meta.unbox(declared_params(module))


def declared_params(module: Network) -> dict:
    """The parameter tree of `module` with a `Declared` for each array: its shape, and how it is drawn."""
    module = module.clone(tlc_window=None)
    images = jax.ShapeDtypeStruct((1, module.multiple, module.multiple, 3), jnp.float32)
    with nn.intercept_methods(weights_alone), declaring():
        return jax.eval_shape(module.init, jax.random.key(0), images)["params"]
