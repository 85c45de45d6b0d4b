"""Figures of what a trained network does with a picture."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from concertormer_jax.analysis.attention_maps import attention_maps, attention_sheet
from concertormer_jax.analysis.attribution import PathIntegral, influence_on_middle, radius_holding
from concertormer_jax.analysis.reports import attribution_sheet, receptive_field_picture
from concertormer_jax.analysis.windows import Window, restoring
from concertormer_jax.ops import image as image_ops
from concertormer_jax.photos.sheets import side_by_side
from concertormer_jax.training.losses import l1_fft
from docs.figures.drawing import INK, KEY, QUERY, figure, finished, picture

SHARES = (0.5, 0.9, 0.99)


class Example(NamedTuple):
    """A picture, what was made of it, and what it should be: float32 [H, W, 3] in [0, 1].

    outputs: of the network, finest first; H and W multiples of what the network pads to.
    """

    blurred: np.ndarray
    target: np.ndarray
    outputs: list[np.ndarray]

    def scales(self, picture: np.ndarray) -> list[np.ndarray]:
        """The picture at the scale of every output."""
        coarser = [image_ops.downsample(picture[None], 2**level)[0] for level in range(1, len(self.outputs))]
        return [picture, *map(np.asarray, coarser)]


def restore(model, blurred: np.ndarray, target: np.ndarray) -> Example:
    """Let the network of a loaded checkpoint restore a picture, without TLC."""
    outputs = jax.jit(lambda params, images: model.module.apply({"params": params}, images))(
        model.params, blurred[None]
    )
    return Example(blurred, target, [np.asarray(output)[0] for output in outputs[::-1]])


def outputs(example: Example) -> Image.Image:
    """The input, the output and the target at every scale, with their PSNR."""
    targets = example.scales(example.target)
    rows = {"input": example.scales(example.blurred), "output": example.outputs, "target": targets}
    drawn, axes = figure(2.3 * len(targets), 7, len(targets), len(rows))
    for across, (name, pictures) in zip(axes, rows.items(), strict=True):
        for level, (panel, shown, target) in enumerate(zip(across, pictures, targets, strict=True)):
            score = "" if name == "target" else f", {_psnr(shown, target):.2f} dB"
            scale = "" if level == 0 else f"1/{2**level} "
            picture(panel, np.clip(shown, 0, 1), f"{scale}{name}{score}")
    return finished(drawn)


def loss(example: Example) -> Image.Image:
    """Where and at which frequencies the input and the restored picture differ from the target."""
    drawn, axes = figure(11, 3.1, 4)
    errors = {"input": example.blurred - example.target, "output": example.outputs[0] - example.target}
    top = max(np.abs(error).mean(axis=2).max() for error in errors.values()) / 2
    for panel, (name, error) in zip(axes[:2], errors.items(), strict=True):
        in_space = np.abs(error).mean()
        picture(panel, np.abs(error).mean(axis=2), f"|{name} - target|\nmean {in_space:.4f}", cmap="magma", vmax=top)
    spectra = {name: np.abs(np.fft.fft2(error, axes=(0, 1))).mean(axis=2) for name, error in errors.items()}
    ratio = np.fft.fftshift(spectra["output"] / spectra["input"])
    picture(axes[2], np.log2(ratio), "spectrum of the error, output by input:\nblue where it became smaller",
            cmap="RdBu_r", vmin=-1.5, vmax=1.5, extent=(-0.5, 0.5, -0.5, 0.5))  # fmt: skip
    for (name, spectrum), colour in zip(spectra.items(), (QUERY, KEY), strict=True):
        frequency, mean = _over_rings(spectrum)
        whole = float(l1_fft(jnp.asarray(errors[name])[None], jnp.zeros((1, *errors[name].shape))))
        axes[3].plot(frequency, mean, color=colour, label=f"{name}: loss {whole:.3f}")
    axes[3].set_yscale("log")
    axes[3].set_title("mean modulus of the spectrum", fontsize=9, color=INK)
    axes[3].set_xlabel("frequency, cycles per pixel", fontsize=8)
    axes[3].tick_params(labelsize=7)
    axes[3].legend(fontsize=8, frameon=False)
    return finished(drawn)


def _over_rings(spectrum: np.ndarray):
    """The mean of a spectrum over rings of equal frequency: the frequencies in cycles per pixel, and the means."""
    rows, columns = (np.fft.fftfreq(length) for length in spectrum.shape)
    radius = np.hypot(rows[:, None], columns)
    ring = np.round(radius * 64).astype(int)
    counts, sums = np.bincount(ring.ravel()), np.bincount(ring.ravel(), spectrum.ravel())
    inside = np.arange(1, 33)
    return inside / 64, sums[inside] / counts[inside]


def attention(model, example: Example, stage: str, block: int) -> Image.Image:
    """The maps of all four groups before and after their communication. block: of the stage, from 0."""
    maps = attention_maps(model.module, model.params, example.blurred, stage, block)
    return attention_sheet(maps, *example.blurred.shape[:2], model.module.multiple)


def attribution(model, example: Example, window: Window) -> Image.Image:
    """The local attribution map of a window, with the diffusion index."""
    found = PathIntegral(restoring(model))(example.blurred, window)
    shown = np.rint(255 * example.blurred).astype(np.uint8)
    sheet = attribution_sheet(shown, found.strength, window)
    label = f"diffusion index {found.diffusion_index:.1f}; sum of the contributions / change {found.completeness:.3f}"
    return side_by_side([np.asarray(sheet)], [label])


def receptive_field(model, example: Example) -> Image.Image:
    """The input beside how far the middle pixel of the output looks."""
    field = np.asarray(jax.jit(influence_on_middle)(restoring(model), jnp.asarray(example.blurred)[None]))[0]
    radii = {f"{share:.0%}": radius_holding(field, share) for share in SHARES}
    return receptive_field_picture(field, radii)


def _psnr(shown, target):
    return -10 * np.log10(np.mean((np.clip(shown, 0, 1) - target) ** 2))
