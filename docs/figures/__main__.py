"""Make the figures of docs/tour.md: `python -m docs.figures --ckpt=runs/demo` (after `make train-demo`).

The diagrams need no weights; the other figures show what the network of the checkpoint, a Concertormer, does with a
bundled photograph. All are written into --output, about 1 MB. It takes some minutes on two cores.
"""

import argparse
import functools
import tempfile
from pathlib import Path

import absl.logging
import numpy as np
from PIL import Image
from tqdm import tqdm

from concertormer_jax.analysis.attribution import WINDOW
from concertormer_jax.analysis.windows import Window
from concertormer_jax.commands import summary
from concertormer_jax.data.images import read_rgb
from concertormer_jax.data.sources import open_source
from concertormer_jax.models import Concertormer, create
from concertormer_jax.runtime.devices import prepare_to_compile
from concertormer_jax.runtime.errors import UserError, reported
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_writable
from concertormer_jax.weights.checkpoints import load_model
from docs.figures import diagrams, measured

ROOT = Path(__file__).parents[2]
PHOTOS, PHOTO = ROOT / "photos" / "test", "budgie_roman_colosseum"  # CC0, see THIRD_PARTY_NOTICES.md
CUT = (slice(64, 320), slice(100, 356))  # rows and columns of the example
SMALL = (slice(60, 228), slice(100, 332))  # 232x168: no multiples of 64
DETAIL = (slice(60, 252), slice(100, 292))  # reduced to 32x32
TLC_PX = 256
STAGE, BLOCK = "encoders_1", 0
CORNER = (150, 104)  # of the attributed window in the example: the edge of an arch


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m docs.figures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, metavar="DIR", help="checkpoint, training folder or weights file")
    parser.add_argument("--output", default=str(ROOT / "docs" / "tour"), metavar="DIR", help="default: docs/tour")
    parser.add_argument("--only", metavar="NAMES", help="some of the figures, separated by commas")
    flags = parser.parse_args(arguments)
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax tells of every file otherwise
    with reported():
        model = load_model(flags.ckpt)
        if not isinstance(model.module, Concertormer):
            raise UserError(f"--ckpt={flags.ckpt}: holds no Concertormer, which the tour is about")
        prepare_to_compile()
        output = Path(flags.output)
        require_writable(output)
        wanted = flags.only.split(",") if flags.only else list(FIGURES)
        if unknown := [name for name in wanted if name not in FIGURES]:
            raise UserError(f"--only: {unknown[0]!r} is unknown; choose from {', '.join(FIGURES)}")
        material = Material(model)
        for name in (bar := tqdm(wanted, unit="figure")):
            bar.set_description(name)
            write(FIGURES[name](material), output / name)
        size = sum(path.stat().st_size for path in output.iterdir())
        print(f"{len(wanted)} figures are in {output}, which has {size / 1e6:.2f} MB")


class Material:
    """What the figures are made from; `model` is a loaded checkpoint."""

    def __init__(self, model):
        self.model = model
        self.lite = create("lite")

    @functools.cached_property
    def photo(self) -> np.ndarray:
        """The sharp photograph, uint8 [H, W, 3]."""
        return read_rgb(PHOTOS / f"{PHOTO}.jpg")

    @functools.cached_property
    def detail(self) -> np.ndarray:
        """A part of it, reduced to uint8 [32, 32, 3]."""
        return np.asarray(Image.fromarray(self.photo[DETAIL]).resize((32, 32), Image.Resampling.LANCZOS))

    @functools.cached_property
    def example(self) -> measured.Example:
        """A part of it, blurred and restored."""
        source = open_source(PHOTOS)
        index = [source.name(i) for i in range(len(source))].index(PHOTO)
        degraded, sharp = (picture[CUT].astype(np.float32) / 255 for picture in source.whole(index))
        return measured.restore(self.model, degraded, sharp)


FIGURES = {
    "pyramid.jpg": lambda of: diagrams.pyramid(of.photo[SMALL], of.lite.levels, of.lite.multiple),
    "unet.png": lambda of: diagrams.unet(of.lite, of.example.scales(of.example.blurred), of.example.outputs),
    "block.png": lambda of: diagrams.block(),
    "shift.png": lambda of: diagrams.partition_and_shift(of.detail),
    "groups.png": lambda of: diagrams.groups(),
    "attention.jpg": lambda of: measured.attention(of.model, of.example, STAGE, BLOCK),
    "outputs.jpg": lambda of: measured.outputs(of.example),
    "loss.jpg": lambda of: measured.loss(of.example),
    "tlc.jpg": lambda of: diagrams.local_windows(of.photo, TLC_PX),
    "attribution.jpg": lambda of: measured.attribution(of.model, of.example, Window(*CORNER, WINDOW)),
    "receptive_field.png": lambda of: measured.receptive_field(of.model, of.example),
    "cost.png": lambda of: cost(),
}


def cost() -> Image.Image:
    """Where the MACs of `lite` are, as the summary command draws it."""
    with tempfile.TemporaryDirectory() as folder:
        summary.draw(summary.summarise("lite", 256, 256), Path(folder, "cost.png"))
        return Image.open(Path(folder, "cost.png")).convert("RGB")


def write(picture: Image.Image, path: Path) -> None:
    """Write a figure: a photograph as JPEG, a diagram as PNG with few colours."""
    with written_atomically(path) as temporary:
        if path.suffix == ".jpg":
            picture.save(temporary, format="JPEG", quality=85)
        else:
            picture.quantize(128, dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
