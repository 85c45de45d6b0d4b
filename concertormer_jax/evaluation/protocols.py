"""How each benchmark is scored: the metrics, the window of TLC, its sets, and which of them are averaged."""

import dataclasses

from concertormer_jax.evaluation.scores import Average, Evaluation
from concertormer_jax.inference import sizes
from concertormer_jax.inference.tiles import GRID_PX
from concertormer_jax.runtime.errors import UserError

_TRAIN_SIZE_PX = 256  # that the published grid factors refer to, whatever crops a network was trained on
_RGB = ("psnr_rgb", "ssim_rgb_3d")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """metrics: the headline PSNR and SSIM. tlc_factor: windows of so many times 256 pixels; None for no TLC.

    sets: {set: its number of test pictures}; averaged: the sets of the average that papers report, if any.
    """

    name: str
    metrics: tuple[str, str]
    tlc_factor: float | None
    sets: dict[str, int]
    averaged: tuple[str, ...] = ()

    def tlc_window(self, setting: str, train_crop_px: int | None, multiple: int = GRID_PX) -> int | None:
        """Return the TLC window in pixels, None for none; `setting` as in `sizes.tlc_window`, `auto` the protocol's.

        Pairs of no benchmark (`PAIRS`) go by `train_crop_px`, the largest training crop. multiple: of the network; the
        protocol's window is rounded up to it.
        """
        if setting != "auto" or self is PAIRS:
            return sizes.tlc_window(setting, train_crop_px, multiple)
        if self.tlc_factor is None:
            return None
        return sizes.tlc_window_at_least(round(self.tlc_factor * _TRAIN_SIZE_PX), multiple)

    def average(self, evaluations) -> Average | None:
        """Return the average over the protocol's sets; None if it has none or one of them was not evaluated."""
        by_set = {evaluation.set.name: evaluation for evaluation in evaluations}
        if not self.averaged or not by_set.keys() >= set(self.averaged):
            return None
        return Average(tuple(by_set[name] for name in self.averaged))

    def missing(self, evaluations: list[Evaluation]) -> list[str]:
        """Return the sets that the average needs and `evaluations` lack."""
        return [name for name in self.averaged if name not in {evaluation.set.name for evaluation in evaluations}]


PAIRS = Protocol("pairs", _RGB, sizes.TLC_GRID_FACTOR, {})
_DERAIN = {"test100": 100, "rain100h": 100, "rain100l": 100, "test2800": 2800, "test1200": 1200}
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
        Protocol("reds", _RGB, 2.0, {"reds": 300}),
        Protocol("sidd", ("psnr_rgb_unrounded", "ssim_rgb_3d_unrounded"), None, {"sidd": 1280}),
        PAIRS,
    )
}


def protocol_named(name: str) -> Protocol:
    """Return the protocol; UserError for an unknown name."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol={name}: is unknown; choose one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]
