"""Two processes on this machine share an evaluation as two hosts would."""

import json
import os
import sys

import numpy as np
import pytest
import training_runs as runs
from PIL import Image
from tiny_network import random_params, tiny_network

from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation.evaluator import evaluate
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.weights.checkpoints import load_model, save_converted

SIZES = [(16, 16), (16, 16), (7, 30), (40, 20), (16, 12)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    module = tiny_network(groups=(), skip="sum")  # no attention: quick to compile
    save_converted(folder, module, random_params(module), 128)
    return folder


def write_pairs(folder):
    rng = np.random.default_rng(0)
    for index, size in enumerate(SIZES):
        for part in ("input", "target"):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / part / f"{index}.png")
    return folder


def on_two_hosts(arguments):
    """Start the command twice; give the processes, the first host's before the second's."""
    return [
        runs.start(
            [sys.executable, str(runs.ROOT / "evaluate.py"), *map(str, arguments), "--distributed"],
            devices=1,
            SLURM_JOB_ID=str(os.getpid()),  # of which JAX makes the port, in this run of the tests its own
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(host),
            SLURM_LOCALID=str(host),
        )
        for host in range(2)
    ]


def test_two_hosts_give_the_scores_of_one(checkpoint, tmp_path):
    data, output = write_pairs(tmp_path / "data"), tmp_path / "two"
    arguments = [f"--ckpt={checkpoint}", f"--data={data}", f"--output={output}", "--tlc=off"]
    first, second = [runs.finish(host) for host in on_two_hosts(arguments)]
    alone = evaluate(load_model(checkpoint), EvaluationSet("data", open_source(data)), tmp_path / "one", tlc="off")
    told = json.loads((output / "results.json").read_text())
    assert [image["name"] for image in told["per_image"]] == [str(index) for index in range(len(SIZES))]
    for image, expected in zip(told["per_image"], alone.images, strict=True):
        for metric in alone.metrics:
            assert image["restored"][metric] == pytest.approx(expected.restored[metric], abs=1e-3)
            assert image["input"][metric] == expected.input[metric]
    for path in (tmp_path / "one" / "restored").iterdir():
        differ = np.asarray(Image.open(path)) != np.asarray(Image.open(output / "restored" / path.name))
        assert differ.mean() < 0.001, "but for values on the edge of being rounded up"
    assert told["devices"].startswith("2 x ")
    assert "| data | 5 |" in first
    assert "evaluating data, the share of host 0 of 2" in first
    assert "|" not in second and "evaluating" not in second, "the first host speaks for both"
    names = {path.name for path in output.iterdir()}
    assert names == {"restored", "per_image.csv", "results.json", "results.md", "worst_ten.png", "comparison.html"}


def test_a_host_that_fails_ends_both_with_a_sentence(checkpoint, tmp_path):
    data, output = write_pairs(tmp_path / "data"), tmp_path / "two"
    damaged = data / "input" / "3.png"  # of the largest size, which is last in order and so the second host's
    damaged.write_bytes(damaged.read_bytes()[:300])
    arguments = [f"--ckpt={checkpoint}", f"--data={data}", f"--output={output}", "--tlc=off"]
    first, second = [runs.finish(host, status=2) for host in on_two_hosts(arguments)]
    assert first.splitlines()[-1].startswith(f"error: host 1 of 2 failed: {damaged}")
    assert second.splitlines()[-1].startswith(f"error: {damaged}")
    assert "Traceback" not in first + second
    assert not (output / "results.json").exists()
