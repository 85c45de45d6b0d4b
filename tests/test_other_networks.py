"""The commands with networks other than Concertormer: their recipes train, and what they train restores."""

import json

import numpy as np
import pytest
import training_runs as runs
from test_configs import OTHER_NETWORKS, build
from tiny_restormer import TINY_FIELDS

from concertormer_jax.commands import evaluate, restore
from concertormer_jax.data.images import read_rgb
from concertormer_jax.inference import restorer
from concertormer_jax.training import trainer

SHRUNK = {
    **{key: value for key, value in runs.TINY_RUN.items() if not key.startswith("model.")},
    **{f"model.{field}": value for field, value in TINY_FIELDS.items()},
    **runs.ONE_STAGE,
    "optimizer.constant_steps": 1,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with photos/ and pairs/, whose inputs are their targets."""
    runs.write_photos(tmp_path / "photos")
    for part in ("input", "target"):
        runs.write_photos(tmp_path / "pairs" / part, count=2, size=36)
    for command in (evaluate, restore):
        monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(restorer, "LARGEST_COLOUR_SHIFT", np.inf)  # after two steps no colour is right
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("recipe", OTHER_NETWORKS)
def test_recipe_trains_two_steps_when_shrunk_evaluates_and_restores(recipe, folder):
    run = folder / "run"
    config = runs.override(build(recipe), SHRUNK | {"data.source": str(folder / "photos")})
    assert trainer.train(config, run) == 2
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "train/loss" in line]
    assert [line["train/learning_rate"] for line in training] == pytest.approx([3e-4, 3e-4])

    evaluate.main([f"--ckpt={run}", f"--data={folder / 'pairs'}", f"--output={folder / 'results'}", "--tlc=off"])
    results = json.loads((folder / "results" / "results.json").read_text())
    assert results["variant"] == "custom"
    restore.main(
        [
            f"--ckpt={run}",
            "--tlc=off",
            "--tile=off",
            str(folder / "pairs" / "input" / "photo0.png"),
            str(folder / "out.png"),
        ]
    )
    evaluated, restored = (read_rgb(folder / name) for name in ("results/restored/photo0.png", "out.png"))
    assert np.abs(evaluated.astype(int) - restored).max() <= 1, "both pad alike"
