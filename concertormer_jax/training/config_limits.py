"""The type and range of every config key, in one table, and the rules between keys."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from concertormer_jax.data.degrade import DEGRADATIONS
from concertormer_jax.models import ABLATIONS, VARIANTS
from concertormer_jax.models.architecture import COMMUNICATION, SKIPS
from concertormer_jax.models.restormer import ATTENTIONS
from concertormer_jax.ops.concerto import GROUPS
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.values import NamesOf, Number, OneOf, OrNone, Several, Switch, Text, Whole, shown
from concertormer_jax.training.schedule import OPTIMIZERS, make_phases
from concertormer_jax.training.trackers import TRACKERS

DTYPES = ("float32", "bfloat16")
MOST_STEPS = 10**9  # of a run: the state counts them in 32 bits
MOST_PIXELS = 2**32  # of a step
LEAST_SHARE = 0.001  # to which a mixture of sources meets its shares
_BELOW_ONE = 0.999999  # float32 rounds what is much nearer to 1, and Adam's correction would divide by 0


_STEPS = Whole(1, MOST_STEPS)
_CHANNELS, _BLOCKS, _HEADS = Whole(1, 4096), Whole(1, 1000), Whole(1, 4096)
_LEVELS = (1, 8)  # fewest and most
_PHASES = (1, 100)

# In the order of configs/common.py, which says what each key means.
KEYS = {
    "seed": Whole(0, 2**32 - 1),
    "init_from": Text(),
    "model.variant": OneOf((*VARIANTS, *ABLATIONS, "")),
    "model.width": OrNone(_CHANNELS),
    "model.encoder_blocks": OrNone(Several(_BLOCKS, *_LEVELS)),
    "model.middle_blocks": OrNone(_BLOCKS),
    "model.decoder_blocks": OrNone(Several(_BLOCKS, *_LEVELS)),
    "model.encoder_heads": OrNone(Several(_HEADS, *_LEVELS)),
    "model.middle_heads": OrNone(_HEADS),
    "model.decoder_heads": OrNone(Several(_HEADS, *_LEVELS)),
    "model.refinement_blocks": OrNone(_BLOCKS),
    "model.expansion": OrNone(Number(0.01, 64)),
    "model.unshuffle": OrNone(Whole(1, 16)),
    "model.attention": OrNone(OneOf(ATTENTIONS)),
    "model.norm_bias": OrNone(Switch()),
    "model.groups": OrNone(NamesOf(tuple(GROUPS))),
    "model.communication": OrNone(OneOf(COMMUNICATION)),
    "model.sca": OrNone(Switch()),
    "model.shift": OrNone(Switch()),
    "model.block_px": OrNone(Whole(2, 256, multiple=2)),
    "model.two_stage": OrNone(Switch()),
    "model.multiscale_input": OrNone(Switch()),
    "model.skip": OrNone(OneOf(SKIPS)),
    "model.dtype": OneOf(DTYPES),
    "model.remat": Switch(),
    "data.source": Text(),
    "data.data_dir": Text(),
    "data.shares": Several(Number(LEAST_SHARE, 1000), 0, 1000),
    "data.flip": Switch(),
    "data.rotate": Switch(),
    "data.degradation": NamesOf(tuple(DEGRADATIONS), repeated=True),
    "data.blur_min_px": Number(0, 256),
    "data.blur_max_px": Number(0, 256),
    "data.shot_noise": Number(0, 1),
    "data.read_noise": Number(0, 1),
    "data.noise_sigma": Several(Number(0, 255), 2, 2),
    "data.jpeg_quality": Several(Whole(1, 100), 0, 2),
    "stages.steps": Several(_STEPS, *_PHASES),
    "stages.crop_px": Several(Whole(8, 4096, multiple=8), *_PHASES),
    "stages.batch": Several(Whole(1, 65536), *_PHASES),
    "train.fft_weight": Number(0, 100),
    "train.accumulation": Whole(1, 65536),
    "train.ema_decay": Number(0, _BELOW_ONE),
    "optimizer.name": OneOf(tuple(OPTIMIZERS)),
    "optimizer.learning_rate": Number(1e-12, 1000),
    "optimizer.final_learning_rate": Number(0, 1000),
    "optimizer.constant_steps": Whole(0, MOST_STEPS),
    "optimizer.weight_decay": Number(0, 10),
    "optimizer.beta1": Number(0, _BELOW_ONE),
    "optimizer.beta2": Number(0, _BELOW_ONE),
    "optimizer.epsilon": Number(1e-30, 1),
    "optimizer.clip_norm": Number(1e-12, 1e12),
    "validation.source": Text(),
    "validation.fraction": Number(1e-6, 0.5),
    "validation.images": Whole(1, 10**6),
    "validation.crop_px": Whole(8, 4096),
    "run.log_every_steps": _STEPS,
    "run.checkpoint_every_steps": _STEPS,
    "run.cache": Switch(),
    "run.tracker": NamesOf(tuple(TRACKERS)),
    "run.profile_steps": Several(_STEPS, 0, 2),
}


def require_valid(config) -> None:
    """Raise UserError, naming the first key that is wrong with its value, unless every key of `config` makes sense.

    What depends on data, devices and the network's form is checked where these are known.
    """
    require_kinds(config)
    _require_agreement(flat(config))


def require_kinds(config) -> None:
    """As `require_valid`, but each key by itself. Raises UserError."""
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config is a {type(config).__name__}; get_config() returns that of configs/common.py")
    values = flat(config)
    for key in KEYS:
        if key not in values:
            raise UserError(f"config.{key} is missing; begin with the config of configs/common.py")
    for key in values:
        require_known(key)
    for key, kind in KEYS.items():
        if values[key] not in kind:
            raise UserError(f"config.{key}={shown(values[key])} must be {kind}")


def require_known(key: str) -> None:
    """Raise UserError unless the config has `key`, written as in `KEYS`."""
    if key not in KEYS:
        raise UserError(f"config.{key}: the config has no such key; see configs/common.py")


def flat(config: ConfigDict) -> dict[str, Any]:
    """The values of `config` by key as in `KEYS`, such as "optimizer.learning_rate"."""
    found = {}
    for name, value in config.to_dict().items():
        found |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _require_agreement(values: dict) -> None:
    """Check keys against each other, each of which is in its range."""
    for low, high in (
        ("optimizer.final_learning_rate", "optimizer.learning_rate"),
        ("data.blur_min_px", "data.blur_max_px"),
    ):
        if values[low] > values[high]:
            raise UserError(f"config.{low}={values[low]} must not be more than config.{high}={values[high]}")
    for key in ("data.jpeg_quality", "run.profile_steps"):
        pair = values[key]
        if len(pair) == 1 or list(pair) != sorted(pair):
            raise UserError(f"config.{key}={pair} must be () or two numbers, the lower one first")
    if values["data.noise_sigma"][0] > values["data.noise_sigma"][1]:
        raise UserError(f"config.data.noise_sigma={values['data.noise_sigma']} must have the lower number first")
    _require_shares(values["data.shares"], [path for path in values["data.source"].split(",") if path])
    steps, crops, batches = (values[f"stages.{name}"] for name in ("steps", "crop_px", "batch"))
    if sum(steps) > MOST_STEPS:
        raise UserError(f"config.stages.steps={shown(steps)} must not be more than {MOST_STEPS} together")
    make_phases(steps, crops, batches)
    for crop, batch in zip(crops, batches, strict=True):
        if batch * crop**2 > MOST_PIXELS:
            raise UserError(
                f"config.stages.batch={shown(batches)}: {batch} images of config.stages.crop_px={crop} are "
                f"more than {MOST_PIXELS} pixels in a step"
            )


def _require_shares(shares: Sequence[float], sources: list[str]) -> None:
    if not shares:
        return
    if sources and len(shares) != len(sources):
        raise UserError(
            f"config.data.shares={shown(shares)} must have one entry for each of the {len(sources)} sources of "
            "config.data.source"
        )
    if min(shares) < LEAST_SHARE * sum(shares):
        raise UserError(f"config.data.shares={shown(shares)}: each must be at least {LEAST_SHARE} of their sum")
