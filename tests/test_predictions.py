"""Pictures of other software: matched by name, and every fault named before anything is scored."""

import re

import numpy as np
import pytest
from PIL import Image

from concertormer_jax.commands import evaluate as command
from concertormer_jax.data.images import read_rgb, write_png
from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation.evaluator import evaluate_predictions
from concertormer_jax.evaluation.scores import PROTOCOLS, EvaluationSet
from concertormer_jax.evaluation.sets import find_predictions, predictions_folder
from concertormer_jax.metrics import psnr_ssim
from concertormer_jax.runtime.errors import UserError

NAMES = ("scene-1", "scene-2", "scene-3")


@pytest.fixture
def folder(tmp_path):
    """Pairs in data/, predictions in made/: what another program restored."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        target = rng.integers(20, 236, (24, 30, 3))
        for part, reach in (("data/input", 20), ("data/target", 0), ("made", 5)):
            picture = target + rng.integers(-reach, reach + 1, target.shape)
            write_png(tmp_path / part / f"{name}.png", picture.astype(np.uint8))
    return tmp_path


def pairs_in(folder):
    return EvaluationSet("walk", open_source(folder / "data"))


def test_every_picture_is_scored_against_its_target(folder):
    pairs = pairs_in(folder)
    result = evaluate_predictions(
        find_predictions(folder / "made", pairs), pairs, folder / "scores", protocol=PROTOCOLS["derain"]
    )
    assert [image.name for image in result.images] == list(NAMES)
    assert result.metrics == ("psnr_y", "ssim_y")
    for image in result.images:
        restored, degraded, target = (
            read_rgb(folder / part / f"{image.name}.png") for part in ("made", "data/input", "data/target")
        )
        assert image.restored["psnr_y"] == psnr_ssim.psnr_y(restored, target)
        assert image.input["ssim_y"] == psnr_ssim.ssim_y(degraded, target)
    assert result.gain("psnr_y") > 5


def test_the_form_of_the_files_does_not_matter(folder):
    made = folder / "made"
    Image.open(made / "scene-1.png").save(made / "scene-1.tiff")
    (made / "scene-1.png").unlink()
    (made / "scene").mkdir()
    (made / "scene-2.png").rename(made / "scene" / "2.png")
    paths = find_predictions(made, pairs_in(folder))
    assert [path.relative_to(made).as_posix() for path in paths] == ["scene-1.tiff", "scene/2.png", "scene-3.png"]


def faults():
    def missing(made):
        (made / "scene-2.png").unlink()

    def surplus(made):
        (made / "scene-4.png").write_bytes((made / "scene-1.png").read_bytes())

    def twice(made):
        Image.open(made / "scene-1.png").save(made / "scene-1.jpg")

    def size(made):
        write_png(made / "scene-3.png", np.zeros((24, 28, 3), np.uint8))

    def renamed(made):
        (made / "scene-2.png").rename(made / "scene-2_deblurred.png")

    return [
        (missing, r"made: has no picture scene-2\.\* of the 3 of walk"),
        (surplus, r"made/scene-4\.png: is none of the 3 pictures of walk"),
        (twice, r"made/scene-1\.(jpg|png): scene-1\.(jpg|png) has the same name"),
        (size, r"made/scene-3\.png: is 28x24 but its target in walk is 30x24"),
        (renamed, r"has no picture scene-2\.\*"),
    ]


@pytest.mark.parametrize(("fault", "message"), faults())
def test_every_fault_is_named(folder, fault, message):
    fault(folder / "made")
    with pytest.raises(UserError, match=message):
        find_predictions(folder / "made", pairs_in(folder))


def test_an_unreadable_picture_is_named(folder):
    path = folder / "made" / "scene-2.png"
    path.write_bytes(path.read_bytes()[:800])
    pairs = pairs_in(folder)
    with pytest.raises(UserError, match=r"made/scene-2\.png"):
        evaluate_predictions(find_predictions(folder / "made", pairs), pairs, folder / "scores")


def test_each_of_several_sets_has_a_folder(tmp_path):
    pairs = EvaluationSet("rain100l", None)
    with pytest.raises(UserError, match=r"--predictions=.*: no such folder"):
        predictions_folder(tmp_path / "made", pairs, alone=True)
    made = tmp_path / "made"
    (made / "Rain100H").mkdir(parents=True)
    assert predictions_folder(made, pairs, alone=True) == made
    with pytest.raises(UserError, match="has no folder rain100l/"):
        predictions_folder(made, pairs, alone=False)
    (made / "Rain100-L").mkdir()
    assert (
        predictions_folder(made, pairs, alone=True)
        == predictions_folder(made, pairs, alone=False)
        == made / "Rain100-L"
    )


def test_the_command_needs_no_checkpoint(folder, capsys):
    command.main([f"--predictions={folder / 'made'}", f"--data={folder / 'data'}", "--protocol=gopro"])
    printed = capsys.readouterr().out
    assert re.search(r"\| pictures in \S+/made \| gopro \| gopro \| 3 \| unknown \|", printed)
    output = folder / "made-scores"
    assert {path.name for path in output.iterdir()} == {
        "comparison.html",
        "per_image.csv",
        "results.json",
        "results.md",
        "worst_ten.png",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt=x", "--predictions=y"], "give either --ckpt"),
        (["--predictions=y"], "needs --data"),
        (["--predictions=y", "--data=x", "--tlc=off"], "are for a network"),
        (["--predictions=y", "--data=x", "--batch=2"], "are for a network"),
        (["--predictions=y", "--data=x", "--precision=high"], "are for a network"),
        (["--predictions=y", "--data=x", "--shard=off"], "are for a network"),
        (["--predictions=y", "--data=x", "--distributed"], "are for a network"),
    ],
)
def test_contradicting_flags_are_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as status:
        command.main(arguments)
    assert status.value.code == 2
    assert message in capsys.readouterr().err
