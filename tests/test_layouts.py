"""Every layout that people have on disk gives the same pairs under the same names."""

import re
import shutil

import dataset_fixtures
import pytest
from dataset_fixtures import LAYOUTS, pairs_of, write_set

from concertormer_jax.data.images import decode_rgb
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.datasets.layouts import encoded, find, sets_in
from concertormer_jax.runtime.errors import UserError

EVERY_LAYOUT = [(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts]


def find_in(source, name, variant=""):
    return find(SETS[name], SETS[name].variant(variant), source)


def pixels(contents):
    return tuple(decode_rgb(content, "").tobytes() for content in contents)


def test_there_are_fixtures_of_every_set():
    assert LAYOUTS.keys() == SETS.keys()
    for name, layouts in LAYOUTS.items():
        assert len(layouts) > 1
        assert {pair.split for pair in pairs_of(name)} == set(SETS[name].counts) - (
            {"test"} if name == "pairs" else set()
        )


@pytest.mark.parametrize("name, layout", EVERY_LAYOUT)
def test_pairs_are_found_in_every_layout(tmp_path, name, layout):
    found = find_in(write_set(name, layout, tmp_path / "source"), name)
    assert found.unpaired == []
    expected = {}
    for pair in pairs_of(name):
        expected.setdefault(pair.split, []).append((pair.name, pixels((pair.input, pair.target))))
    assert {
        split: [(pair.name, pixels(encoded(pair))) for pair in pairs] for split, pairs in found.pairs.items()
    } == expected
    assert found.places.keys() == found.pairs.keys()
    assert list(found.pairs) == [split for split in SETS[name].counts if split in expected]


def test_gopro_blur_is_chosen_by_variant(tmp_path):
    source = write_set("gopro", "original", tmp_path)
    gamma = find_in(source, "gopro", "blur_gamma")
    expected = {(pair.split, pair.name): pair.gamma for pair in pairs_of("gopro")}
    assert {
        (split, pair.name): pair.input.read_bytes() for split, pairs in gamma.pairs.items() for pair in pairs
    } == expected
    assert {pair.input.parent.name for pair in find_in(source, "gopro", "blur_crops").pairs["train"]} == {"blur"}
    repack = write_set("gopro", "restormer", tmp_path / "repack")
    with pytest.raises(UserError, match=r"holds no pairs of GoPro \(blur_gamma\)"):
        find_in(repack, "gopro", "blur_gamma")


def test_other_sets_and_crops_beside_are_left_out(tmp_path):
    for name in ("gopro", "hide", "realblur_j", "realblur_r", "rain13k"):
        write_set(name, "original" if name == "rain13k" else "restormer", tmp_path)
    crops = tmp_path / "GoPro" / "crop" / "train"
    shutil.copytree(tmp_path / "train" / "GoPro", crops)
    for name in ("gopro", "hide", "realblur_j", "realblur_r", "rain13k"):
        found = find_in(tmp_path, name)
        expected = {(pair.split, pair.name) for pair in pairs_of(name)}
        assert {(split, pair.name) for split, pairs in found.pairs.items() for pair in pairs} == expected
    assert sets_in(tmp_path) == {"gopro", "hide", "realblur_j", "realblur_r", "rain13k"}


@pytest.mark.parametrize("split", ["train", "test"])
def test_source_may_be_the_folder_of_one_split(tmp_path, split):
    write_set("gopro", "original", tmp_path)
    found = find_in(tmp_path / "GOPRO_Large" / split, "gopro")
    assert [pair.name for pair in found.pairs.pop(split)] == [p.name for p in pairs_of("gopro") if p.split == split]
    assert not found.pairs


def test_missing_partners_are_named(tmp_path):
    source = write_set("gopro", "original", tmp_path)
    sequence = source / "GOPRO_Large" / "train" / "GOPR0372_07_00"
    (sequence / "sharp" / "000048.png").unlink()
    (sequence / "blur" / "000049.png").unlink()
    shutil.rmtree(source / "GOPRO_Large" / "test" / "GOPR0384_11_00" / "sharp")
    unpaired = find_in(source, "gopro").unpaired
    assert len(unpaired) == 3
    assert any(re.search(r"blur/000048\.png: has no partner in .*GOPR0372_07_00/sharp", line) for line in unpaired)
    assert any(re.search(r"sharp/000049\.png: has no partner in .*GOPR0372_07_00/blur", line) for line in unpaired)
    assert any(re.search(r"GOPR0384_11_00: has blur/ but no target/", line) for line in unpaired)


def test_missing_partner_beside_is_named(tmp_path):
    source = write_set("sidd", "original", tmp_path)
    next(source.rglob("0001_GT_SRGB_010.PNG")).unlink()
    assert re.search(r"0001_NOISY_SRGB_010\.PNG: has no partner", *find_in(source, "sidd").unpaired)


def test_spare_targets_of_hide_are_no_fault_but_spare_inputs_are(tmp_path):
    source = write_set("hide", "original", tmp_path)
    (source / "HIDE_dataset" / "GT" / "1fromGOPR0950.png").unlink()
    assert re.search(r"1fromGOPR0950\.png: has no partner in .*GT", *find_in(source, "hide").unpaired)


def test_scenes_of_two_days_are_told_apart_and_rsblurs_lists_decide(tmp_path):
    source = write_set("rsblur", "original", tmp_path)
    scenes = [path.parent.name for path in source.rglob("real_blur")]
    assert len(set(scenes)) < len(scenes)
    assert len(find_in(source / "RSBlur", "rsblur").pairs["validation"]) == 2, "the lists may lie beside"
    (source / "RSBlur_real_val.txt").unlink()
    with pytest.raises(UserError, match=r"has no RSBlur_real_val\.txt, which says what belongs to the validation"):
        find_in(source, "rsblur")


def test_reds_with_and_without_jpeg_are_told_apart(tmp_path):
    for name in ("reds", "reds_blur"):
        write_set(name, "original", tmp_path / "both" / "REDS")
    assert sets_in(tmp_path / "both") == {"reds", "reds_blur"}
    for name in ("reds", "reds_blur"):
        found = find_in(tmp_path / "both", name)
        assert {pair.input.suffix for pair in found.pairs["test"]} == {pairs_of(name)[0].input_suffix}
        assert {split: len(pairs) for split, pairs in found.pairs.items()} == {"train": 6, "test": 2}


def test_realblur_needs_its_lists_and_all_that_they_list(tmp_path):
    source = write_set("realblur_j", "original", tmp_path)
    scene = next(source.rglob("scene003"))
    for part in ("blur", "gt"):
        (scene / part / f"{part}_2.png").unlink()
    assert re.search(r"train_list\.txt lists scene003-2, which is missing", *find_in(source, "realblur_j").unpaired)
    unlisted = dataset_fixtures.pairs_of("realblur_j")[0]
    for part, data in (("blur", unlisted.input), ("gt", unlisted.target)):
        (scene / part / f"{part}_77.png").write_bytes(data)
    found = find_in(source, "realblur_j")
    assert "scene003-77" not in {pair.name for pair in found.pairs["train"] + found.pairs["test"]}
    (source / "RealBlur_J_test_list.txt").write_text("one column\nthree columns here\n")
    with pytest.raises(UserError, match=r"RealBlur_J_test_list\.txt: line 2 is not a target path and an input path"):
        find_in(source, "realblur_j")
    (source / "RealBlur_J_test_list.txt").unlink()
    with pytest.raises(UserError, match=r"has no RealBlur_J_test_list\.txt"):
        find_in(source, "realblur_j")


def test_val300_is_chosen_from_the_whole_validation_set(tmp_path):
    source = write_set("reds", "original", tmp_path)
    assert len(list(source.rglob("val_sharp/*/*.png"))) == 4
    assert [pair.name for pair in find_in(source, "reds").pairs["test"]] == ["000-00000009", "001-00000009"]


def test_reds_archives_may_be_unpacked_side_by_side(tmp_path):
    write_set("reds", "original", tmp_path / "there")
    for folder in (tmp_path / "there").glob("*/*"):
        shutil.move(folder, tmp_path / "here" / folder.name)
    pairs = find_in(tmp_path / "here", "reds").pairs
    assert {split: len(items) for split, items in pairs.items()} == {"train": 6, "test": 2}


def test_two_copies_are_refused_and_named(tmp_path):
    write_set("gopro", "original", tmp_path)
    write_set("gopro", "restormer", tmp_path)
    with pytest.raises(UserError, match=r"GOPR0384_11_00-000047.*is also in .*; give the folder of one copy"):
        find_in(tmp_path, "gopro")


def test_two_files_of_one_name_are_refused(tmp_path):
    source = write_set("gopro", "restormer", tmp_path)
    folder = source / "train" / "GoPro" / "input"
    shutil.copy(folder / "GOPR0372_07_00-000047.png", folder / "GOPR0372_07_00-000047.jpg")
    with pytest.raises(UserError, match=r"is GOPR0372_07_00-000047, as is .*; remove one"):
        find_in(source, "gopro")


def test_empty_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no pairs of HIDE; expected folders such as"):
        find_in(tmp_path, "hide")
    with pytest.raises(UserError, match="gone: no such folder"):
        find_in(tmp_path / "gone", "hide")
    with pytest.raises(UserError, match="gone: no such folder"):
        sets_in(tmp_path / "gone")


@pytest.mark.parametrize("name, layout", [(name, layout) for name, layout in EVERY_LAYOUT if name != "pairs"])
def test_sets_are_recognised_by_their_folders(tmp_path, name, layout):
    assert sets_in(write_set(name, layout, tmp_path)) == {name}


@pytest.mark.parametrize(
    "path, expected", [("test/HIDE", {"hide"}), ("Rain100H", {"rain13k"}), ("REDS/mine", {"reds"}), ("mine", set())]
)
def test_sets_are_recognised_by_their_own_path(tmp_path, path, expected):
    (tmp_path / path / "input").mkdir(parents=True)
    assert sets_in(tmp_path / path) == expected
