"""A run whose work folder is in a bucket: trained, killed, resumed and evaluated, with the clients of the real one."""

import json
import sys
import time
from pathlib import Path

import pytest
import training_runs as runs
from fake_bucket import FakeBucket

from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.training import trainer
from configs import common

WORKDIR = "gs://bucket/runs/one"
LAST_STEP = 4


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    with FakeBucket(tmp_path_factory.mktemp("bucket")) as server:
        yield server


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    photos = tmp_path_factory.mktemp("photos")
    runs.write_photos(photos)
    one_stage = runs.ONE_STAGE | {"stages.steps": (LAST_STEP,)}
    return runs.TINY_RUN | runs.WITHOUT_ATTENTION | one_stage | {"data.source": str(photos)}


@pytest.fixture(scope="module")
def killed_and_resumed(bucket, settings):
    """What the second start of a run says, that was killed while it saved its last step for the first time."""
    command = runs.command(WORKDIR, settings)
    process = runs.start(command, **bucket.environment)
    deadline = time.monotonic() + 600
    while not any(key.startswith(f"bucket/runs/one/checkpoints/{LAST_STEP}/") for key in list(bucket.objects)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    return runs.finish(runs.start(command, **bucket.environment))


def downloaded(bucket, folder) -> Path:
    """The work folder on the disk."""
    for key, content in bucket.objects.items():
        if not key.endswith("/"):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return folder / "bucket" / "runs" / "one"


def test_the_run_ends_like_one_on_the_disk(bucket, killed_and_resumed, settings, tmp_path):
    assert "going on from step 2" in killed_and_resumed
    assert f"step {LAST_STEP} is saved in {WORKDIR}" in killed_and_resumed
    trainer.train(runs.override(common.get_config(), settings), tmp_path / "local")
    workdir = downloaded(bucket, tmp_path)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    expected = runs.stored_state(tmp_path / "local", LAST_STEP)
    runs.assert_identical(runs.stored_state(workdir, LAST_STEP), expected)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, LAST_STEP + 1))
    assert (workdir / "config.json").exists() and list((workdir / "tensorboard").iterdir())
    assert not (runs.ROOT / "gs:").exists()


def test_a_bucket_without_access_is_one_sentence(bucket, settings):
    output = runs.finish(runs.start(runs.command("gs://forbidden/x", settings), **bucket.environment), status=2)
    assert output.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in output


def test_its_checkpoint_is_evaluated(bucket, killed_and_resumed, settings, tmp_path):
    synthesize(settings["data.source"], tmp_path / "pairs")
    command = [sys.executable, str(runs.ROOT / "evaluate.py"), f"--ckpt={WORKDIR}", f"--data={tmp_path / 'pairs'}"]
    output = runs.finish(runs.start([*command, f"--output={tmp_path / 'out'}"], **bucket.environment))
    assert "6 images" in output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["images"] == 6
    assert not (runs.ROOT / "gs:").exists()
