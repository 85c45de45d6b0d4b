"""Prepared sets as sources: the same samples as the folders they were made of, and nothing that is not whole."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from dataset_fixtures import pairs_of, write_set
from training_runs import override

from concertormer_jax.data import prepared
from concertormer_jax.data.folders import find_pairs
from concertormer_jax.data.pipeline import batches
from concertormer_jax.data.prepared import Use, open_prepared, prepared_folder, read_pairs_file
from concertormer_jax.data.sources import Mixture, open_source, split_source
from concertormer_jax.datasets.preparation import examine, prepare
from concertormer_jax.evaluation.evaluator import restored_path
from concertormer_jax.evaluation.sets import open_evaluation_sets
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.setup import data_notes, sources_from
from configs import custom


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Folders in layouts with input/ and target/, and what was prepared of them."""
    root = tmp_path_factory.mktemp("sets")
    for reference, layout in (
        ("gopro", "nafnet"),
        ("pairs/own", "input_target"),
        ("hide", "original"),
        ("sidd", "nested"),
    ):
        name = reference.partition("/")[0]
        _, report = examine(reference, write_set(name, layout, root / name))
        prepare(reference, report, str(root / "prepared"))
    return root


@pytest.fixture
def own_copy(sets, tmp_path):
    """The prepared GoPro, to be damaged."""
    shutil.copytree(sets / "prepared" / "gopro", tmp_path / "gopro")
    return tmp_path


def change(data_dir, edit):
    """Edit what pairs.json of the GoPro below `data_dir` holds."""
    path = data_dir / "gopro/blur/1.0.0" / prepared.PAIRS_FILE
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def samples(source, host_count=1, **settings):
    """{position: (input, target)} of six batches, read by all hosts."""
    settings = {"seed": 5, "batch": 4, "crop_px": 24, "position": 8, "steps": 6} | settings
    return {
        int(position): (degraded, target)
        for host_index in range(host_count)
        for batch in batches(source, host_index=host_index, host_count=host_count, **settings)
        for position, degraded, target in zip(batch["position"], batch["input"], batch["target"], strict=True)
    }


def assert_equal_samples(some, others):
    assert some.keys() == others.keys() and len(some) == 24
    for position in some:
        for one, other in zip(some[position], others[position], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("reference, folder", [("gopro", "gopro/GoPro/train"), ("pairs/own", "pairs")])
def test_batches_equal_those_of_the_folder(sets, reference, folder, cached):
    from_folder = open_source(sets / folder)
    from_records = open_source(f"tfds:{reference}", data_dir=str(sets / "prepared"), cached=cached)
    assert [from_records.name(i) for i in range(len(from_records))] == [pair.name for pair in find_pairs(sets / folder)]
    assert_equal_samples(samples(from_folder), samples(from_records))
    for one, other in zip(split_source(from_folder, 0.3), split_source(from_records, 0.3), strict=True):
        assert [item.name for item in one.items] == [item.name for item in other.items]
        assert_equal_samples(samples(one), samples(other))


def test_batches_are_the_same_for_one_process_and_two(sets):
    source = open_source("tfds:gopro", data_dir=str(sets / "prepared"))
    assert_equal_samples(samples(source), samples(source, host_count=2))
    mixture = Mixture([source, open_source(sets / "pairs")], (0.5, 0.5))
    assert_equal_samples(samples(mixture), samples(mixture, host_count=2))


def test_default_validation_is_the_prepared_validation_split(sets):
    source = open_source("tfds:gopro", data_dir=str(sets / "prepared"))
    _, held = split_source(source, custom.get_config().validation.fraction)
    stored = open_prepared("gopro", "validation", data_dir=str(sets / "prepared"))
    assert [item.name for item in held.items] == [stored.name(index) for index in range(len(stored))]


def test_trainer_opens_prepared_sets_and_mixes_them_with_folders(sets):
    settings = {
        "data.source": f"tfds:gopro,{sets / 'pairs'},tfds:pairs/own",
        "data.data_dir": str(sets / "prepared"),
        "data.shares": (0.5, 0.25, 0.25),
    }
    training, validation = sources_from(override(custom.get_config(), settings))
    assert len(training) + len(validation) == 9 + 6 + 6
    assert {validation.name(index).partition("-")[0] for index in range(3)} <= {
        pair.sequence for pair in pairs_of("gopro")
    }
    assert validation.whole(0)[0].shape == (48, 64, 3)


def test_splits_can_be_opened_alone(sets):
    source = open_prepared("gopro", "test", data_dir=str(sets / "prepared"))
    expected = {pair.name: pair.pixels for pair in pairs_of("gopro") if pair.split == "test"}
    assert len(source) == len(expected)
    for index in range(len(source)):
        np.testing.assert_array_equal(source.whole(index), expected[source.name(index)])
    with pytest.raises(UserError, match="has no val split; it has train, validation, test"):
        open_prepared("gopro", "val", data_dir=str(sets / "prepared"))
    with pytest.raises(UserError, match="tfds:hide: has no training split; it has test"):
        open_prepared("hide", data_dir=str(sets / "prepared"))


def test_sizes_are_known_without_reading(sets, monkeypatch):
    source = open_prepared("gopro", data_dir=str(sets / "prepared"))
    monkeypatch.setattr(prepared, "decode_rgb", None)
    assert source.size(0) == (48, 64)
    assert source.decoded_bytes() == 9 * 2 * 48 * 64 * 3


def test_cached_records_are_decoded_once(sets, monkeypatch):
    decoded = []
    decode_rgb = prepared.decode_rgb
    monkeypatch.setattr(prepared, "decode_rgb", lambda *arguments: decoded.append(1) or decode_rgb(*arguments))
    for cached, expected in ((True, 2), (False, 6)):
        source = open_prepared("gopro", data_dir=str(sets / "prepared"), cached=cached)
        decoded.clear()
        for seed in range(3):
            source.crop(1, 8, np.random.default_rng(seed))
        assert len(decoded) == expected


def test_newest_version_is_read(own_copy):
    for version in ("1.0.2", "1.0.10"):
        shutil.copytree(own_copy / "gopro/blur/1.0.0", own_copy / "gopro/blur" / version)
    (own_copy / "gopro/blur/incomplete.ABCDEF_1.0.11").mkdir()
    assert prepared_folder("gopro", str(own_copy)).name == "1.0.10"


def test_data_dir_is_that_of_tensorflow_datasets_by_default(sets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets / "prepared"))
    assert len(open_prepared("gopro")) == 9
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(sets))
    assert len(open_prepared("gopro", data_dir="~/prepared")) == 9
    with pytest.raises(
        UserError, match=rf"tfds:gopro: is not in {sets}/tensorflow_datasets; prepare it with: python -m"
    ):
        open_prepared("gopro")


def test_default_configuration_is_chosen_among_several(own_copy):
    shutil.copytree(own_copy / "gopro/blur", own_copy / "gopro/blur_gamma")
    assert prepared_folder("gopro", str(own_copy)).parent.name == "blur"
    assert prepared_folder("gopro/blur_gamma", str(own_copy)).parent.name == "blur_gamma"
    shutil.rmtree(own_copy / "gopro/blur")
    assert prepared_folder("gopro", str(own_copy)).parent.name == "blur_gamma"


def test_files_that_are_not_whole_are_refused(own_copy):
    folder = own_copy / "gopro/blur/1.0.0"
    (file,) = folder.glob("*test*")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(
        UserError, match=rf"{file.name}: has {len(content) - 1} bytes instead of {len(content)}; delete"
    ):
        open_prepared("gopro", "test", data_dir=str(own_copy))
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name}: has no bytes instead of"):
        open_prepared("gopro", "test", data_dir=str(own_copy))


def test_damaged_records_are_named_when_read(own_copy):
    folder = own_copy / "gopro/blur/1.0.0"
    (file,) = folder.glob("*test*")
    content = bytearray(file.read_bytes())
    middle = content.index(b"IDAT") + 500
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    source = open_prepared("gopro", "test", data_dir=str(own_copy))
    with pytest.raises(UserError, match=r"blur/1\.0\.0: GOPR038.*cannot be (read|decoded)"):
        for index in range(len(source)):
            source.whole(index)


def test_names_are_checked_against_the_records(own_copy):
    path = own_copy / "gopro/blur/1.0.0" / prepared.PAIRS_FILE
    text = path.read_text()
    path.write_text(text.replace("GOPR0384_11_00-000047", "GOPR0384_11_00-000040"))
    with pytest.raises(UserError, match=r"GOPR0384_11_00-000040 is not where pairs\.json says"):
        open_prepared("gopro", "test", data_dir=str(own_copy)).whole(0)
    path.write_text(text[:-20])
    with pytest.raises(UserError, match=r"pairs\.json: is damaged"):
        open_prepared("gopro", data_dir=str(own_copy))
    path.unlink()
    with pytest.raises(UserError, match=r"has no pairs\.json, so it was not prepared by this software"):
        open_prepared("gopro", data_dir=str(own_copy))


def test_buckets_hold_prepared_sets_only():
    with pytest.raises(UserError, match=r"gs://bucket/photos: only prepared sets are read from a bucket"):
        open_source("gs://bucket/photos")


def test_bucket_paths_reach_the_reader_unchanged(monkeypatch):
    asked = []

    def folders(folder):
        asked.append(str(folder))
        return ["1.0.0"]

    monkeypatch.setattr(prepared, "_folders", folders)
    assert str(prepared_folder("gopro/blur", "gs://bucket/sets")) == "gs://bucket/sets/gopro/blur/1.0.0"
    assert asked == ["gs://bucket/sets/gopro/blur"]


def test_evaluation_opens_the_test_splits(sets):
    for data, name in ((f"tfds:{name}", name) for name in ("gopro", "hide", "sidd")):
        found, sources = open_evaluation_sets(data, str(sets / "prepared"))
        assert found == name and sources.keys() == {"test"}
        folder_name, from_folder = open_evaluation_sets(str(sets / name))
        assert folder_name == name and from_folder.keys() == {"test"}
        for one, other in zip(sources.values(), from_folder.values(), strict=True):
            assert len(one) == len(other) > 0
            for index in range(len(one)):
                assert one.name(index) == other.name(index) and tuple(one.size(index)) == tuple(other.size(index))
                np.testing.assert_array_equal(one.whole(index), other.whole(index))


def test_evaluation_opens_every_set_of_rain(tmp_path):
    write_set("rain13k", "original", tmp_path)
    name, sources = open_evaluation_sets(str(tmp_path))
    assert name == "rain13k" and list(sources) == ["test100", "rain100h", "rain100l", "test2800", "test1200"]
    name, sources = open_evaluation_sets(str(tmp_path / "test" / "Rain100H"))
    assert name == "rain13k" and list(sources) == ["rain100h"]


def test_evaluation_opens_pairs_of_no_known_set_and_training_pairs_when_they_are_named(sets):
    name, sources = open_evaluation_sets(str(sets / "pairs"))
    assert name is None and [len(source) for source in sources.values()] == [6]
    name, sources = open_evaluation_sets(str(sets / "gopro" / "GoPro" / "train"))
    assert name == "gopro" and [len(source) for source in sources.values()] == [9]


def test_evaluation_refuses_what_has_no_test_set(sets, tmp_path):
    with pytest.raises(UserError, match="tfds:pairs/own: has training pairs alone"):
        open_evaluation_sets("tfds:pairs/own", str(sets / "prepared"))
    write_set("gopro", "restormer", tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match="has training pairs of GoPro but none of a test set"):
        open_evaluation_sets(str(tmp_path))
    write_set("hide", "restormer", tmp_path)
    with pytest.raises(UserError, match="holds gopro, hide; give the folder of one of them"):
        open_evaluation_sets(str(tmp_path))
    (tmp_path / "test/HIDE/target/1fromGOPR0950.png").unlink()
    with pytest.raises(UserError, match=r"1fromGOPR0950\.png: has no partner"):
        open_evaluation_sets(str(tmp_path / "test" / "HIDE"))


def test_reader_imports_no_tensorflow(request, sets):
    code = f"""
import sys
from concertormer_jax.data.prepared import open_prepared
open_prepared("gopro", "test", data_dir={str(sets / "prepared")!r}).whole(0)
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath)


def test_pairs_file_lists_every_record(sets):
    content = read_pairs_file(prepared_folder("gopro", str(sets / "prepared")))
    assert {split: len(pairs) for split, pairs in content.pairs.items()} == {"train": 6, "validation": 3, "test": 6}
    assert all(size > 0 for size in content.files.values())


def test_validation_reads_what_is_held_out_for_it(sets):
    source = open_source("tfds:gopro", data_dir=str(sets / "prepared"), validation=True)
    stored = open_prepared("gopro", "validation", data_dir=str(sets / "prepared"))
    assert source.items == stored.items and len(source) == 3
    assert re.search(r"^3 pairs of .*/gopro/blur/1\.0\.0, split validation, such as GOPR", source.describe())
    tests = open_source("tfds:hide", data_dir=str(sets / "prepared"), validation=True)
    assert {item.split for item in tests.items} == {"test"} and len(tests) == 4
    assert "split test, such as " in tests.describe() and "a test set; a score on test" in tests.describe()


def test_what_is_validated_on_is_left_out_of_the_training(sets):
    settings = {"data.source": "tfds:gopro", "data.data_dir": str(sets / "prepared")}
    config = override(custom.get_config(), settings | {"validation.source": "tfds:gopro/blur"})
    training, validation = sources_from(config)
    assert {item.split for item in training.items} == {"train"} and len(training) == 6
    assert {item.split for item in validation.items} == {"validation"} and len(validation) == 3
    notes = data_notes(training, validation, config)
    assert [note.split(" pairs of ")[0] for note in notes] == ["training on 6", "validating on 3"]

    elsewhere = override(config, {"validation.source": "tfds:hide"})
    training, validation = sources_from(elsewhere)
    assert (len(training), len(validation)) == (9, 4)

    folder = sets / "gopro" / "GoPro" / "train"
    config = override(config, {"data.source": str(folder), "validation.source": f"{folder}/,tfds:hide"})
    with pytest.raises(UserError, match=r"config\.data\.source=.*train: config\.validation\.source=.* holds all its"):
        sources_from(config)


def test_set_with_training_pairs_alone_cannot_be_validated_on(own_copy):
    change(own_copy, lambda content: content["pairs"].pop("validation") and content["pairs"].pop("test"))
    with pytest.raises(UserError, match="tfds:gopro: has no validation or test split; it has train"):
        open_prepared("gopro", Use.VALIDATION, data_dir=str(own_copy))


HOSTILE_NAMES = [
    *("../../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "/", "a/", "a\\..\\x", "a\nb", "a\x1b[31mb", "\x00"),
    *("a" * 300, 7, None, ["a"], "a/../b", "C:\\x", "\ud800"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_came_with_a_set_stay_below_a_folder(own_copy, name):
    def rename(content):
        content["pairs"]["test"][0][0] = name

    change(own_copy, rename)
    with pytest.raises(UserError, match=r"pairs\.json: .* is no name that a file can have here"):
        open_evaluation_sets("tfds:gopro", str(own_copy))
    if isinstance(name, str):
        with pytest.raises(UserError, match="is no name that a file can have here"):
            restored_path(own_copy / "out", name)


@pytest.mark.parametrize("name", ["../up", "/etc", "a/b", "..", ""])
@pytest.mark.parametrize("kind", ["pairs", "files"])
def test_names_of_splits_and_files_are_names_too(own_copy, kind, name):
    def rename(content):
        content[kind][name] = content[kind].pop(next(iter(content[kind])))

    change(own_copy, rename)
    with pytest.raises(UserError, match=r"pairs\.json: .* is (no name|a path)"):
        open_prepared("gopro", data_dir=str(own_copy))


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"pairs": [], "files": {}}', '{"pairs": {"a": [[1]]}, "files": {}}', "1e999"]
)
def test_pairs_file_of_another_form_is_damaged(own_copy, text):
    (own_copy / "gopro/blur/1.0.0" / prepared.PAIRS_FILE).write_text(text)
    with pytest.raises(UserError, match=r"pairs\.json: is damaged"):
        open_prepared("gopro", data_dir=str(own_copy))


def test_reading_a_set_imports_nothing_that_it_names(own_copy, request):
    folder = own_copy / "gopro/blur/1.0.0"
    for file in ("features.json", "dataset_info.json"):
        text = (folder / file).read_text().replace("tensorflow_datasets.core.features", "evil")
        (folder / file).write_text(text)
    assert "evil" in (folder / "features.json").read_text()
    (own_copy / "evil").mkdir()
    for path in (own_copy / "evil" / "__init__.py", own_copy / "evil" / "features_dict.py"):
        path.write_text(f"open({str(own_copy / 'imported')!r}, 'w')")
    code = f"""
from concertormer_jax.data.prepared import open_prepared
open_prepared("gopro", "test", data_dir={str(own_copy)!r}).whole(0)
"""
    environment = os.environ | {"PYTHONPATH": str(own_copy)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=request.config.rootpath, env=environment)
    assert not (own_copy / "imported").exists()


def test_records_of_another_size_are_refused(own_copy):
    def shrink(content):
        content["pairs"]["test"][0][1] = 16

    change(own_copy, shrink)
    with pytest.raises(UserError, match=r"is not as large as pairs\.json says"):
        source = open_prepared("gopro", "test", data_dir=str(own_copy))
        for index in range(len(source)):
            source.whole(index)


def test_missing_file_of_a_split_is_noticed(own_copy):
    change(own_copy, lambda content: content["files"].pop(next(file for file in content["files"] if "-test." in file)))
    with pytest.raises(UserError, match=r"pairs\.json lists not all files of test"):
        open_prepared("gopro", "test", data_dir=str(own_copy))
