"""No command writes over a picture that it reads."""

import contextlib
import csv
import io
import json
import os

import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.commands import attention_maps, attribution, contact_sheet, receptive_field
from concertormer_jax.data.sources import open_source
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.evaluation.evaluator import evaluate, evaluate_predictions
from concertormer_jax.evaluation.reports import markdown_table, per_image_csv
from concertormer_jax.evaluation.scores import Evaluation, EvaluationSet, ImageScores
from concertormer_jax.runtime import outputs
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.outputs import require_separate


@pytest.fixture
def photo(tmp_path):
    """A photograph, which is the same after the test."""
    path = tmp_path / "in" / "receptive_field.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(path)
    content = path.read_bytes()
    yield path
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (attention_maps, ["--ckpt=ckpt", "{photo}", "--output={photo}"]),
        (attribution, ["--ckpt=ckpt", "{photo}", "--output={folder}"]),
        (attribution, ["--ckpt=ckpt", "{folder}", "--output={folder}"]),
        (receptive_field, ["--ckpt=ckpt", "{folder}", "--output={folder}"]),
        (contact_sheet, ["{photo}", "{photo}"]),
        (contact_sheet, ["{photo}", "{link}"]),
    ],
)
def test_commands_refuse_to_write_over_their_picture(tmp_path, photo, command, arguments, monkeypatch, capsys):
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None, raising=False)
    monkeypatch.setattr(command, "load_model", None, raising=False)
    link = tmp_path / "link.png"
    os.symlink(photo, link)
    filled = [argument.format(photo=photo, folder=photo.parent, link=link) for argument in arguments]
    with pytest.raises(SystemExit) as status:
        command.main(filled)
    assert status.value.code == 2
    assert f"would overwrite the original, {photo}" in capsys.readouterr().err


def test_pairs_are_not_made_over_their_photographs(tmp_path, photo):
    for part in ("input", "target"):
        out = tmp_path / part
        out.mkdir()
        (out / part).symlink_to(photo.parent)
        with pytest.raises(UserError, match="would overwrite the original"):
            synthesize(photo.parent, out)


def test_an_evaluation_does_not_write_over_its_data(tmp_path, photo):
    for part in ("input", "target"):
        (tmp_path / "data" / part).mkdir(parents=True)
        (tmp_path / "data" / part / "a.png").write_bytes(photo.read_bytes())
    pairs = EvaluationSet("data", open_source(tmp_path / "data"))
    assert pairs.files == (tmp_path / "data" / "input" / "a.png", tmp_path / "data" / "target" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "restored").symlink_to(tmp_path / "data" / "target")
    with pytest.raises(UserError, match=r"would overwrite the original, .*target/a\.png"):
        evaluate(fake_model(), pairs, tmp_path / "out")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "worst_ten.png").symlink_to(photo)
    with pytest.raises(UserError, match=r"worst_ten\.png: would overwrite the original"):
        evaluate_predictions([photo], pairs, tmp_path / "scores")


def test_two_results_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two results would have this name"):
        require_separate([tmp_path / "a.png", tmp_path / "b" / ".." / "a.png", tmp_path / "a.png"], [])


def test_names_are_no_formulas_and_no_control_characters_in_tables():
    names = ["=1+1", "+a", "-b", "@c", "\td", "plain", "e=f"]
    images = tuple(
        ImageScores(index, name, 4, 5, None, False, {"psnr_y": 20.0}, {"psnr_y": 30.0}, None)
        for index, name in enumerate(names)
    )
    set_of = EvaluationSet("a\x1b[2J\n|b", None)
    result = Evaluation("demo", "demo", "pairs", set_of, "off", None, "highest", ("psnr_y",), images, "1 x cpu", 2.0)
    rows = list(csv.DictReader(io.StringIO(per_image_csv(result))))
    assert [row["name"] for row in rows] == ["'=1+1", "'+a", "'-b", "'@c", "'\td", "plain", "e=f"]
    assert [row["gain_psnr_y"] for row in rows] == ["-10.000000"] * len(names), "numbers stay numbers"
    assert r"a\x1b[2J\n\|b" in markdown_table([result])


def test_names_that_are_no_text_do_not_spoil_a_report(tmp_path):
    write_text(tmp_path / "report.json", json.dumps({"name": os.fsdecode(b"a\xff.png")}, ensure_ascii=False))
    assert json.loads((tmp_path / "report.json").read_text()) == {"name": "a\udcff.png"}


@pytest.mark.parametrize(("results", "lies"), [("set", True), ("set/run", True), ("link/run", True), ("set2", False)])
def test_results_among_the_pictures_are_refused(tmp_path, results, lies):
    """The next command would take the pictures of the results for pictures of the set."""
    (tmp_path / "set").mkdir()
    (tmp_path / "link").symlink_to("set")
    with pytest.raises(UserError, match=r"lies in the folder of pictures .*set") if lies else contextlib.nullcontext():
        outputs.require_outside(tmp_path / results, tmp_path / "set")
