"""Progressive training: stages of growing crops and shrinking batches under one schedule."""

import dataclasses
from collections.abc import Sequence

from concertormer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps `start` to `end` - 1, on crops of `crop_px` x `crop_px` pixels.

    batch: images per step over all devices; position: of the first image in the stream of samples.
    """

    number: int
    start: int
    end: int
    crop_px: int
    batch: int
    position: int

    def position_at(self, step: int) -> int:
        """The position in the stream of samples of the first image of the batch for `step`."""
        return self.position + (step - self.start) * self.batch

    @property
    def work(self) -> int:
        """Pixels of a step, to which its time is about proportional."""
        return self.batch * self.crop_px**2


def make_stages(steps: Sequence[int], crop_px: Sequence[int], batch: Sequence[int]) -> list[Stage]:
    """Build the stages, given as three sequences of equal length.

    Raises UserError when the lengths differ, a number is not positive, or a crop is not a multiple of 8 pixels.
    """
    if not len(steps) == len(crop_px) == len(batch) or not steps:
        raise UserError(
            f"config.stages.steps={tuple(steps)}, crop_px={tuple(crop_px)} and batch={tuple(batch)} "
            "must have one entry for each stage"
        )
    if min(*steps, *crop_px, *batch) < 1 or any(crop % 8 for crop in crop_px):
        raise UserError(
            f"config.stages.steps={tuple(steps)}, crop_px={tuple(crop_px)} and batch={tuple(batch)} "
            "must be positive, and the crops multiples of 8 pixels"
        )
    stages, start, position = [], 0, 0
    for number, (count, crop, images) in enumerate(zip(steps, crop_px, batch, strict=True), 1):
        stages.append(Stage(number, start, start + count, crop, images, position))
        start, position = start + count, position + count * images
    return stages


def require_divisible(stages: Sequence[Stage], devices: int, accumulation: int) -> None:
    """Raise UserError, with the numbers, when a stage's batch does not divide over the devices and their parts."""
    for stage in stages:
        if stage.batch % (devices * accumulation):
            raise UserError(
                f"the batch of {stage.batch} images of stage {stage.number} does not divide over {devices} devices "
                f"x {accumulation} accumulated parts; change config.stages.batch or config.train.accumulation"
            )
