"""The tour: what it names exists, its figures are those that the command makes, and the command makes them."""

import ast
import re
from functools import partial

import numpy as np
import pytest
import training_runs as runs
from PIL import Image
from tiny_network import random_images, random_params, tiny_network

from concertormer_jax.__main__ import COMMANDS
from concertormer_jax.ops import blocks
from concertormer_jax.weights.checkpoints import LoadedModel, save_converted
from docs.figures import __main__ as command
from docs.figures import diagrams, measured

DOCS = runs.ROOT / "docs"
PAGES = ("tour.md", "evidence.md")
LINKS = [
    (page, text, target)
    for page in PAGES
    for text, target in re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", (DOCS / page).read_text())
]
FIGURES = re.findall(r"!\[[^\]]+\]\(tour/([^)]+)\)", (DOCS / "tour.md").read_text())


def defined_in(path) -> set[str]:
    """The names of functions, classes, their members, and constants of a Python file."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{member.name}" for member in node.body if isinstance(member, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("page", "text", "target"), LINKS, ids=[f"{text} in {target}" for _, text, target in LINKS])
def test_what_is_linked_exists(page, text, target):
    if target.startswith("http"):
        return
    path = (DOCS / target.partition("#")[0]).resolve()
    assert path.exists(), target
    if text.startswith("`"):
        assert text.strip("`") in defined_in(path)


def test_every_figure_is_there_small_and_shown():
    made = [path.name for path in (DOCS / "tour").iterdir()]
    assert sorted(FIGURES) == sorted(made) == sorted(command.FIGURES)
    assert sum((DOCS / "tour" / name).stat().st_size for name in made) < 1_000_000


def test_commands_that_are_named_exist():
    text = "".join((DOCS / page).read_text() for page in PAGES)
    named = re.findall(r"python -m concertormer_jax (\w+)", text)
    assert named and set(named) <= set(COMMANDS)


@pytest.fixture(scope="module")
def model():
    module = tiny_network()
    return LoadedModel(module, random_params(module), 16, 0, "tiny")


@pytest.fixture(scope="module")
def example(model):
    blurred, target = random_images(2, 32, 48, 3)
    return measured.restore(model, blurred, target)


def test_scales_are_those_of_the_outputs(example):
    for picture in (example.blurred, example.target):
        assert [part.shape for part in example.scales(picture)] == [part.shape for part in example.outputs]
    assert example.outputs[0].shape == (32, 48, 3)


def test_figures_of_a_network(model, example):
    lite = diagrams.unet(model.module, example.scales(example.blurred), example.outputs)
    assert lite.size == (1100, 260)
    assert measured.outputs(example).width == 460
    assert measured.loss(example).width == 1100
    assert measured.attention(model, example, "middle", 0).mode == "RGB"


def test_rings_hold_the_mean_of_their_frequencies():
    """A wave of 1/4 cycle per pixel across a picture has all its spectrum at that frequency."""
    wave = np.cos(2 * np.pi * np.arange(64) / 4)[None].repeat(64, axis=0)
    frequency, mean = measured._over_rings(np.abs(np.fft.fft2(wave)))
    assert frequency[np.argmax(mean)] == 0.25
    np.testing.assert_allclose(np.delete(mean, np.argmax(mean)), 0, atol=1e-9)


def test_diagrams_show_what_the_functions_do(monkeypatch):
    """A function that did something else would be seen: the diagrams are drawn from the functions that they explain."""
    photo = (255 * random_images(32, 48, 3)).astype(np.uint8)
    shifted, windows = partial(diagrams.partition_and_shift, photo[:, :32]), partial(diagrams.local_windows, photo, 24)
    split_blocks, crosses_border = blocks.split_blocks, blocks.crosses_border
    for draw, module, name, other in (
        (shifted, blocks, "split_blocks", lambda grid, features, _: split_blocks(grid, features, False)),
        (shifted, blocks, "crosses_border", lambda grid: ~crosses_border(grid)),
        (windows, diagrams, "window_starts", lambda size, window: [0]),
    ):
        drawn = draw().tobytes()
        with monkeypatch.context() as patched:
            patched.setattr(module, name, other)
            assert draw().tobytes() != drawn, name


def test_the_command(tmp_path, capsys):
    module = tiny_network()
    save_converted(tmp_path / "weights", module, random_params(module), 16)
    flags = [f"--ckpt={tmp_path / 'weights'}", f"--output={tmp_path / 'figures'}"]
    command.main([*flags, "--only=block.png,pyramid.jpg"])
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"block.png", "pyramid.jpg"}
    assert Image.open(tmp_path / "figures" / "block.png").mode == "P"
    with pytest.raises(SystemExit):
        command.main([*flags, "--only=blocks.png"])
    assert "--only: 'blocks.png' is unknown; choose from pyramid.jpg," in capsys.readouterr().err
