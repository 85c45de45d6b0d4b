"""What is scored, how each benchmark is scored, and what was found: sets, protocols, scores, means and averages."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from concertormer_jax.data.degrade.benchmarks import Bicubic, GaussianNoise
from concertormer_jax.inference import tiles
from concertormer_jax.inference.tiles import GRID_PX
from concertormer_jax.runtime.errors import UserError

_TRAIN_SIZE_PX = 256  # that the published grid factors refer to, whatever crops a network was trained on
_RGB = ("psnr_rgb", "ssim_rgb_3d")


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A named set of pairs.

    source: has a length, and for every index `name(index)`, `size(index)` (height, width), and `whole(index)`, which
    gives (input, target), [H, W, 3] each: uint8, or the input float32 on the same scale.
    """

    name: str
    source: Any

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The name of every pair."""
        return tuple(self.source.name(index) for index in range(len(self)))

    @functools.cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every pair."""
        return tuple(tuple(self.source.size(index)) for index in range(len(self)))

    @functools.cached_property
    def files(self) -> tuple[Path, ...]:
        """The picture files of all pairs; none for sets that are stored in another way."""
        items = getattr(self.source, "items", ())
        return tuple(getattr(item, part) for item in items for part in ("input", "target") if hasattr(item, part))

    def read(self, index: int):
        """Return (input, target), [H, W, 3] each. Raises UserError naming a file that cannot be read."""
        return self.source.whole(index)


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """One picture's scores by metric name, those of the restored picture and those of the input itself.

    index: in its set; file: the restored picture. window_covers: whether one TLC window covers the padded picture, so
    that TLC does nothing. converged: RealBlur's alignment of the restored picture and of the input, None without it.
    """

    index: int
    name: str
    height: int
    width: int
    file: Path
    window_covers: bool
    restored: dict[str, float]
    input: dict[str, float]
    converged: tuple[bool, bool] | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a network, or of pictures made elsewhere, on one set.

    checkpoint: a description of what made the pictures; variant: the network's name in `VARIANTS`, or "custom", or None
    for pictures made elsewhere. tlc: the setting as given; tlc_window: in pixels, None for off. precision: of a float32
    network's products (`compiled.PRECISIONS`), the type that another network computes in, or None for pictures made
    elsewhere.
    """

    checkpoint: str
    variant: str | None
    protocol: str
    set: EvaluationSet
    tlc: str
    tlc_window: int | None
    precision: str | None
    metrics: tuple[str, ...]
    images: tuple[ImageScores, ...]
    devices: str
    seconds: float

    def mean(self, which: str, metric: str) -> float:
        """Return the mean over the images; which: "restored" or "input"."""
        return float(np.mean([getattr(image, which)[metric] for image in self.images]))

    def gain(self, metric: str) -> float:
        """Return how much higher the mean of the restored images is than that of the inputs; 0 if both are infinite."""
        return difference(self.mean("restored", metric), self.mean("input", metric))

    def unaligned(self, which: str) -> int | None:
        """Return on how many pictures RealBlur's alignment did not converge; None if it was not asked for."""
        place = ("restored", "input").index(which)
        outcomes = [image.converged[place] for image in self.images if image.converged is not None]
        return outcomes.count(False) if outcomes else None


@dataclasses.dataclass(frozen=True)
class Average:
    """The plain average of the means of several sets, however many images each of them has."""

    parts: tuple[Evaluation, ...]

    def mean(self, which: str, metric: str) -> float:
        """Return the mean over the sets of `Evaluation.mean`."""
        return float(np.mean([part.mean(which, metric) for part in self.parts]))

    def gain(self, metric: str) -> float:
        """Return how much higher the average of the restored images is than that of the inputs."""
        return difference(self.mean("restored", metric), self.mean("input", metric))


def difference(a: float, b: float) -> float:
    """Return a - b, and 0 for equal infinities."""
    return 0.0 if a == b else a - b


@dataclasses.dataclass(frozen=True)
class Protocol:
    """metrics: the headline PSNR and SSIM. tlc_factor: windows of so many times 256 pixels; None for no TLC.

    sets: {set: its number of test pictures}; averaged: the sets of the average that papers report, if any. degradation:
    what makes the inputs of clean pictures; None where the data are pairs. border_px: pixels at each side that are not
    scored.
    """

    name: str
    metrics: tuple[str, str]
    tlc_factor: float | None
    sets: dict[str, int]
    averaged: tuple[str, ...] = ()
    degradation: GaussianNoise | Bicubic | None = None
    border_px: int = 0

    def tlc_window(self, setting: str, train_crop_px: int | None, multiple: int = GRID_PX) -> int | None:
        """Return the TLC window in pixels, None for none; `setting` as in `tiles.tlc_window`, `auto` the protocol's.

        Pairs of no benchmark (`PAIRS`) go by `train_crop_px`, the largest training crop. multiple: of the network; the
        protocol's window is rounded up to it.
        """
        if setting != "auto" or self is PAIRS:
            return tiles.tlc_window(setting, train_crop_px, multiple)
        if self.tlc_factor is None:
            return None
        return tiles.tlc_window_at_least(round(self.tlc_factor * _TRAIN_SIZE_PX), multiple)

    def average(self, evaluations) -> Average | None:
        """Return the average over the protocol's sets; None if it has none or one of them was not evaluated."""
        by_set = {evaluation.set.name: evaluation for evaluation in evaluations}
        if not self.averaged or not by_set.keys() >= set(self.averaged):
            return None
        return Average(tuple(by_set[name] for name in self.averaged))

    def missing(self, evaluations: list[Evaluation]) -> list[str]:
        """Return the sets that the average needs and `evaluations` lack."""
        return [name for name in self.averaged if name not in {evaluation.set.name for evaluation in evaluations}]


PAIRS = Protocol("pairs", _RGB, tiles.TLC_GRID_FACTOR, {})
_DERAIN = {"test100": 100, "rain100h": 100, "rain100l": 100, "test2800": 2800, "test1200": 1200}
_DENOISE = {"cbsd68": 68, "kodak24": 24, "mcmaster": 18, "urban100": 100}
_SUPER_RESOLUTION = {"set5": 5, "set14": 14, "bsd100": 100, "urban100": 100, "manga109": 109}
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("gopro", _RGB, 1.75, {"gopro": 1111}),
        Protocol("hide", _RGB, 2.0, {"hide": 2025}),
        Protocol("realblur_r", ("psnr_realblur", "ssim_realblur"), 1.25, {"realblur_r": 980}),
        Protocol("realblur_j", ("psnr_realblur", "ssim_realblur"), 1.25, {"realblur_j": 980}),
        Protocol(
            "derain", ("psnr_y", "ssim_y"), 1.75, _DERAIN, averaged=("test100", "rain100h", "rain100l", "test2800")
        ),
        Protocol("rsblur", ("psnr_rsblur", "ssim_rsblur"), 1.25, {"rsblur": 3360}),
        Protocol("reds", _RGB, 2.0, {"reds": 300}),
        Protocol("reds_blur", _RGB, 2.0, {"reds_blur": 300}),
        Protocol("sidd", ("psnr_rgb_unrounded", "ssim_rgb_3d_unrounded"), None, {"sidd": 1280}),
        *(
            Protocol(f"denoise_{sigma}", _RGB, 1.75, _DENOISE, degradation=GaussianNoise((sigma, sigma)))
            for sigma in (15, 25, 50)
        ),
        *(
            Protocol(
                f"super_resolution_x{scale}",
                ("psnr_y_float", "ssim_y_float"),
                1.75,
                _SUPER_RESOLUTION,
                degradation=Bicubic(scale),
                border_px=scale,
            )
            for scale in (2, 4)
        ),
        PAIRS,
    )
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol `name`. Raises UserError for an unknown one."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol={name}: is unknown; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
