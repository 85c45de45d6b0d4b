"""Every recipe: it builds, is what the stored dump says, and trains two steps when shrunk."""

import importlib
from pathlib import Path

import pytest
import training_runs as runs

from concertormer_jax.checkpoints import load_model
from concertormer_jax.training import loop
from configs import common

RECIPES = ["gopro", "gopro:paper", "gopro:lite", "custom", "demo"]
DUMPS = Path(__file__).parent / "golden" / "configs"


def build(recipe: str):
    name, _, argument = recipe.partition(":")
    return importlib.import_module(f"configs.{name}").get_config(*[argument] if argument else [])


def test_every_file_in_configs_is_tested():
    names = {path.stem for path in (runs.ROOT / "configs").glob("*.py")} - {"common", "__init__"}
    assert names == {recipe.partition(":")[0] for recipe in RECIPES}


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


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_two_steps_when_shrunk(recipe, tmp_path):
    runs.write_photos(tmp_path / "photos")
    shrunk = runs.TINY_RUN | runs.ONE_STAGE | {"data.source": str(tmp_path / "photos")}
    assert loop.train(runs.override(build(recipe), shrunk), tmp_path / "run") == 2
    assert load_model(tmp_path / "run").step == 2


@pytest.mark.parametrize("argument", ["", "papper", "lite "])
def test_unknown_schedule_is_refused(argument):
    with pytest.raises(ValueError, match="choose released, paper or lite"):
        importlib.import_module("configs.gopro").get_config(argument)
