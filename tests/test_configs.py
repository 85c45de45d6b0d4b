"""Every recipe: it builds, is what the stored dump says, and trains two steps when shrunk."""

import importlib
from pathlib import Path

import pytest
import training_runs as runs
from light_network import leave_out_blocks

from concertormer_jax.data.degrade.motion_blur import CameraShake, FrameAverage
from concertormer_jax.data.degrade.rain import Rain
from concertormer_jax.training import trainer
from concertormer_jax.training.setup import sources_from
from concertormer_jax.weights.checkpoints import load_model
from configs import common

ON_PHOTOGRAPHS = [
    "gopro:paper",
    "gopro:lite",
    "gopro:synthetic",
    "derain:synthetic",
    "custom",
    "demo",
    "evidence",
    "pocket",
    "denoise",
    "super_resolution",
]
ON_SETS = [
    "gopro",
    "realblur_r",
    "realblur_j",
    "rsblur",
    "derain",
    "reds",
    "reds_blur",
    "sidd",
]  # trained in test_protocols_end_to_end.py
OTHER_NETWORKS = ["restormer", "restormer:csa"]  # trained in test_other_networks.py
RECIPES = [*ON_PHOTOGRAPHS, *ON_SETS, *OTHER_NETWORKS, "pocket:short", "pocket:decay", "pocket:finetune"]
RECIPES += ["denoise:25", "super_resolution:x2"]
DUMPS = Path(__file__).parent / "golden" / "configs"


def build(recipe: str):
    name, _, argument = recipe.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(*[argument] if argument else [])


def test_every_file_in_configs_is_tested():
    names = {path.stem for path in (runs.ROOT / "configs").glob("*.py")} - {"common", "__init__"}
    assert names == {recipe.partition(":")[0] for recipe in RECIPES} | {"ablation"}  # see test_ablations.py


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_what_the_stored_dump_says(recipe):
    """A recipe changes a result that somebody may want to reproduce: change the dump only when that is meant."""
    stored = (DUMPS / f"{recipe.replace(':', '_')}.txt").read_text()
    assert str(build(recipe)) == stored


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_changes_values_and_never_keys(recipe):
    def keys(config, prefix=""):
        for key, value in config.items():
            yield from keys(value, f"{prefix}{key}.") if hasattr(value, "items") else [prefix + key]

    assert set(keys(build(recipe))) == set(keys(common.get_config()))


@pytest.mark.parametrize("recipe", ON_PHOTOGRAPHS)
def test_recipe_trains_two_steps_when_shrunk(recipe, tmp_path, monkeypatch):
    leave_out_blocks(monkeypatch)
    runs.write_photos(tmp_path / "photos")
    shrunk = runs.TINY_RUN | runs.ONE_STAGE | {"data.source": str(tmp_path / "photos"), "optimizer.constant_steps": 0}
    assert trainer.train(runs.override(build(recipe), shrunk), tmp_path / "run") == 2
    assert load_model(tmp_path / "run").step == 2


@pytest.mark.parametrize(("recipe", "kind"), [("demo", CameraShake), ("gopro:synthetic", FrameAverage)])
def test_photographs_are_degraded_as_the_recipe_says(recipe, kind, tmp_path):
    runs.write_photos(tmp_path)
    keys = {
        "data.source": str(tmp_path),
        "data.blur_max_px": 9.0,
        "data.shot_noise": 0.1,
        "data.jpeg_quality": (20, 30),
    }
    training, validation = sources_from(runs.override(build(recipe), keys))
    expected = kind(max_length_px=9.0, shot_noise=0.1, jpeg_quality=(20, 30))
    assert training.degradation == expected
    assert validation.sources[0].degradation == expected


def test_rain_is_drawn_over_photographs(tmp_path):
    runs.write_photos(tmp_path)
    training, _ = sources_from(runs.override(build("derain:synthetic"), {"data.source": str(tmp_path)}))
    assert training.degradation == Rain()


@pytest.mark.parametrize(
    ("name", "argument", "known"),
    [
        ("gopro", "", "released, paper, lite or synthetic"),
        ("gopro", "papper", "released, paper, lite or synthetic"),
        ("gopro", "lite ", "released, paper, lite or synthetic"),
        ("derain", "rain", "rain13k or synthetic"),
        ("restormer", "concerto", "transposed or csa"),
        ("pocket", "decaying", "short, constant, decay or finetune"),
        ("denoise", "30", "blind, 15, 25 or 50"),
        ("super_resolution", "x3", "x2 or x4"),
    ],
)
def test_unknown_argument_is_refused(name, argument, known):
    with pytest.raises(ValueError, match=f"choose {known}"):
        importlib.import_module(f"configs.{name}").get_config(argument)


@pytest.mark.parametrize("recipe", RECIPES)
def test_header_says_command_hardware_and_state(recipe):
    name, colon, argument = recipe.partition(":")
    header = importlib.import_module(f"configs.{name}").__doc__
    if recipe == "demo":
        assert "make train-demo" in header
        return
    assert f"python train.py --config=configs/{name}.py{colon}{argument} --workdir=" in header
    assert "GPU" in header
