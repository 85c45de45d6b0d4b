"""Processes on this machine share an evaluation and a training run as hosts would."""

import json
import re
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

LAST_STEP = 8
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


def evaluation(arguments):
    return [sys.executable, str(runs.ROOT / "evaluate.py"), *map(str, arguments)]


def test_two_hosts_give_the_scores_of_one(checkpoint, tmp_path):
    data, output = write_pairs(tmp_path / "data"), tmp_path / "two"
    arguments = [f"--ckpt={checkpoint}", f"--data={data}", f"--output={output}", "--tlc=off"]
    first, second = [runs.finish(host) for host in runs.start_hosts(evaluation(arguments), 2)]
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
    first, second = [runs.finish(host, status=2) for host in runs.start_hosts(evaluation(arguments), 2)]
    assert first.splitlines()[-1].startswith(f"error: host 1 of 2 failed: {damaged}")
    assert second.splitlines()[-1].startswith(f"error: {damaged}")
    assert "Traceback" not in first + second
    assert not (output / "results.json").exists()


@pytest.mark.long  # thirteen processes
def test_four_hosts_lose_one_go_on_and_evaluate_like_one_process(tmp_path):
    runs.write_photos(tmp_path / "photos")
    settings = runs.TINY_RUN | runs.WITHOUT_ATTENTION | {"data.source": str(tmp_path / "photos")}
    settings |= {"stages.steps": (LAST_STEP,), "stages.crop_px": (16,), "stages.batch": (8,)}
    four, one = tmp_path / "four", tmp_path / "one"
    *survivors, lost = runs.start_hosts(runs.command(four, settings), 4, "openmpi")
    assert runs.kill_when(lost, (four / "checkpoints" / "2").exists)
    for index, host in enumerate(survivors):
        said = runs.finish(host, status=2)
        assert said.splitlines()[-1].startswith(f"error: host {index} of 4 cannot go on with the others")
        assert "Traceback" not in said
    first, *others = [runs.finish(host) for host in runs.start_hosts(runs.command(four, settings), 4)]
    assert re.search(r"going on from step [24]\b", first)
    assert not any("step" in said for said in others), "the first host speaks for all"
    runs.finish(runs.start(runs.command(one, settings), devices=1))
    before = runs.stored_state(one, LAST_STEP - 2)
    runs.assert_close(runs.stored_state(four, LAST_STEP), runs.stored_state(one, LAST_STEP), before)

    data, output = write_pairs(tmp_path / "data"), tmp_path / "scores"
    arguments = [f"--ckpt={four}", f"--data={data}", f"--output={output}", "--tlc=off"]
    first, *others = [runs.finish(host) for host in runs.start_hosts(evaluation(arguments), 4)]
    assert "| data | 5 |" in first and not any("|" in said for said in others)
    told = json.loads((output / "results.json").read_text())
    alone = evaluate(load_model(one), EvaluationSet("data", open_source(data)), tmp_path / "alone", tlc="off")
    assert told["devices"].startswith("4 x ")
    assert [image["name"] for image in told["per_image"]] == [image.name for image in alone.images]
    for image, expected in zip(told["per_image"], alone.images, strict=True):
        assert image["restored"]["psnr_rgb"] == pytest.approx(expected.restored["psnr_rgb"], abs=0.01)
    assert len(list((output / "restored").iterdir())) == len(SIZES)
    assert not list(output.glob(".hosts-*"))
