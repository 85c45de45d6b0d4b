"""The files that an evaluation leaves: valid, complete, and honest about TLC."""

import csv
import json
import math
import re

import cv2
import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation.evaluator import evaluate
from concertormer_jax.evaluation.reports import (
    markdown_table,
    per_image_csv,
    results_json,
    summary_json,
    write_reports,
    write_summary,
)
from concertormer_jax.evaluation.scores import Evaluation, EvaluationSet, ImageScores
from concertormer_jax.photos.sheets import ERROR_GAIN, comparison_sheet, error_picture, side_by_side


def evaluation(
    restored, degraded, covers=(False, True), tlc="auto", window=448, name="data|set", protocol="pairs", converged=None
):
    images = tuple(
        ImageScores(index, f"scene/{index}", 48, 64, None, covered, {"psnr_y": after}, {"psnr_y": before}, converged)
        for index, (after, before, covered) in enumerate(zip(restored, degraded, covers, strict=True))
    )
    pairs = EvaluationSet(name, None)
    return Evaluation(
        "demo, step 300", "demo", protocol, pairs, tlc, window, "highest", ("psnr_y",), images, "1 x cpu", 2.0
    )


def write_pairs(folder, count):
    generator = np.random.default_rng(0)
    for index in range(count):
        target = generator.integers(0, 256, (20 + index, 70, 3), dtype=np.uint8)
        for part, picture in (("input", target // 2), ("target", target)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / part / f"{index:02}.png")
    return folder


def test_all_files_are_written_and_agree(tmp_path):
    folder, output = write_pairs(tmp_path / "data", 12), tmp_path / "out"
    pairs = EvaluationSet("data", open_source(folder))
    result = evaluate(fake_model(1.5), pairs, output, metrics=["ssim_rgb_2d", "psnr_y"])
    write_reports(result, output)
    assert sorted(path.name for path in output.iterdir()) == [
        "comparison.html",
        "per_image.csv",
        "restored",
        "results.json",
        "results.md",
        "worst_ten.png",
    ]
    assert len(list((output / "restored").iterdir())) == 12
    with open(output / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [f"{index:02}" for index in range(12)]
    content = json.loads((output / "results.json").read_text())
    for metric in ("ssim_rgb_2d", "psnr_y"):
        mean = np.mean([float(row[f"restored_{metric}"]) for row in rows])
        assert mean == pytest.approx(content["mean"][metric]["restored"], abs=1e-6)
        assert mean == pytest.approx(np.mean([image["restored"][metric] for image in content["per_image"]]), abs=1e-6)
        assert content["mean"][metric]["gain"] > 0
    assert content["tlc"] == {"setting": "auto", "window_px": 448, "images_without_effect": 12}
    assert content["opencv"] == cv2.__version__
    assert "psnr_rgb" not in content["mean"], "it only orders the worst ten"
    with Image.open(output / "worst_ten.png") as sheet:
        assert sheet.width > 4 * 70
        # The ten worst are there, none of the others: each has two bars of 30 and gaps of 16 beside its own height.
        worst = sorted(result.images, key=lambda image: image.restored["psnr_rgb"])[:10]
        assert sheet.height == 8 + sum(image.height + 76 for image in worst)
    page = (output / "comparison.html").read_text()
    ranked = sorted(result.images, key=lambda image: image.restored["psnr_rgb"])
    assert re.findall(r'<td><a href="#p\d+">(.*?)</a>', page) == [image.name for image in ranked]
    assert page.count('src="data:image/webp') == 2 * 12
    assert page.count('data-other="data:image/webp') == 12


def test_infinite_values_leave_valid_files():
    result = evaluation(restored=(math.inf, 30.0), degraded=(math.inf, math.inf))

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    content = json.loads(results_json(result), parse_constant=refuse)
    assert content["mean"]["psnr_y"] == {"restored": "inf", "input": "inf", "gain": 0.0}
    assert content["per_image"][0]["restored"]["psnr_y"] == "inf"
    rows = list(csv.DictReader(per_image_csv(result).splitlines()))
    assert [row["gain_psnr_y"] for row in rows] == ["0.000000", "-inf"]
    assert float(rows[0]["restored_psnr_y"]) == math.inf
    assert "| inf | inf | +0.00 |" in markdown_table([result])


def test_the_markdown_row_names_what_the_numbers_mean():
    result = evaluation(restored=(31.0, 32.0), degraded=(30.0, 30.0))
    header, rule, row = markdown_table([result]).splitlines()
    titles = ["checkpoint", "protocol", "data", "images", "TLC", "precision"]
    assert header == f"| {' | '.join(titles)} | psnr_y | psnr_y of the input | psnr_y gain |"
    assert rule.count("|") == header.count("|")
    assert row == (
        "| demo, step 300 | pairs | data\\|set | 2 | auto, 448 px: no effect on 1, which the window covers "
        "| highest | 31.50 | 30.00 | +1.50 |"
    )


@pytest.mark.parametrize(
    ("covers", "tlc", "window", "text"),
    [
        ((True, True), "auto", 448, "| auto, 448 px: no effect, the window covers every image |"),
        ((False, False), "auto", 448, "| auto, 448 px |"),
        ((False, False), "320", 320, "| 320 px |"),
        ((False, False), "off", None, "| off |"),
    ],
)
def test_the_row_says_whether_tlc_could_act(covers, tlc, window, text):
    result = evaluation((31.0, 32.0), (30.0, 30.0), covers, tlc, window)
    assert text in markdown_table([result])
    acts = [row["tlc_has_effect"] for row in csv.DictReader(per_image_csv(result).splitlines())]
    assert acts == [str(window is not None and not covered).lower() for covered in covers]


def derain(*names):
    return [
        evaluation((31.0 + 2 * place, 32.0), (30.0, 30.0), name=name, protocol="derain")
        for place, name in enumerate(names)
    ]


def test_the_average_is_that_of_the_four_sets_whatever_their_sizes_and_order(tmp_path):
    evaluations = derain("test1200", "rain100l", "test2800", "rain100h", "test100")
    *_, fifth, average = markdown_table(evaluations).splitlines()
    assert fifth.startswith("| demo, step 300 | derain | test100 | 2 |")
    # Of 31.5 + place for the places 1 to 4; Test1200, at place 0, is not one of the four.
    assert average == (
        "| demo, step 300 | derain | average of test100, rain100h, rain100l, test2800 |  |  |  "
        "| 34.00 | 30.00 | +4.00 |"
    )
    write_summary(evaluations, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == json.loads(summary_json(evaluations))
    assert (tmp_path / "results.md").read_text() == markdown_table(evaluations)
    assert list(content["sets"]) == ["test1200", "rain100l", "test2800", "rain100h", "test100"]
    assert content["sets"]["rain100l"]["mean"]["psnr_y"] == {"restored": 32.5, "input": 30.0, "gain": 2.5}
    assert content["average"]["mean"]["psnr_y"] == {"restored": 34.0, "input": 30.0, "gain": 4.0}


def test_no_average_is_formed_of_fewer_sets():
    evaluations = derain("test100", "rain100h", "rain100l", "test1200")
    assert "average" not in markdown_table(evaluations)
    assert json.loads(summary_json(evaluations))["average"] is None


def test_pictures_that_could_not_be_aligned_are_counted():
    result = evaluation((31.0, 32.0), (30.0, 30.0), protocol="realblur_r", converged=(False, True))
    assert "| realblur_r | data\\|set | 2 (2 not aligned) |" in markdown_table([result])
    assert json.loads(results_json(result))["images_not_aligned"] == {"restored": 2, "input": 0}
    rows = list(csv.DictReader(per_image_csv(result).splitlines()))
    assert [(row["aligned"], row["input_aligned"]) for row in rows] == [("false", "true")] * 2
    plain = evaluation((31.0, 32.0), (30.0, 30.0))
    assert "aligned" not in markdown_table([plain]) + per_image_csv(plain)
    assert json.loads(results_json(plain))["images_not_aligned"] == {"restored": None, "input": None}


def test_pictures_stand_side_by_side_at_full_size():
    before, after = np.full((40, 300, 3), 50, np.uint8), np.full((40, 300, 3), 200, np.uint8)
    sheet = np.asarray(side_by_side([before, after], ["before", "after"]))
    np.testing.assert_array_equal(sheet[-40:, :300], before)
    np.testing.assert_array_equal(sheet[-40:, -300:], after)
    assert (sheet[:-40, :150] < 100).any(), "the label is drawn"
    tiny = side_by_side([before[:1, :1], after[:1, :1]], ["before", "after"])
    assert tiny.width > 100, "room for the labels"


def test_the_error_is_black_where_equal_and_amplified():
    target = np.full((2, 2, 3), 100, np.uint8)
    restored = target.copy()
    restored[0, 0] = [103, 97, 100]
    restored[1, 1] = 255
    assert error_picture(restored, target)[:, :, 0].tolist() == [[2 * ERROR_GAIN, 0], [0, 255]]


def test_large_pictures_are_reduced_on_the_sheet_and_long_names_cut():
    picture = np.zeros((900, 1600, 3), np.uint8)
    sheet = comparison_sheet([("a" * 1000, picture, picture, picture)])
    assert sheet.size == (4 * 480 + 5 * 8, 8 + 30 + 30 + 270 + 16)
