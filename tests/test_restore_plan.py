"""Every result of a call is known before it begins, has a name of its own, and is no original."""

import os

import numpy as np
import pytest
from PIL import Image

from concertormer_jax.photos.restoring import plan
from concertormer_jax.runtime import outputs
from concertormer_jax.runtime.errors import UserError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def results(work):
    return [path.name for job in work.jobs for path in (job.after, job.comparison) if path]


def test_a_comparison_does_not_overwrite_the_original(tmp_path):
    touch(tmp_path, "a_compare.png")
    with pytest.raises(UserError, match=r"a_compare\.png: would overwrite the original"):
        plan(tmp_path / "a_compare.png", tmp_path / "a.png", compare=True)
    assert results(plan(tmp_path / "a_compare.png", tmp_path / "a.png")) == ["a.png"]


def test_no_two_results_share_a_file(tmp_path):
    touch(tmp_path / "in", "a.jpg", "a.tif", "b.png", "b.gif", "c.png", "c_compare.png")
    names = results(plan(tmp_path / "in", tmp_path / "out", compare=True))
    assert sorted(names) == sorted(
        {"a.jpg", "a_jpg_compare.png", "a.tif", "a_tif_compare.png", "b_gif.png", "b_gif_compare.png"}
        | {"b.png", "b_png_compare.png", "c.png", "c_png_compare.png", "c_compare.png", "c_compare_compare.png"}
    )


def test_names_that_differ_in_case_alone_are_told_apart_only_by_disks_that_do(tmp_path, monkeypatch):
    touch(tmp_path / "in", "A.png", "a.png")
    assert results(plan(tmp_path / "in", tmp_path / "out")) == ["A.png", "a.png"]
    monkeypatch.setattr(outputs, "_tells_case_apart", lambda folder: False)
    with pytest.raises(UserError, match=r"out/a\.png: two results would have this name"):
        plan(tmp_path / "in", tmp_path / "out")
    touch(tmp_path / "composed", "e\u0301.png", "\u00e9.png")
    with pytest.raises(UserError, match="two results would have this name"):
        plan(tmp_path / "composed", tmp_path / "out")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_result_is_an_original_by_another_name(tmp_path, link):
    touch(tmp_path / "in", "a.png")
    (tmp_path / "out").mkdir()
    link(tmp_path / "in" / "a.png", tmp_path / "out" / "a.png")
    with pytest.raises(UserError, match=r"out/a\.png: would overwrite the original"):
        plan(tmp_path / "in", tmp_path / "out")


def test_the_folder_of_results_is_not_that_of_the_originals(tmp_path):
    touch(tmp_path / "in", "a.gif", "sub/b.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for destination in (tmp_path / "in", tmp_path / "link", tmp_path / "in" / "sub" / ".."):
        with pytest.raises(UserError, match="would overwrite the originals"):
            plan(tmp_path / "in", destination)
    (tmp_path / "in" / "sub" / "up").symlink_to(tmp_path / "in")
    work = plan(tmp_path / "in", tmp_path / "out", recursive=True)
    assert [job.after for job in work.jobs] == [tmp_path / "out" / "a.png", tmp_path / "out" / "sub" / "b.png"]


def test_a_folder_in_the_place_of_a_result_is_found_before(tmp_path):
    touch(tmp_path / "in", "a.png")
    touch(tmp_path / "out", "a.png/x")
    with pytest.raises(UserError, match=r"out/a\.png: is a folder"):
        plan(tmp_path / "in", tmp_path / "out")


def test_a_folder_with_pictures_in_subfolders_alone_names_the_flag(tmp_path):
    touch(tmp_path / "in", "sub/a.png", "sub/b.jpg", "notes.txt")
    with pytest.raises(UserError, match="holds no pictures; 2 are in subfolders, which --recursive takes"):
        plan(tmp_path / "in", tmp_path / "out")


def test_a_destination_that_ends_in_a_slash_is_a_folder(tmp_path):
    touch(tmp_path, "a.heic")
    (job,) = plan(tmp_path / "a.heic", f"{tmp_path}/new/").jobs
    assert job.after == tmp_path / "new" / "a.png"


def test_formats_that_the_installed_pillow_cannot_write_are_refused_before(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(UserError, match=r"out\.webp: the installed Pillow cannot write WEBP"):
        plan(tmp_path / "a.png", tmp_path / "out.webp")
