"""Whatever is wrong with a set is found and named; what is right is not."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from dataset_fixtures import LAYOUTS, encoded, sharp_picture, write_set

from concertormer_jax.datasets import verify
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.datasets.layouts import find
from concertormer_jax.datasets.verify import check


def check_in(source, name):
    """Check as if the fixture's numbers were the published ones."""
    description = SETS[name]
    found = find(description, description.variants[0], source)
    counts = dict.fromkeys(description.counts) | {split: len(items) for split, items in found.pairs.items()}
    return check(dataclasses.replace(description, counts=counts), found)


def exchange(one, other):
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


@pytest.fixture
def gopro(tmp_path):
    write_set("gopro", "nafnet", tmp_path)
    return tmp_path / "GoPro"


def name_of(frame, sequence="GOPR0372_07_00"):
    return f"{sequence}-{frame:06d}.png"


def matching(messages, pattern):
    return [message for message in messages if re.search(pattern, message)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_good_set_has_neither_errors_nor_warnings(tmp_path, name):
    report = check_in(write_set(name, next(iter(LAYOUTS[name])), tmp_path), name)
    assert (report.errors, report.warnings) == ([], [])
    for part in report.splits.values():
        partners, strangers = part.pairing.usual
        assert partners > strangers + 3


def test_report_says_what_was_found(gopro):
    train = check_in(gopro, "gopro").splits["train"]
    assert train.sequences == 3
    assert train.sizes == {(48, 64): 9}
    assert train.bytes == sum(path.stat().st_size for path in (gopro / "train").rglob("*.png"))


def test_other_counts_than_published_are_a_warning(gopro):
    description = SETS["gopro"]
    shutil.rmtree(gopro / "test")
    report = check(description, find(description, description.variants[0], gopro))
    assert report.warnings == [
        "train: has 9 pairs, the published one 2,103.",
        "test: not found; the published one has 1,111 pairs.",
    ]
    assert report.errors == []


def test_the_training_set_of_rain13k_is_one_pair_smaller_than_papers_say():
    assert SETS["rain13k"].counts["train"] == 13711


def test_one_exchanged_input_is_named_with_the_other(gopro):
    # Neighbouring frames are the hardest case, other sequences the easiest.
    for other in (name_of(48), name_of(49, "GOPR0378_13_00")):
        files = gopro / "train" / "input" / name_of(47), gopro / "train" / "input" / other
        exchange(*files)
        (error,) = check_in(gopro, "gopro").errors
        assert re.search(rf"{name_of(47)}: seems to be exchanged with .*input/{other} \(.* dB against .* dB", error)
        exchange(*files)
    assert check_in(gopro, "gopro").errors == []


def test_inputs_that_changed_places_in_a_ring_are_named(gopro):
    frames = [gopro / "train" / "input" / name_of(frame) for frame in (47, 48, 49)]
    exchange(frames[0], frames[1])
    exchange(frames[1], frames[2])
    report = check_in(gopro, "gopro")
    assert len(report.errors) == 1 and matching(report.errors, "3 of 9 inputs show what the target of another pair")


@pytest.mark.parametrize("order", ["misaligned", "shuffled"])
def test_misaligned_and_shuffled_folders_are_one_error(gopro, order):
    targets = sorted((gopro / "train" / "target").iterdir())
    contents = [path.read_bytes() for path in targets]
    places = np.roll(np.arange(9), 1) if order == "misaligned" else np.random.default_rng(1).permutation(9)
    for path, place in zip(targets, places, strict=True):
        path.write_bytes(contents[place])
    report = check_in(gopro, "gopro")
    (error,) = report.errors
    assert re.search(r"of 9 inputs show what the target of another pair does .*: the folder is shuffled", error)


def test_exchanged_folders_are_an_error(gopro):
    exchange(gopro / "train" / "input", gopro / "train" / "target")
    (error,) = check_in(gopro, "gopro").errors
    assert re.search(r"most other inputs have more detail than their targets: the folders .* exchanged", error)


def test_one_pair_with_changed_sides_is_a_warning(gopro):
    exchange(*(gopro / "train" / part / name_of(48) for part in ("input", "target")))
    report = check_in(gopro, "gopro")
    assert report.errors == []
    assert matching(report.warnings, rf"input/{name_of(48)}: has more detail than its target, unlike most")


def test_foreign_picture_is_a_warning(gopro):
    (gopro / "train" / "input" / name_of(48)).write_bytes(encoded(sharp_picture(35, 0)))
    assert matching(check_in(gopro, "gopro").warnings, rf"{name_of(48)}: has hardly anything in common|is more like")


def test_truncated_and_unreadable_files_are_named(gopro):
    path = gopro / "train" / "target" / name_of(48)
    path.write_bytes(path.read_bytes()[:-2000])
    (gopro / "train" / "input" / name_of(49)).write_bytes(b"")
    errors = check_in(gopro, "gopro").errors
    assert len(errors) == 2
    assert matching(errors, rf"target/{name_of(48)}: cannot be decoded .*truncated")
    assert matching(errors, rf"input/{name_of(49)}: is empty")


def test_truncated_jpeg_is_named(tmp_path):
    source = write_set("reds", "input_target", tmp_path)
    path = source / "REDS" / "train" / "input" / "000-00000008.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    assert matching(check_in(source, "reds").errors, r"input/000-00000008\.jpg: cannot be decoded .*truncated")


def test_wrongly_sized_picture_is_named(gopro):
    (gopro / "train" / "input" / name_of(48)).write_bytes(encoded(sharp_picture(0, 0, 40, 64)))
    (error,) = check_in(gopro, "gopro").errors
    assert re.search(rf"input/{name_of(48)}: is 64x40 but its target .*target/{name_of(48)} is 64x48", error)


def test_copied_input_is_named(gopro):
    shutil.copy(*(gopro / "train" / "input" / name_of(frame) for frame in (47, 49)))
    errors = check_in(gopro, "gopro").errors
    assert len(errors) == 1
    assert matching(errors, rf"{name_of(49)}: is the same picture as .*{name_of(47)}, but their targets differ")


def test_copied_target_is_named(gopro):
    shutil.copy(*(gopro / "train" / "target" / name_of(frame) for frame in (47, 49)))
    assert matching(check_in(gopro, "gopro").warnings, rf"target/{name_of(49)}: is the same picture as .*{name_of(47)}")


def test_pair_that_occurs_twice_is_named(gopro):
    for part in ("input", "target"):
        shutil.copy(gopro / "train" / part / name_of(47), gopro / "train" / part / name_of(99))
        shutil.copy(gopro / "train" / part / name_of(48), gopro / "test" / part / name_of(48))
    warnings = check_in(gopro, "gopro").warnings
    assert matching(warnings, rf"train/input/{name_of(99)}: is the same pair of pictures as .*{name_of(47)}\.")
    assert matching(warnings, rf"test/input/{name_of(48)}: is the same pair .* so that test and train share pictures")


def test_rain_may_fall_twice_on_one_picture(tmp_path):
    source = write_set("rain13k", "original", tmp_path)
    targets = source / "train" / "Rain13K" / "target"
    inputs = source / "train" / "Rain13K" / "input"
    (targets / "7.png").write_bytes((targets / "1.png").read_bytes())
    pixels = sharp_picture(1, 0)
    pixels[10:14, 10:40] = 255
    (inputs / "7.png").write_bytes(encoded(pixels))
    report = check_in(source, "rain13k")
    assert (report.errors, matching(report.warnings, "same picture")) == ([], [])


def test_blocks_are_named_in_their_file(tmp_path):
    import scipy.io

    source = write_set("sidd", "original", tmp_path)
    path = source / "ValidationNoisyBlocksSrgb.mat"
    blocks = scipy.io.loadmat(path)["ValidationNoisyBlocksSrgb"]
    blocks[0, 1] = blocks[1, 0]
    scipy.io.savemat(path, {"ValidationNoisyBlocksSrgb": blocks})
    (error,) = check_in(source, "sidd").errors
    assert re.search(r"ValidationNoisyBlocksSrgb\.mat, block 0001-00: is the same picture as .*block 0000-01", error)


def test_brightness_and_contrast_do_not_matter_when_pairs_are_compared():
    pictures = np.stack([verify.thumbnail(sharp_picture(scene, 0)) for scene in range(6)])
    darker = (pictures * 0.5 + 20).astype(np.uint8)
    found = verify.compare(darker, pictures)
    assert np.all(found.partner > 35) and np.all(found.stranger < 30)
    assert not found.beaten.any() and not found.unlike.any()


def test_flat_pictures_are_not_judged():
    flat = np.full((3, 64, 64), 7, np.uint8)
    flat[0] = verify.thumbnail(sharp_picture(0, 0))
    found = verify.compare(flat, flat[::-1])
    assert not found.beaten.any() and not found.unlike.any()
    assert verify.compare(flat[1:], flat[1:]).usual is None


def test_large_sets_are_compared_in_parts():
    coarse = np.random.default_rng(0).integers(0, 256, (1100, 8, 8), np.uint8)
    pictures = coarse.repeat(8, axis=1).repeat(8, axis=2)
    inputs = pictures.copy()
    inputs[[3, 1090]] = inputs[[1090, 3]]
    found = verify.compare(inputs, pictures)
    assert np.flatnonzero(found.misplaced).tolist() == [3, 1090]
    assert found.nearest[[3, 1090]].tolist() == [1090, 3]
