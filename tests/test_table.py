"""The results table: the paper's numbers, published weights' and our own never mix, and what differs is said."""

import json

import pytest

from concertormer_jax.commands.table import main
from concertormer_jax.evaluation.table import read_results, results_table
from concertormer_jax.runtime.errors import UserError


def write_results(path, protocol="gopro", name="gopro", variant="gopro", psnr=33.0, images=1111, **changes):
    metrics = {"gopro": ("psnr_rgb", "ssim_rgb_3d"), "realblur_j": ("psnr_realblur", "ssim_realblur")}
    names = metrics.get(protocol, ("psnr_y", "ssim_y"))
    window = {"gopro": 448, "realblur_j": 320}.get(protocol, 448)
    content = {
        "checkpoint": "mine",
        "variant": variant,
        "protocol": protocol,
        "set": name,
        "images": images,
        "tlc": {"setting": "auto", "window_px": window},
        "mean": {names[0]: {"restored": psnr}, names[1]: {"restored": 0.9555}},
    }
    path.write_text(json.dumps(content | changes))
    return path


def row(table, start):
    (found,) = [line for line in table.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_without_results_it_is_the_paper_alone():
    table = results_table([])
    header = "| set | network | metrics | paper | published weights | trained here |"
    assert table.splitlines()[0] == header
    assert row(table, "gopro | gopro")[2:] == ["psnr_rgb / ssim_rgb_3d", "34.42 / 0.971", "-", "-"]
    assert row(table, "gopro | lite")[3:] == ["33.53 / 0.961", "-", "-"]
    assert row(table, "hide | gopro")[3:] == ["32.12 / 0.951", "-", "-"]
    assert row(table, "realblur_r | gopro")[2:] == ["psnr_realblur / ssim_realblur", "40.78 / 0.977", "-", "-"]
    assert row(table, "realblur_j | gopro")[3:] == ["33.51 / 0.945", "-", "-"]
    assert row(table, "derain: average | gopro")[2:] == ["psnr_y / ssim_y", "34.60 / 0.943", "-", "-"]
    assert row(table, "reds | gopro")[3:] == row(table, "sidd | sidd")[3:] == ["-", "-", "-"]


def test_results_go_into_the_column_they_are_given_for(tmp_path):
    ours, theirs = write_results(tmp_path / "a.json", psnr=33.016), write_results(tmp_path / "b.json", psnr=34.404)
    table = results_table([ours], [theirs])
    assert row(table, "gopro | gopro")[3:] == ["34.42 / 0.971", "34.40 / 0.956", "33.02 / 0.956"]
    assert row(results_table([ours]), "gopro | gopro")[3:] == ["34.42 / 0.971", "-", "33.02 / 0.956"]


def test_another_network_gets_a_row_of_its_own_without_a_paper_figure(tmp_path):
    table = results_table([write_results(tmp_path / "a.json", variant="demo")])
    assert row(table, "gopro | demo")[3:] == ["-", "-", "33.00 / 0.956"]
    assert row(table, "gopro | gopro")[3:] == ["34.42 / 0.971", "-", "-"]


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"images": 3}, "3 of 1,111 images"),
        ({"tlc": {"setting": "off", "window_px": None}}, "TLC off"),
        ({"tlc": {"setting": "256", "window_px": 256}}, "TLC 256 px"),
        ({"precision": "default"}, "precision default"),
    ],
)
def test_what_differs_from_the_protocol_is_said(tmp_path, changes, remark):
    table = results_table([write_results(tmp_path / "a.json", **changes)])
    assert row(table, "gopro | gopro")[5] == f"33.00 / 0.956 ({remark})"


def test_pictures_that_could_not_be_aligned_are_said(tmp_path):
    options = {"protocol": "realblur_j", "name": "realblur_j", "images": 980}
    some = write_results(tmp_path / "a.json", images_not_aligned={"restored": 4, "input": 9}, **options)
    assert row(results_table([some]), "realblur_j | gopro")[5] == "33.00 / 0.956 (4 not aligned)"
    none = write_results(tmp_path / "a.json", images_not_aligned={"restored": 0, "input": 9}, **options)
    assert row(results_table([none]), "realblur_j | gopro")[5] == "33.00 / 0.956"


def test_a_summary_gives_every_set_and_the_average_with_its_remarks(tmp_path):
    def scores(psnr, images):
        means = {"psnr_y": {"restored": psnr}, "ssim_y": {"restored": 0.9}}
        return {"images": images, "tlc": {"setting": "auto", "window_px": 448}, "mean": means}

    content = {
        "checkpoint": "mine",
        "variant": "gopro",
        "protocol": "derain",
        "sets": {"test100": scores(30, 100), "rain100h": scores(31, 7), "test1200": scores(32, 2)},
        "average": {"sets": ["test100", "rain100h"], "mean": scores(30.5, 0)["mean"]},
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    table = results_table([tmp_path])
    assert row(table, "derain: average | gopro")[3:] == ["34.60 / 0.943", "-", "30.50 / 0.900 (7 of 100 images)"]
    assert row(table, "derain: test100 | gopro")[5] == "30.00 / 0.900"
    content["average"] = None
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert [result.set for result in read_results(tmp_path)] == ["test100", "rain100h", "test1200"]
    assert row(results_table([tmp_path]), "derain: average | gopro")[5] == "-"


def test_what_cannot_stand_in_the_table_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing/results\.json: no such file|missing: no such file"):
        results_table([tmp_path / "missing"])
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", "{}", '{"variant": "x"}'):
        bad.write_text(text)
        with pytest.raises(UserError, match=r"bad\.json: is no results\.json"):
            results_table([bad])
    for sets in ([], {"a": None}, {"a": {"mean": []}}, {"a": {"images": 1, "tlc": 3, "mean": {}}}):
        bad.write_text(json.dumps({"protocol": "gopro", "variant": "gopro", "sets": sets}))
        with pytest.raises(UserError, match=r"bad\.json: "):
            results_table([bad])
    with pytest.raises(UserError, match=r"a\.json: scores pictures of other software"):
        results_table([write_results(tmp_path / "a.json", variant=None)])
    with pytest.raises(UserError, match=r"a\.json: is of no benchmark"):
        results_table([write_results(tmp_path / "a.json", protocol="pairs")])
    with pytest.raises(UserError, match=r"a\.json: lacks psnr_rgb, which gopro needs"):
        results_table([write_results(tmp_path / "a.json", mean={"psnr_y": {"restored": 30}})])
    twice = [write_results(tmp_path / "a.json"), write_results(tmp_path / "b.json")]
    with pytest.raises(UserError, match=r"b\.json: and .*a\.json are both of gopro on gopro"):
        results_table(twice)


def test_the_command_prints_and_writes_the_table(tmp_path, capsys):
    ours, theirs = write_results(tmp_path / "a.json"), write_results(tmp_path / "b.json", psnr=34.4)
    output = tmp_path / "table.md"
    main([str(ours), "--published", str(theirs), f"--output={output}"])
    assert capsys.readouterr().out == output.read_text() == results_table([ours], [theirs])
    with pytest.raises(SystemExit):
        main([str(tmp_path / "missing.json")])
    before = ours.read_text()
    with pytest.raises(SystemExit):
        main([str(ours), f"--output={ours}"])
    assert ours.read_text() == before
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"psnr": "abc"}, {"images": "7"}, {"psnr": None}])
def test_values_that_are_no_numbers_are_one_sentence(tmp_path, changes):
    path = write_results(tmp_path / "a.json", **changes)
    with pytest.raises(UserError, match=r"a\.json: is damaged, or no results\.json"):
        results_table([path])
