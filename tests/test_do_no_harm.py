"""What is sharp stays as it is: restored, a picture without blur is within 40 dB of itself."""

import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image, ImageDraw, ImageFont

from concertormer_jax.data.images import read_rgb
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.metrics.psnr_ssim import psnr_rgb
from concertormer_jax.photos.restoring import as_bytes
from concertormer_jax.runtime.paths import bundled
from concertormer_jax.weights.checkpoints import load_model

LEAST_DB = 40
HEIGHT, WIDTH = 240, 320


def sharp_photograph():
    photo = read_rgb(sorted(bundled("photos/test").glob("*.*"))[0])
    top, left = (photo.shape[0] - HEIGHT) // 2, (photo.shape[1] - WIDTH) // 2
    return photo[top : top + HEIGHT, left : left + WIDTH]


def flat_colour():
    return np.full((HEIGHT, WIDTH, 3), (90, 140, 200), np.uint8)


def drawing():
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for step in range(0, WIDTH, 16):
        draw.line((step, 0, WIDTH - step, HEIGHT), "black", width=1 + step % 3)
    draw.ellipse((60, 40, 200, 180), "gold", "black", 3)
    draw.polygon([(220, 200), (300, 200), (260, 90)], "crimson", "black")
    return np.asarray(picture)


def screenshot():
    picture = Image.new("RGB", (WIDTH, HEIGHT), (240, 240, 240))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    draw.rectangle((0, 0, WIDTH, 20), (40, 60, 100))
    draw.text((6, 4), "File   Edit   View   Help", "white", font)
    for line in range(14):
        draw.text((10, 28 + 15 * line), "def restore(params, images): return images", (20, 20, 20), font)
    draw.rectangle((230, 60, 310, 84), (250, 250, 250), (120, 120, 120))
    return np.asarray(picture)


def noise():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


PICTURES = (sharp_photograph, flat_colour, drawing, screenshot, noise)


def likeness(restorer, picture):
    """The PSNR in dB between a picture and its restored form, uint8 [H, W, 3] both."""
    return psnr_rgb(as_bytes(restorer(picture / np.float32(255)).rgb), picture)


def quiet_restorer(model):
    return Restorer(model, log=lambda line: None, tlc="off")


@pytest.fixture(scope="module", params=["identity", "bundled"])
def harmless(request):
    """A restorer that must do no harm."""
    return quiet_restorer(fake_model(1.0) if request.param == "identity" else load_model())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.__name__)
def test_what_is_sharp_is_left_alone(harmless, picture):
    assert picture().shape == (HEIGHT, WIDTH, 3)
    assert likeness(harmless, picture()) >= LEAST_DB


def test_harm_is_seen():
    slightly, visibly = (quiet_restorer(fake_model(factor)) for factor in (0.995, 0.97))
    assert min(likeness(slightly, picture()) for picture in PICTURES) >= LEAST_DB
    assert max(likeness(visibly, picture()) for picture in PICTURES) < LEAST_DB
