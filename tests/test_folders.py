"""What a folder of pictures holds: pairs in whatever layout, or photographs, and never one taken for the other."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import write_set

from concertormer_jax.data.folders import contents_of, find_pairs, role_of, side_in, split_of, without_side
from concertormer_jax.data.images import list_images, write_png
from concertormer_jax.data.listing import is_leftover
from concertormer_jax.data.sources import PairSource, PhotoSource, open_source
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.datasets.preparation import examine
from concertormer_jax.evaluation.sets import open_evaluation_sets
from concertormer_jax.runtime.errors import UserError

SIDES = [
    *(("input", "target"), ("blur", "sharp"), ("blur", "gt"), ("rain", "norain"), ("lq", "gt"), ("lr", "hr")),
    *(("noisy", "clean"), ("BLUR", "Sharp"), ("Input", "GroundTruth"), ("ground-truth", "blurred"), ("LRx4", "HR")),
    *(("blur_images", "sharp_images"), ("jpeg_blur", "jpeg_sharp"), ("low", "high"), ("hazy", "clear")),
    *(("before", "after"), ("inputs", "reference"), ("Rainy Images", "No-Rain")),
]


def put(folder, *names):
    """Write small pictures, degraded or not, which all differ."""
    for name in names:
        seed = list(f"{folder}/{name}".encode())
        write_png(Path(folder) / name, np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8))


def is_pair_of(pair, folder, degraded, sharp):
    return pair.input == folder / degraded and pair.target == folder / sharp


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("below", ["", "data/new"])
def test_sides_are_known_by_their_names_in_every_part(tmp_path, sides, below):
    degraded, sharp = sorted(sides, key=lambda name: role_of(name).side)
    put(tmp_path / below / degraded, "scene/1.png", "2.png")
    put(tmp_path / below / sharp, "scene/1.png", "2.png")
    source = open_source(tmp_path)
    assert isinstance(source, PairSource) and len(source) == 2
    folder = tmp_path / below
    assert is_pair_of(source.items[0], folder, f"{degraded}/2.png", f"{sharp}/2.png")
    assert is_pair_of(source.items[1], folder, f"{degraded}/scene/1.png", f"{sharp}/scene/1.png")
    _, evaluated = open_evaluation_sets(str(tmp_path))
    assert [part.items for part in evaluated.values()] == [source.items]
    found, _ = examine("pairs/own", tmp_path)
    assert [(pair.input, pair.target) for pair in found.pairs[next(iter(found.pairs))]] == [
        (pair.input, pair.target) for pair in source.items
    ]
    with pytest.raises(UserError, match="holds pairs already"):
        synthesize(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name, layout", [("gopro", "original"), ("gopro", "blur_sharp"), ("reds", "original")])
def test_training_folders_of_benchmarks_hold_pairs_in_sequences(tmp_path, name, layout):
    write_set(name, layout, tmp_path)
    (train,) = (path for path in tmp_path.rglob("train") if path.is_dir())
    pairs = find_pairs(train)
    assert len(pairs) == (9 if name == "gopro" else 6)
    for pair in pairs:
        assert "blur" in pair.input.parent.as_posix() and "sharp" in pair.target.parent.as_posix()
        assert "gamma" not in pair.input.as_posix()
    source = open_source(train)
    assert ("such as" in source.describe()) and str(pairs[0].target) in source.describe()
    unused = [path for path in list_images(train) if "blur_gamma" in path.parts]
    assert not unused or f"not used: {len(unused)}, such as {unused[0]}" in source.describe()


@pytest.mark.parametrize(
    "degraded, sharp, name",
    [
        ("blur/blur_1.png", "gt/gt_1.png", "1"),
        ("rain/rain-001.png", "norain/norain-001.png", "001"),
        ("input/0001_NOISY_SRGB_010.png", "target/0001_GT_SRGB_010.png", "0001-srgb-010"),
        ("lr/0801x4.png", "hr/0801.png", "0801"),
        ("input/A.PNG", "target/A.png", "A"),
    ],
)
def test_names_may_differ_by_the_side_they_are_of(tmp_path, degraded, sharp, name):
    put(tmp_path / "scene", degraded, sharp)
    (pair,) = contents_of(tmp_path).pairs
    assert pair.name == f"scene/{name}" and is_pair_of(pair, tmp_path / "scene", degraded, sharp)


def test_first_name_without_partner_is_named_with_both_sides(tmp_path):
    put(tmp_path / "blur", "1.png", "2.png", "3.png", "5.png")
    put(tmp_path / "sharp", "1.png", "4.png")
    message = rf"{tmp_path}/blur/2\.png: has no partner 2\.\* in {tmp_path}/sharp \(nor have 2 more\); add it or remove"
    for open_folder in (open_source, find_pairs, lambda folder: open_evaluation_sets(str(folder))):
        with pytest.raises(UserError, match=message):
            open_folder(tmp_path)


@pytest.mark.parametrize(
    "folders, message",
    [
        (["blur"], r"has blur/ but no folder with its sharp partners .*; add it, or rename blur/"),
        (["sharp"], r"has sharp/ but no folder with its degraded partners .*; add it, or give .*/sharp itself"),
        (["album", "trip/Blurry"], r"trip: has Blurry/ but no folder with its sharp partners"),
        (["my blurred ones", "others"], r"has my blurred ones/ but no folder with its sharp partners"),
        (["blur", "noisy", "gt"], r"has several folders of degraded pictures, blur/, noisy/; leave the one"),
        (["input", "gt", "sharp"], r"has several folders of targets, gt/, sharp/; leave the one"),
        (["inputC", "inputL", "target"], r"inputC/ and target/ look like pairs; call them input/ and target/"),
        (["DIV2K_train_HR", "DIV2K_train_LR_bicubic"], r"look like pairs; call them input/ and target/"),
        (["train/input", "train/target", "test/input", "test/target"], r"give .*/train to train on, or .*/test to val"),
        (["train/blur", "train/sharp", "val/blur", "val/sharp"], r"give .*/train to train on, or .*/val to validate"),
        (["GoPro/train/a", "GoPro/test/a"], r"training and test pictures together; give .*/GoPro/train to train on"),
        (["blur/train", "blur/test", "sharp/train", "sharp/test"], r"holds training and test pictures together"),
        (["photos_train", "photos_valid"], r"holds training and test pictures together"),
    ],
)
def test_what_looks_like_pairs_or_a_benchmark_and_cannot_be_used_is_refused(tmp_path, folders, message):
    for folder in folders:
        put(tmp_path / folder, "1.png", "2.png")
    for open_folder in (open_source, find_pairs, lambda folder: synthesize(folder, tmp_path / "out")):
        with pytest.raises(UserError, match=message):
            open_folder(tmp_path)


@pytest.mark.parametrize(
    "names", [("rain-1.png", "norain-1.png"), ("0_NOISY_1.png", "0_GT_1.png"), ("a.png", "a_blur.png")]
)
def test_pairs_side_by_side_in_one_folder_are_no_photographs(tmp_path, names):
    put(tmp_path / "both", "other.png", *names)
    with pytest.raises(UserError, match=r"looks like the degraded partner of .*put degraded pictures into input/"):
        open_source(tmp_path)


def test_sets_whose_split_stands_in_lists_are_refused_with_the_lists(tmp_path):
    source = write_set("realblur_j", "original", tmp_path / "source")
    scenes = next(path for path in source.iterdir() if path.is_dir())
    for folder in (source, scenes):
        with pytest.raises(UserError, match=r"train_list\.txt and .*test_list\.txt say which .* prepare the set"):
            open_source(folder)


def test_degraded_side_alone_is_no_folder_of_photographs(tmp_path):
    put(tmp_path / "blur" / "scene", "1.png")
    put(tmp_path / "sharp" / "scene", "1.png")
    for folder in (tmp_path / "blur", tmp_path / "blur" / "scene"):
        with pytest.raises(UserError, match=rf"is the degraded side of pairs with {tmp_path}/sharp; give {tmp_path},"):
            open_source(folder)
    assert isinstance(open_source(tmp_path / "sharp"), PhotoSource)


@pytest.mark.parametrize(
    "folders",
    [["2019", "rain in Spain"], ["high", "sea"], ["originals"], ["train rides"], ["snow", "sun"], ["a/b", "b"]],
)
def test_albums_are_photographs(tmp_path, folders):
    for folder in folders:
        put(tmp_path / folder, "IMG_1.png", "IMG_2.png")
    source = open_source(tmp_path)
    assert isinstance(source, PhotoSource) and len(source) == 2 * len(folders)
    assert f"{len(source)} sharp photographs, such as {source.items[0]}, degraded by CameraShake" == source.describe()


def test_folders_of_pairs_for_several_tasks_are_no_sides(tmp_path):
    for task in ("rain", "noise", "blur"):
        for side in ("input", "target"):
            put(tmp_path / task / side, "1.png")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["blur/1", "noise/1", "rain/1"]
    found, _ = examine("pairs/own", tmp_path)
    assert [pair.name for pair in found.pairs["train"]] == ["blur/1", "noise/1", "rain/1"]


def test_photographs_are_not_evaluated(tmp_path):
    put(tmp_path, "1.png")
    with pytest.raises(UserError, match=r"holds pictures but no pairs, such as .*1\.png; put degraded pictures into"):
        open_evaluation_sets(str(tmp_path))


LEFTOVERS = [
    *("._1.png", ".thumbnails/1.png", "@eaDir/1.png/SYNOFILE_THUMB_M.png", "#recycle/1.png", "__MACOSX/1.png"),
    *("$RECYCLE.BIN/1.png", "lost+found/1.png", ".ipynb_checkpoints/1-checkpoint.png", "M4ROOT/THMBNL/1.JPG"),
    *(".@__thumb/1.png", "Thumbnails/1.png", "~1.png", "System Volume Information/1.png", "found.000/1.png"),
    *("1.sync-conflict-20240101-120000-ABCDEFG.png", "@Recycle/1.png", ".Trash-1000/files/1.png", "Lib.lrdata/1.jpg"),
]


@pytest.mark.parametrize("leftover", LEFTOVERS)
def test_what_other_software_left_behind_is_no_data(tmp_path, leftover):
    put(tmp_path / "input", "1.png")
    put(tmp_path / "target", "1.png")
    for side in ("input", "target"):
        path = tmp_path / side / leftover
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a picture of other software")
    (tmp_path / leftover).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / leftover).write_bytes(b"")
    assert list_images(tmp_path) == [tmp_path / "input" / "1.png", tmp_path / "target" / "1.png"]
    assert [pair.name for pair in find_pairs(tmp_path)] == ["1"]
    assert len(examine("pairs/own", tmp_path)[0].pairs["train"]) == 1


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Picasa.ini", "IMG_1.AAE", "MVI_1.THM", "a.xmp"),
        *("a.jpg~", "a.png.bak", "a.jpg.orig", "#a.png#", "a.jpg.part", "a.jpg.crdownload", "Icon\r", "GX01.LRV"),
    ],
)
def test_leftovers_are_told_by_name(name):
    assert is_leftover(name)


@pytest.mark.parametrize("name", ["a.jpg", "Thumbs up.jpg", "back.png", "originals", "my thumbnails.png", "x~y.png"])
def test_data_are_no_leftovers(name):
    assert not is_leftover(name)


def test_pictures_that_are_no_files_are_named(tmp_path):
    put(tmp_path, "1.png")
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png: is a named pipe, a device or a socket and no picture file; remove"):
        open_source(tmp_path)
    (tmp_path / "x.png").unlink()
    for target in ("gone.png", "x.png"):
        (tmp_path / "x.png").symlink_to(target)
        with pytest.raises(UserError, match=r"x\.png: is a link to nothing and no picture file"):
            list_images(tmp_path)
        (tmp_path / "x.png").unlink()
    (tmp_path / "null.png").symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"null\.png: is .*no picture file"):
        list_images(tmp_path)
    (tmp_path / "null.png").unlink()
    os.mkfifo(tmp_path / "notes.txt")  # of no concern
    (tmp_path / "link.png").symlink_to("1.png")
    assert [path.name for path in list_images(tmp_path)] == ["1.png", "link.png"]


def test_pipe_among_pairs_is_named_by_preparation_too(tmp_path):
    source = write_set("gopro", "original", tmp_path)
    os.mkfifo(next(source.rglob("blur")) / "x.png")
    with pytest.raises(UserError, match=r"blur/x\.png: is a named pipe"):
        examine("gopro", source)


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    put(tmp_path / "closed", "1.png")
    put(tmp_path, "2.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"closed: cannot be read \(Permission denied\); change its mode or owner"):
        list_images(tmp_path)


def test_folders_that_link_to_each_other_are_listed_once(tmp_path):
    put(tmp_path / "a", "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    assert [path.name for path in list_images(tmp_path)] == ["1.png"]


def test_names_of_sides_and_splits():
    assert (role_of("sharp").side, role_of("no rain").side, role_of("lqs"), role_of("2019")) == (
        *("target", "target"),
        *(None, None),
    )
    assert role_of("blur").rank < role_of("blur_gamma").rank < role_of("low").rank < role_of("my blur").rank
    assert (side_in("a_GT_1"), side_in("noisy_gt"), side_in("blurry-2")) == ("target", None, "input")
    assert without_side("scene001_blur_1") == without_side("scene001_gt_1") == "scene-001-1"
    assert [split_of(name) for name in ("DIV2K_valid_HR", "Test100", "trainset", "attest")] == [
        *("test", "test", "train"),
        None,
    ]


def test_own_pairs_keep_their_split_in_every_layout(tmp_path):
    for split in ("train", "test"):
        for side in ("Blur", "Sharp"):
            put(tmp_path / split / "walk" / side, "1.png", "2.png")
    found, _ = examine("pairs/own", tmp_path)
    assert {split: [pair.name for pair in pairs] for split, pairs in found.pairs.items()} == {
        "train": ["walk/1", "walk/2"],
        "test": ["walk/1", "walk/2"],
    }
    shutil.rmtree(tmp_path / "test")
    assert [pair.name for pair in find_pairs(tmp_path)] == ["train/walk/1", "train/walk/2"]
