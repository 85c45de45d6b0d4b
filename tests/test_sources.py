"""Folders of pairs and photographs: what is paired, cropped, mixed, held out and refused."""

import collections
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from training_runs import override

from concertormer_jax.data import images
from concertormer_jax.data.degrade import CameraShake
from concertormer_jax.data.folders import Pair, find_pairs
from concertormer_jax.data.held_out import hold_out
from concertormer_jax.data.images import write_png
from concertormer_jax.data.sources import Mixture, PairSource, PhotoSource, open_source, reflected_window, split_source
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.datasets.builders import split_pairs
from concertormer_jax.datasets.verify import Measured, Report, SplitReport
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.setup import sources_from
from configs import common


def random_picture(seed, height=40, width=30):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def paired(tmp_path):
    for seed, name in enumerate(("scene/b", "a", "scene/c")):
        write_png(tmp_path / "input" / f"{name}.png", random_picture(seed))
        write_png(tmp_path / "target" / f"{name}.png", random_picture(seed + 10))
    return tmp_path


@pytest.fixture
def photos(tmp_path):
    for seed in range(3):
        write_png(tmp_path / "photos" / f"{seed}.png", random_picture(seed, 30 + seed, 40))
    return tmp_path / "photos"


def test_pairs_are_matched_by_name_and_sorted(paired):
    (paired / "target" / "a.png").rename(paired / "target" / "a.PNG")
    pairs = find_pairs(paired)
    assert [pair.name for pair in pairs] == ["a", "scene/b", "scene/c"]
    assert pairs[0] == Pair("a", paired / "input" / "a.png", paired / "target" / "a.PNG")


@pytest.mark.parametrize("lacking, named", [("target", "input"), ("input", "target")])
def test_unpaired_picture_is_named(paired, lacking, named):
    (paired / lacking / "scene" / "b.png").unlink()
    with pytest.raises(UserError, match=rf"{named}/scene/b\.png: has no partner .*{lacking}; "):
        find_pairs(paired)


def test_differently_sized_pair_is_named(paired):
    write_png(paired / "target" / "a.png", random_picture(0, 30, 40))
    with pytest.raises(UserError, match=r"input/a\.png: is 30x40 but its target .*target/a\.png is 40x30"):
        find_pairs(paired)


def test_two_pictures_of_one_name_are_refused(paired):
    shutil.copy(paired / "input" / "a.png", paired / "input" / "a.jpg")
    with pytest.raises(UserError, match=r"input/a\.png: a\.jpg has the same name"):
        find_pairs(paired)


def test_corrupt_header_is_named_when_pairing(paired):
    (paired / "target" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"target/a\.png: not a picture"):
        find_pairs(paired)


def test_missing_and_empty_folders_are_named(paired):
    with pytest.raises(UserError, match="gone: no such folder"):
        find_pairs(paired / "gone")
    shutil.rmtree(paired / "target")
    with pytest.raises(UserError, match="has input/ but no folder with its sharp partners"):
        open_source(paired)
    (paired / "target").mkdir()
    with pytest.raises(UserError, match="target: holds no pictures"):
        open_source(paired)
    (paired / "neither").mkdir()
    with pytest.raises(UserError, match="neither: holds no pictures"):
        open_source(paired / "neither")


def test_truncated_picture_is_named_when_read(paired):
    path = paired / "target" / "a.png"
    path.write_bytes(path.read_bytes()[:300])
    source = open_source(paired)  # the header is intact
    with pytest.raises(UserError, match=r"target/a\.png: cannot be decoded"):
        source.crop(0, 8, np.random.default_rng(0))


@pytest.mark.parametrize("cached", [False, True])
def test_pair_crops_are_the_same_window_of_both(paired, cached):
    shutil.copy(paired / "input" / "a.png", paired / "target" / "a.png")
    source = open_source(paired, cached=cached)
    rng = np.random.default_rng(0)
    crops = [source.crop(0, 16, rng) for _ in range(20)]
    whole = source.whole(0)[0]
    windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
    for degraded, target in crops:
        np.testing.assert_array_equal(degraded, target)
        assert (windows == degraded).all((2, 3, 4)).sum() == 1
    assert len({crop.tobytes() for crop, _ in crops}) > 10


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (5, 40)])
def test_small_pictures_are_reflected_like_numpy_does(tmp_path, shape):
    picture = random_picture(0, *shape)
    for part in ("input", "target"):
        write_png(tmp_path / part / "a.png", picture)
    crop, _ = open_source(tmp_path).crop(0, 16, np.random.default_rng(0))
    if shape[1] <= 16:
        missing = [(0, max(16 - side, 0)) for side in shape]
        np.testing.assert_array_equal(crop, np.pad(picture, [*missing, (0, 0)], mode="reflect"))
    assert crop.shape == (16, 16, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_window_beyond_the_border_equals_a_padded_one(size):
    picture = random_picture(0, size, 2 * size)
    padded = np.pad(picture, ((20, 20), (20, 20), (0, 0)), mode="reflect")
    for top, left in ((-20, -20), (-3, 5), (0, 0), (size, 11 - size)):
        window = reflected_window(picture, top, left, 9, 8)
        np.testing.assert_array_equal(window, padded[top + 20 : top + 29, left + 20 : left + 28])


def test_photo_crops_are_degraded_windows_of_the_photo(photos):
    identity = CameraShake(min_length_px=0, max_length_px=0, shot_noise=0, read_noise=0)
    source = open_source(photos, degradation=identity)
    for index in range(3):
        degraded, sharp = source.crop(index, 24, np.random.default_rng(0))
        np.testing.assert_array_equal(degraded, sharp)  # without length and noise nothing may move
    degraded, sharp = open_source(photos).crop(0, 64, np.random.default_rng(0))
    assert degraded.shape == sharp.shape == (64, 64, 3)
    assert np.abs(degraded.astype(int) - sharp).mean() > 5


def test_whole_photo_is_blurred_the_same_way_every_time(photos):
    source = open_source(photos)
    first, sharp = source.whole(1)
    np.testing.assert_array_equal(sharp, random_picture(1, 31, 40))
    np.testing.assert_array_equal(first, source.select(source.items[1:]).whole(0)[0])
    assert np.any(first != source.whole(1, seed=1)[0])


def test_cached_files_are_decoded_once(paired, monkeypatch):
    decoded = collections.Counter()
    read_rgb = images.read_rgb

    def counted(path):
        decoded[path] += 1
        return read_rgb(path)

    monkeypatch.setattr(images, "read_rgb", counted)
    for cached, expected in ((True, 1), (False, 5)):
        source = open_source(paired, cached=cached)
        decoded.clear()
        for seed in range(5):
            source.crop(1, 8, np.random.default_rng(seed))
        assert set(decoded.values()) == {expected}


def test_cache_size_is_known_beforehand_and_refused_if_too_large(paired, monkeypatch):
    source = open_source(paired)
    assert source.decoded_bytes() == 6 * 40 * 30 * 3
    assert Mixture([source, source]).decoded_bytes() == 12 * 40 * 30 * 3
    assert images.require_memory_for(source) == 6 * 40 * 30 * 3
    monkeypatch.setattr(images, "available_memory_bytes", lambda: 21599)
    with pytest.raises(UserError, match=r"cache .* GiB .* available"):
        images.require_memory_for(source)


def test_available_memory_is_plausible():
    assert 2**26 < images.available_memory_bytes() < 2**46


class Counted(PairSource):
    """A source of `count` samples without files."""

    def __init__(self, count):
        super().__init__([Pair(str(index), None, None) for index in range(count)])


@pytest.mark.parametrize("shares, expected", [(None, (30, 10)), ((1, 3), (10, 30)), ((0.5, 0.5), (20, 20))])
def test_mixture_keeps_its_shares_everywhere(shares, expected):
    sources = Counted(30), Counted(10)
    mixture = Mixture(sources, shares)
    for start in (0, 13, 1_000_003):
        parts = [mixture.part_at(position)[0] for position in range(start, start + 40)]
        counts = [sum(part is source for part in parts) for source in sources]
        assert np.abs(np.subtract(counts, expected)).max() <= 1


def test_mixture_goes_through_each_source_in_turn():
    sources = Counted(7), Counted(5), Counted(2)
    mixture = Mixture(sources, (0.2, 0.5, 0.3))
    following = [0, 0, 0]
    for position in range(3000):
        part, place = mixture.part_at(position)
        number = next(number for number, source in enumerate(sources) if source is part)
        assert place == following[number]
        following[number] += 1


def test_mixture_indexes_its_sources_one_after_the_other(paired, photos):
    pairs, singles = open_source(paired), open_source(photos)
    mixture = Mixture([pairs, singles])
    assert len(mixture) == 6
    assert [mixture.name(index) for index in range(6)] == ["a", "scene/b", "scene/c", "0", "1", "2"]
    np.testing.assert_array_equal(mixture.whole(5)[0], singles.whole(2)[0])
    assert mixture.decoded_bytes() == pairs.decoded_bytes() + singles.decoded_bytes()


@pytest.mark.parametrize("shares", [(1,), (1, 0), (1, -1), (1, float("nan"))])
def test_bad_shares_are_refused(shares):
    with pytest.raises(UserError, match="share"):
        Mixture([Counted(1), Counted(1)], shares)


def pairs_named(*names):
    return [Pair(name, pathlib.Path(name), pathlib.Path(name)) for name in names]


def test_whole_sequences_are_held_out():
    names = [f"GOPR{scene:04}_11_00-{frame:06}" for scene in range(10) for frame in range(8)]
    kept, held = hold_out(pairs_named(*names), 0.2)
    scenes = [{pair.name.split("-")[0] for pair in part} for part in (kept, held)]
    assert not scenes[0] & scenes[1]
    assert len(held) == 16
    assert len(kept) + len(held) == 80


def test_subfolders_are_sequences():
    names = [f"{scene}/{frame}" for scene in "abcd" for frame in range(3)]
    kept, held = hold_out(pairs_named(*names), 0.25)
    assert len(held) == 3
    assert len({pair.name[0] for pair in held}) == 1
    assert len(kept) == 9


def test_single_photographs_are_held_out_whatever_their_order_and_folder():
    paths = [pathlib.Path("/one/photos") / f"{name}.jpg" for name in "abcdefghij"]
    kept, held = hold_out(paths, 0.3)
    assert len(held) == 3 and len(kept) == 7
    again = hold_out([pathlib.Path("/two") / path.name for path in reversed(paths)], 0.3)[1]
    assert {path.name for path in again} == {path.name for path in held}
    assert sorted(kept + held) == paths


def test_photographs_of_one_folder_stay_together():
    paths = [pathlib.Path("/photos") / folder / f"{name}.jpg" for folder in "abcd" for name in ("sea", "sun", "sky")]
    kept, held = hold_out(paths, 0.25)
    assert len(held) == 3 and len({path.parent for path in held}) == 1
    assert not {path.parent for path in held} & {path.parent for path in kept}


def test_crops_of_one_sequence_stay_together():
    names = [f"GOPR{scene:04}-{frame:06}_s{crop:03}" for scene in range(4) for frame in range(2) for crop in (1, 2)]
    kept, held = hold_out(pairs_named(*names), 0.25)
    scenes = [{pair.name.partition("-")[0] for pair in part} for part in (kept, held)]
    assert len(held) == 4 and len(scenes[1]) == 1 and not scenes[0] & scenes[1]


def test_only_sequence_gives_its_last_frames():
    kept, held = hold_out(pairs_named(*(f"scene-{frame:03}" for frame in range(10))), 0.2)
    assert [pair.name for pair in held] == ["scene-008", "scene-009"]
    assert len(kept) == 8


@pytest.mark.parametrize("names", [["long-1", "long-2", "long-3", "other"], ["a", "b"], ["s-1", "s-2"]])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_something_is_held_out_and_most_is_kept(names, fraction):
    kept, held = hold_out(pairs_named(*names), fraction)
    assert 1 <= len(held) <= len(kept)


@pytest.mark.parametrize("frames, crops", [(20, 1), (500, 1), (40, 4)])
@pytest.mark.parametrize("scenes", [1, 2, 3])
def test_long_scene_is_cut_and_frames_beside_the_cut_are_unused(scenes, frames, crops):
    names = [
        f"scene{scene}-{frame}" + (f"_s{crop:03}" if crops > 1 else "")
        for scene in range(scenes)
        for frame in range(1, frames + 1)
        for crop in range(1, crops + 1)
    ]
    kept, held = hold_out(pairs_named(*names), 0.05)
    wanted = 0.05 * len(names)
    assert wanted - crops < len(held) <= wanted
    held_frames = {int(re.search(r"-(\d+)", pair.name)[1]) for pair in held}
    assert len({pair.name.partition("-")[0] for pair in held}) == 1
    first = min(held_frames)
    assert held_frames == set(range(first, frames + 1)), "the tail, numbers and not letters in order, with all crops"
    scene = held[0].name.partition("-")[0]
    before = [int(re.search(r"-(\d+)", pair.name)[1]) for pair in kept if pair.name.partition("-")[0] == scene]
    assert first - 1 - max(before) == min(10, (first - 1) // 10), "the frames before the first that is held out"
    assert len(kept) + len(held) + crops * (first - 1 - max(before)) == len(names)


def test_scene_is_only_cut_if_it_is_much_longer_than_asked_for():
    names = [f"scene{scene}-{frame}" for scene in range(4) for frame in range(10)]
    kept, held = hold_out(pairs_named(*names), 0.15)
    assert len(held) == 10 and len(kept) == 30, "10 are not twice 6"
    kept, held = hold_out(pairs_named(*names), 0.1)
    assert len(held) == 4


def test_single_picture_in_many_crops_is_divided():
    kept, held = hold_out(pairs_named(*(f"a-1_s{crop:03}" for crop in range(1, 9))), 0.1)
    assert [pair.name for pair in held] == ["a-1_s008"] and len(kept) == 7


def test_prepared_frames_beside_a_cut_are_not_lost():
    items = pairs_named(*(f"s{scene}-{frame:03}" for scene in range(2) for frame in range(100)))
    measured = Measured((8, 8), 0, (b"", b""), (np.zeros((8, 8)), np.zeros((8, 8))), (1.0, 1.0))
    report = Report({"train": SplitReport(items, [measured] * 200)}, [], [])
    splits = split_pairs(report)
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 190, "validation": 10}
    assert {item.name for pairs in splits.values() for item, _ in pairs} == {item.name for item in items}


def test_impossible_splits_are_refused():
    with pytest.raises(UserError, match="two or more"):
        hold_out(pairs_named("a"), 0.1)
    for fraction in (0, 1, float("nan")):
        with pytest.raises(UserError, match="fraction"):
            hold_out(pairs_named("a", "b"), fraction)


def test_split_sources_keep_their_settings(photos):
    shake = CameraShake(max_length_px=7)
    training, validation = split_source(open_source(photos, degradation=shake), 0.3)
    assert (len(training), len(validation)) == (2, 1)
    assert isinstance(validation, PhotoSource) and validation.degradation == shake
    assert not set(training.items) & set(validation.items)


def test_synthesised_pairs_are_the_same_bytes_every_time(photos, tmp_path):
    (tmp_path / "one" / "input").mkdir(parents=True)
    (tmp_path / "one" / "input" / ".DS_Store").write_bytes(b"")  # no picture, and no reason to refuse the folder
    for out in ("one", "two", "two"):  # writing over itself is allowed
        assert synthesize(photos, tmp_path / out) == 3
    for part in ("input", "target"):
        for name in ("0.png", "1.png", "2.png"):
            assert (tmp_path / "one" / part / name).read_bytes() == (tmp_path / "two" / part / name).read_bytes()
    pairs = find_pairs(tmp_path / "one")
    np.testing.assert_array_equal(PairSource(pairs).whole(2)[1], random_picture(2, 32, 40))
    synthesize(photos, tmp_path / "other", seed=1)
    assert (tmp_path / "one/input/0.png").read_bytes() != (tmp_path / "other/input/0.png").read_bytes()


def test_synthesis_refuses_pairs_doubled_names_and_foreign_pictures(photos, paired, tmp_path):
    with pytest.raises(UserError, match="holds pairs already"):
        synthesize(paired, tmp_path / "out")
    write_png(tmp_path / "out" / "input" / "old.png", random_picture(0))
    with pytest.raises(UserError, match=r"old\.png: is not one of these"):
        synthesize(photos, tmp_path / "out")
    shutil.copy(photos / "0.png", photos / "0.jpg")
    with pytest.raises(UserError, match="two pictures named 0"):
        synthesize(photos, tmp_path / "new")


def test_a_photograph_that_cannot_be_opened_is_named_before_the_training(photos):
    first, second = (Image.fromarray(random_picture(seed)) for seed in (0, 1))
    first.save(photos / "pages.tif", save_all=True, append_images=[second])
    with pytest.raises(UserError, match=r"pages.tif: holds 2 pictures"):
        open_source(photos)


@pytest.mark.parametrize("named", ["{0},{0}/1", "{0}/1,{0}", "{0},{0}"])
def test_what_one_source_holds_out_no_other_trains_on(tmp_path, named):
    for seed in range(12):
        write_png(tmp_path / "photos" / str(seed % 3) / f"{seed}.png", random_picture(seed))
    settings = {"data.source": named.format(tmp_path / "photos"), "validation.fraction": 0.2}
    training, validation = sources_from(override(common.get_config(), settings))
    trained, held = ({key for part in source.parts() for key in part.item_keys()} for source in (training, validation))
    assert trained and held and not trained & held
