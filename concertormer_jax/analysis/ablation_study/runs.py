"""One run of the ablation study: a variant is trained from one seed and scored on the held-out pictures."""

import dataclasses
import json
import time
from pathlib import Path

from ml_collections import ConfigDict

from concertormer_jax.data.sources import Sample, Source
from concertormer_jax.evaluation.evaluator import evaluate
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.models import ABLATIONS, Concertormer, variant_name
from concertormer_jax.models.costs import Cost, costs_of, total
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.training.setup import module_from, sources_from
from concertormer_jax.training.trainer import train
from concertormer_jax.training.validation import middle_crop
from concertormer_jax.weights.checkpoints import load_model

METRICS = ("psnr_rgb", "ssim_rgb_3d")
COUNTED_PX = 256  # side of the picture for which MACs are counted
_SIZES = ("width", "encoder_blocks", "middle_blocks", "decoder_blocks", "expansion")
_HEADS = ("encoder_heads", "middle_heads", "decoder_heads")


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run. scores, input_scores: mean of each of `METRICS`, of the restored pictures and the inputs;
    seconds: of training and scoring.
    """

    variant: str
    seed: int
    scores: dict[str, float]
    input_scores: dict[str, float]
    seconds: float
    devices: str


class MiddleCrops:
    """The middle `crop_px` x `crop_px` pixels of every picture, as a source for `EvaluationSet`."""

    def __init__(self, source: Source, crop_px: int):
        self._source, self._crop_px = source, crop_px

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def size(self, index: int) -> tuple[int, int]:
        return self._crop_px, self._crop_px

    def whole(self, index: int) -> Sample:
        degraded, target = self._source.whole(index)
        return middle_crop(degraded, self._crop_px), middle_crop(target, self._crop_px)


def config_of(config: ConfigDict, variant: str, seed: int) -> ConfigDict:
    """Return `config` with the network changed to the ablation `variant` of the same size, and with `seed`.

    Where the entry of `variant` in `ABLATIONS` has one head at every level, the network has so too. The only checkpoint
    is the last, so that the held-out pictures choose nothing. Raises UserError for an unknown variant and for a config
    of another network.
    """
    if variant not in ABLATIONS:
        raise UserError(f"--variants: {variant!r} is unknown; choose from {', '.join(ABLATIONS)}")
    base = module_from(config.model)
    if not isinstance(base, Concertormer):
        raise UserError(f"--config: {variant_name(base)} is no Concertormer, of which the forms are")
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        changed.seed = seed
        changed.model.variant = variant
        for field in _SIZES + _HEADS:
            changed.model[field] = getattr(base, field)
        if "middle_heads" in ABLATIONS[variant]:
            one = (1,) * base.levels
            changed.model.encoder_heads, changed.model.middle_heads, changed.model.decoder_heads = one, 1, one
        changed.run.checkpoint_every_steps = sum(config.stages.steps)
    return changed


def cost_of(config: ConfigDict, variant: str) -> Cost:
    """Return the cost, for a picture of `COUNTED_PX`, of the ablation `variant` at the size of `config`."""
    module = module_from(config_of(config, variant, 0).model)
    parts = costs_of(module, COUNTED_PX, COUNTED_PX).values()
    return total(cost for stage in parts for cost in stage.values())


def finished(folder: AnyPath) -> Result | None:
    """Return the result in `folder`, None if the run is not finished. Raises UserError for a damaged one."""
    path = Path(folder, "result.json")
    if not path.exists():
        return None
    try:
        return Result(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged; remove it to score this run again") from error


def run(config: ConfigDict, variant: str, seed: int, folder: AnyPath) -> Result:
    """Train and score one variant from one seed in `folder`, or go on with an interrupted run there.

    Raises UserError and Stopped like `trainer.train` and `evaluator.evaluate`.
    """
    start = time.perf_counter()
    config = config_of(config, variant, seed)
    train(config, folder)
    _, held_out = sources_from(config)
    pictures = EvaluationSet("held-out", MiddleCrops(held_out, config.validation.crop_px))
    evaluation = evaluate(load_model(folder), pictures, Path(folder, "evaluation"), tlc="off", metrics=METRICS)
    result = Result(
        variant=variant,
        seed=seed,
        scores={metric: evaluation.mean("restored", metric) for metric in METRICS},
        input_scores={metric: evaluation.mean("input", metric) for metric in METRICS},
        seconds=round(time.perf_counter() - start, 1),
        devices=evaluation.devices,
    )
    write_text(Path(folder, "result.json"), json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result
