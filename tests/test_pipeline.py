"""Batches are a function of (seed, position) alone."""

import gc
import os
import subprocess
import sys
import time
import traceback

import numpy as np
import pytest

from concertormer_jax.data.degrade import CameraShake
from concertormer_jax.data.images import write_png
from concertormer_jax.data.pipeline import batches, located, random_orientation, sample_names
from concertormer_jax.data.sources import Mixture, open_source
from concertormer_jax.runtime.errors import UserError

SETTINGS = {"seed": 3, "batch": 4, "crop_px": 16, "host_index": 0, "host_count": 1}


@pytest.fixture
def source(tmp_path):
    """Five pairs whose input equals their target, and two photographs, mixed."""
    for index in range(5):
        picture = np.random.default_rng(index).integers(0, 256, (20, 24 - 3 * index, 3), np.uint8)
        for part in ("input", "target"):
            write_png(tmp_path / "pairs" / part / f"{index}.png", picture)
        if index < 2:
            write_png(tmp_path / "photos" / f"photo{index}.png", picture)
    photos = open_source(tmp_path / "photos", degradation=CameraShake(max_length_px=6))
    return Mixture([open_source(tmp_path / "pairs", cached=True), photos])


def samples(iterator):
    """{position: (input, target)} of all batches."""
    return {
        int(position): (degraded, target)
        for batch in iterator
        for position, degraded, target in zip(batch["position"], batch["input"], batch["target"], strict=True)
    }


def assert_equal_samples(some, others):
    assert some.keys() == others.keys()
    for position in some:
        for one, other in zip(some[position], others[position], strict=True):
            np.testing.assert_array_equal(one, other)


def test_batches_have_the_stated_arrays(source):
    (first, second) = batches(source, **SETTINGS, position=6, steps=2)
    assert first["position"].tolist() == [6, 7, 8, 9]
    assert second["position"].tolist() == [10, 11, 12, 13]
    assert first["position"].dtype == np.int64
    for name in ("input", "target"):
        assert first[name].shape == (4, 16, 16, 3)
        assert first[name].dtype == np.uint8


def test_start_batch_size_and_run_change_nothing(source):
    whole = samples(batches(source, **SETTINGS, position=0, steps=5))
    late = samples(batches(source, **SETTINGS, position=8, steps=3))
    assert_equal_samples(late, {position: whole[position] for position in range(8, 20)})
    larger = samples(batches(source, **SETTINGS | {"batch": 10}, position=0, steps=2))
    assert_equal_samples(larger, whole)


def test_hosts_share_the_batches_of_one(source):
    whole = list(batches(source, **SETTINGS, position=4, steps=3))
    for count in (2, 4):
        parts = [
            list(batches(source, **SETTINGS | {"host_index": host, "host_count": count}, position=4, steps=3))
            for host in range(count)
        ]
        for number, batch in enumerate(whole):
            for name, expected in batch.items():
                np.testing.assert_array_equal(np.concatenate([part[number][name] for part in parts]), expected)


def test_slow_pictures_do_not_change_the_order(source, monkeypatch):
    import tensorflow

    monkeypatch.setattr(tensorflow.data, "AUTOTUNE", 4)  # which by itself takes a while to read in parallel
    photos = source.sources[1]
    crop = photos.crop

    def uneven_crop(index, crop_px, rng):
        time.sleep(0.02 * index)
        return crop(index, crop_px, rng)

    photos.crop = uneven_crop
    positions = [batch["position"] for batch in batches(photos, **SETTINGS | {"batch": 1}, position=0, steps=60)]
    np.testing.assert_array_equal(np.concatenate(positions), np.arange(60))


def test_seed_and_position_change_the_samples(source):
    photo = source.sources[1].select(source.sources[1].items[:1])  # one, so that the order cannot make the difference
    some, others = (samples(batches(photo, **SETTINGS | {"seed": seed}, position=0, steps=3)) for seed in (0, 1))
    assert len({degraded.tobytes() for part in (some, others) for degraded, _ in part.values()}) == 24


def test_pair_stays_aligned_under_every_augmentation(source):
    pairs = source.sources[0]
    for degraded, target in samples(batches(pairs, **SETTINGS, position=0, steps=8)).values():
        np.testing.assert_array_equal(degraded, target)


def test_all_eight_orientations_occur_and_switches_hold():
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    seen = {}
    for flip, rotate in ((True, True), (True, False), (False, True), (False, False)):
        turned = [
            random_orientation((picture, picture), np.random.default_rng(seed), flip=flip, rotate=rotate)
            for seed in range(100)
        ]
        assert all(np.array_equal(*pair) for pair in turned)
        seen[flip, rotate] = {pair[0].tobytes() for pair in turned}
    orientations = {np.rot90(image, k).tobytes() for image in (picture, picture[:, ::-1]) for k in range(4)}
    assert seen[True, True] == orientations
    assert seen[True, False] == {picture[::a, ::b].tobytes() for a in (1, -1) for b in (1, -1)}
    assert seen[False, True] == {np.rot90(picture, k).tobytes() for k in range(4)}
    assert seen[False, False] == {picture.tobytes()}


def test_switches_reach_the_batches(source):
    pairs = source.sources[0]
    plain = samples(batches(pairs, **SETTINGS, position=0, steps=2, flip=False, rotate=False))
    turned = samples(batches(pairs, **SETTINGS, position=0, steps=2))
    for position, (degraded, _) in plain.items():
        index = located(pairs, 3, position)[1]
        whole = np.pad(pairs.whole(index)[1], ((0, 0), (0, 16), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(whole, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
        assert (windows == degraded).all((2, 3, 4)).any()
    assert any(np.any(plain[position][0] != turned[position][0]) for position in plain)


def test_every_picture_is_seen_once_per_epoch_in_changing_order(source):
    pairs = source.sources[0]
    orders = [sample_names(pairs, 0, range(5 * epoch, 5 * epoch + 5)) for epoch in range(6)]
    assert all(sorted(order) == ["0", "1", "2", "3", "4"] for order in orders)
    assert len(set(map(tuple, orders))) > 3


def test_names_are_those_of_the_samples(source):
    names = sample_names(source, 3, np.arange(14))
    assert sorted(names) == sorted(2 * ["0", "1", "2", "3", "4", "photo0", "photo1"])
    single = batches(source.sources[1], **SETTINGS | {"crop_px": 64}, position=0, steps=1, flip=False, rotate=False)
    (batch,) = single
    for name, target in zip(sample_names(source.sources[1], 3, batch["position"]), batch["target"], strict=True):
        width = {"photo0": 24, "photo1": 21}[name]
        # A reflected picture repeats after twice its width less two.
        np.testing.assert_array_equal(target[:, : 64 - 2 * width + 2], target[:, 2 * width - 2 :])


def test_damaged_file_is_named_not_tensorflow(source):
    path = source.sources[1].items[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"photo0\.png: cannot be decoded") as caught:
        list(batches(source, **SETTINGS, position=0, steps=4))
    assert "PyFunc" not in "".join(traceback.format_exception(caught.value))
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator

    # Its threads would wait for Python, and Python for them, when the process ends.
    assert not [one for one in gc.get_objects() if type(one) is OwnedIterator]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"host_count": 3}, "batch of 4 does not divide over 3"),
        ({"host_index": 1}, "host_index"),
        ({"seed": -1}, "seed"),
        ({"position": -4}, "position"),
    ],
)
def test_impossible_settings_are_refused_at_the_call(source, change, message):
    with pytest.raises(ValueError, match=message):
        batches(source, **({"position": 0} | SETTINGS | change))


def test_endless_without_steps(source):
    iterator = batches(source, **SETTINGS, position=0)
    assert [next(iterator)["position"][0] for _ in range(10)] == list(range(0, 40, 4))
    iterator.close()


def test_process_ends_with_batches_still_being_read(request, source):
    """TensorFlow's threads wait for Python's lock and Python for them, unless reading stops before Python does."""
    code = f"""
import time
from concertormer_jax.data import pipeline, sources
source = sources.open_source({str(source.sources[0].items[0].target.parent)!r})
crop = source.crop
source.crop = lambda *arguments: time.sleep(0.05) or crop(*arguments)
iterator = pipeline.batches(
    source, seed=0, position=0, batch=8, host_index=0, host_count=1, crop_px=8
)
for _ in range(3):
    next(iterator)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath, timeout=1200)


@pytest.mark.parametrize("given", [None, "0"])
def test_tensorflow_is_imported_without_keras_which_others_still_can(request, given):
    code = """
import os, sys
from concertormer_jax.data import pipeline

before = dict(os.environ)
tensorflow = pipeline._tensorflow()
assert "keras" not in sys.modules
assert os.environ.get("TF_USE_LEGACY_KERAS") == before.get("TF_USE_LEGACY_KERAS")
assert tensorflow.keras.layers.Dense(1)
"""
    environment = os.environ if given is None else os.environ | {"TF_USE_LEGACY_KERAS": given}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath, env=environment)


def test_tensorflow_is_imported_for_batches_only(request):
    code = "import sys, concertormer_jax.data.pipeline; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath)
