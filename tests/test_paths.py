"""What a path stands for that a user gives, in every command and key."""

import os
import sys

import pytest
import training_runs as runs

from concertormer_jax.commands import ablation_study as evidence
from concertormer_jax.commands import (
    attention_maps,
    attribution,
    contact_sheet,
    convert,
    prepare,
    receptive_field,
    restore,
    summary,
    synthesize,
    table,
)
from concertormer_jax.data.prepared import default_data_dir, prepared_folder
from concertormer_jax.data.sources import open_source
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import is_remote, local_path, user_path
from concertormer_jax.training import trainer
from concertormer_jax.weights.checkpoints import Checkpoints, load_model, save_converted
from configs import common

sys.path.insert(0, str(runs.ROOT))
from concertormer_jax.commands import evaluate


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(restore, "prepare_to_compile", lambda: None)
    yield
    assert not [name for name in os.listdir(tmp_path) if name.startswith(("~", "gs:", "s3:"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/x", "{here}/runs/x"),
        ("./runs//x/", "{here}/runs/x"),
        ("../x", "{here.parent}/x"),
        ("~", "{here}/home"),
        ("~/runs/x", "{here}/home/runs/x"),
        ("./~", "{here}/~"),
        ("/a/b", "/a/b"),
        ("a:b/c", "{here}/a:b/c"),
        ("gs://bucket", "gs://bucket"),
        ("gs://bucket/runs/x", "gs://bucket/runs/x"),
        ("gs://bucket//runs/./y/../x/", "gs://bucket/runs/x"),
    ],
)
def test_paths_that_can_be_used(text, expected, tmp_path):
    expected = expected.format(here=tmp_path)
    assert str(user_path(text)) == expected
    assert user_path(user_path(text)) == user_path(text)
    assert is_remote(user_path(text)) == text.startswith("gs:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "s3://",
        "s3://bucket/x",
        "az://x",
        "hf://x",
        "http://x/y",
        "file:///x",
        "GS://b/x",
        "gs://",
        "gs:///x",
        "gs:/bucket/x",
        "~nobody-here/x",
    ],
)
def test_paths_that_cannot_be_used_are_one_sentence(text):
    for function in (user_path, local_path):
        with pytest.raises(UserError) as refused:
            function(text, "--flag")
        assert str(refused.value).startswith("--flag")
        assert "\n" not in str(refused.value)


def test_a_bucket_is_no_place_on_this_machine(tmp_path):
    assert local_path("x") == tmp_path / "x"
    with pytest.raises(UserError, match="--output=gs://bucket/x: must be on this machine"):
        local_path("gs://bucket/x", "--output")


def test_a_run_in_the_home_folder(tmp_path):
    config = common.get_config()
    runs.write_photos(tmp_path / "home" / "photos")
    settings = runs.TINY_RUN | runs.WITHOUT_ATTENTION | runs.ONE_STAGE | {"data.source": "~/photos"}
    trainer.train(runs.override(config, settings), "~/runs/x")
    assert (tmp_path / "home" / "runs" / "x" / "checkpoints" / "2").is_dir()
    assert load_model("~/runs/x").step == 2


@pytest.mark.parametrize("workdir", ["", "s3://bucket/x", "gs://", "gs:/bucket/x"])
def test_a_work_folder_that_cannot_be_is_one_sentence(workdir):
    with pytest.raises(UserError, match=r"^--workdir"):
        trainer.train(common.get_config(), workdir)
    with pytest.raises(UserError):
        Checkpoints(workdir)
    with pytest.raises(UserError):
        load_model(workdir)
    with pytest.raises(UserError):
        save_converted(workdir, None, None, 1)


def test_where_prepared_sets_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert default_data_dir() == str(tmp_path / "home" / "sets")
    with pytest.raises(UserError, match=rf"is not in {tmp_path}/home/other"):
        prepared_folder("gopro", "~/other")
    with pytest.raises(UserError, match="data_dir=s3://bucket: is no path"):
        prepared_folder("gopro", "s3://bucket")


def test_photographs_in_the_home_folder(tmp_path):
    runs.write_photos(tmp_path / "home" / "photos")
    assert len(open_source("~/photos")) == 6


REMOTE_RESULTS = [
    (evaluate.main, ["--ckpt=gs://bucket/x", "--data=."]),
    (evaluate.main, ["--ckpt=x", "--data=.", "--output=gs://bucket/x"]),
    (evaluate.main, ["--ckpt=x", "--data=gs://bucket/x"]),
    (evaluate.main, ["--predictions=gs://bucket/x", "--data=."]),
    (attribution.main, ["--ckpt=gs://bucket/x", "photos/photo0.png", "--crop=0"]),
    (receptive_field.main, ["--ckpt=gs://bucket/x", "photos/photo0.png", "--crop=8"]),
    (attention_maps.main, ["--ckpt=gs://bucket/x", "photos/photo0.png"]),
    (restore.main, ["--ckpt=x", "gs://bucket/x.png", "y.png"]),
    (restore.main, ["--ckpt=x", "photos/photo0.png", "gs://bucket/y.png"]),
    (prepare.main, ["pairs", "--source=gs://bucket/x"]),
    (convert.main, ["x", "gs://bucket/x.pth"]),
    (convert.main, ["gs://bucket/x.pth", "y"]),
    (summary.main, ["demo", "--chart=gs://bucket/x.png"]),
    (table.main, ["gs://bucket/results.json"]),
    (synthesize.main, ["photos", "gs://bucket/x"]),
    (contact_sheet.main, ["photos/photo0.png", "gs://bucket/x.png"]),
    (contact_sheet.main, ["gs://bucket/x.png", "x.png"]),
]


@pytest.mark.parametrize(("command", "arguments"), REMOTE_RESULTS, ids=lambda v: getattr(v, "__module__", str(v)))
def test_what_must_be_on_this_machine_is_told_so(command, arguments, tmp_path, monkeypatch, capsys):
    runs.write_photos(tmp_path / "photos", count=1, size=64)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ended:
        command(*([] if command is synthesize.main else [arguments]))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "on this machine" in line


def test_the_comparison_of_forms_is_on_this_machine():
    with pytest.raises(UserError, match="--output=gs://bucket/x: must be on this machine"):
        evidence.compare(common.get_config(), [], [0], "gs://bucket/x")
