"""The command that prepares a set: what it writes, says, refuses, and survives."""

import hashlib
import json
import re
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_fixtures import LAYOUTS, blurred, encoded, pairs_of, sharp_picture, write_set

from concertormer_jax.commands import prepare
from concertormer_jax.data.held_out import hold_out, sequence_of
from concertormer_jax.data.images import decode_rgb, write_png
from concertormer_jax.data.prepared import open_prepared, prepared_folder, read_pairs_file
from concertormer_jax.datasets import preparation
from concertormer_jax.datasets.descriptions import SETS
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import recipes


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(*arguments):
    prepare.main(list(map(str, arguments)))


def digests(folder):
    """The content of every file below `folder`."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def content(reference, data_dir):
    """{(split, name): pixels of input and target} of a prepared set."""
    splits = read_pairs_file(prepared_folder(reference, str(data_dir))).pairs
    result = {}
    for split in splits:
        source = open_prepared(reference, split, data_dir=str(data_dir))
        for index in range(len(source)):
            images = source.whole(index)
            assert source.size(index) == images[0].shape[:2]
            result[split, source.name(index)] = tuple(image.tobytes() for image in images)
    return result


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_of_a_set_are_prepared_alike(tmp_path, capsys, name):
    prepared = {}
    for layout in LAYOUTS[name]:
        source = write_set(name, layout, tmp_path / layout)
        run(name, "--source", source, "--data-dir", tmp_path / "sets" / layout)
        prepared[layout] = digests(tmp_path / "sets" / layout)
    assert len({json.dumps(files, sort_keys=True) for files in prepared.values()}) == 1
    layout = next(iter(LAYOUTS[name]))
    expected = {}
    for pair in pairs_of(name):
        pixels = tuple(decode_rgb(data, "").tobytes() for data in (pair.input, pair.target))
        expected[pair.split, pair.name] = pixels
    training = [pair for pair in pairs_of(name) if pair.split == "train"]
    if training and "validation" not in SETS[name].counts:
        _, held = hold_out(training, 0.05)
        for pair in held:
            expected["validation", pair.name] = expected.pop(("train", pair.name))
    assert content(name, tmp_path / "sets" / layout) == expected
    assert "next: python " in capsys.readouterr().out


def test_whole_sequences_are_held_out(tmp_path):
    run("gopro", "--source", write_set("gopro", "original", tmp_path / "source"), "--data-dir", tmp_path)
    splits = read_pairs_file(prepared_folder("gopro", str(tmp_path))).pairs
    sequences = {split: {sequence_of(name) for name, _, _ in pairs} for split, pairs in splits.items()}
    assert len(sequences["validation"]) == 1 and len(sequences["train"]) == 2
    assert not sequences["train"] & sequences["validation"]


def test_tensorflow_datasets_reads_it(tmp_path):
    import tensorflow_datasets as tfds

    run("gopro", "--source", write_set("gopro", "original", tmp_path / "source"), "--data-dir", tmp_path)
    import concertormer_jax.datasets.builders  # noqa: F401  (so that the name is known)

    builder = tfds.builder("gopro", data_dir=tmp_path)
    assert builder.builder_config.name == "blur"
    examples = {example["name"].decode(): example for example in builder.as_data_source("test")}
    pairs = {pair.name: pair for pair in pairs_of("gopro") if pair.split == "test"}
    assert examples.keys() == pairs.keys()
    for name, example in examples.items():
        assert example["sequence"].decode() == pairs[name].sequence
        for side, pixels in zip(("input", "target"), pairs[name].pixels, strict=True):
            np.testing.assert_array_equal(example[side], pixels)
    assert "CC BY 4.0" in builder.info.redistribution_info.license
    assert "GOPRO_Large.zip" in builder.MANUAL_DOWNLOAD_INSTRUCTIONS


def test_builders_find_the_pairs_themselves_for_tfds_build(tmp_path):
    import tensorflow_datasets as tfds

    from concertormer_jax.datasets.builders import make_builder

    source = write_set("hide", "original", tmp_path / "source")
    builder = make_builder("hide", SETS["hide"].variants[0], str(tmp_path / "one"))
    settings = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
    builder.download_and_prepare(download_dir=tmp_path / "downloads", download_config=settings)
    run("hide", "--source", source, "--data-dir", tmp_path / "two")
    assert digests(tmp_path / "one/hide/1.0.0") == digests(tmp_path / "two/hide/1.0.0")
    with pytest.raises(UserError, match="--file_format=tfrecord"):
        tfds.builder("hide", data_dir=tmp_path / "one", file_format="tfrecord")


def test_training_pictures_are_cut_into_overlapping_crops(tmp_path):
    for scene in (1, 2, 3):
        sharp = sharp_picture(scene, 0).repeat(12, axis=0).repeat(12, axis=1)[:540, :740]
        for part, pixels in (("train", sharp), ("test", sharp[:, ::-1].copy())):
            for role, picture in (("input", blurred(pixels, 8)), ("target", pixels)):
                write_png(tmp_path / "GoPro" / part / role / f"GOPR000{scene}_00_00-000001.png", picture)
    run("gopro/blur_crops", "--source", tmp_path, "--data-dir", tmp_path / "sets")
    crops = open_prepared("gopro/blur_crops", data_dir=str(tmp_path / "sets"))
    names = [crops.name(index) for index in range(len(crops))]
    assert names == [f"GOPR000{scene}_00_00-000001_s{number:03d}" for scene in (1, 2, 3) for number in (1, 2, 3, 4)]
    for index, (top, left) in enumerate([(0, 0), (0, 228), (28, 0), (28, 228)]):
        for side, role in enumerate(("input", "target")):
            picture = decode_rgb((tmp_path / "GoPro/train" / role / "GOPR0001_00_00-000001.png").read_bytes(), "")
            np.testing.assert_array_equal(crops.whole(index)[side], picture[top : top + 512, left : left + 512])
    assert open_prepared("gopro/blur_crops", "test", data_dir=str(tmp_path / "sets")).size(0) == (540, 740)
    splits = read_pairs_file(prepared_folder("gopro/blur_crops", str(tmp_path / "sets"))).pairs
    assert {split: len(pairs) for split, pairs in splits.items()} == {"train": 8, "validation": 4, "test": 3}


def test_dry_run_reports_and_writes_nothing(tmp_path, capsys):
    source = write_set("gopro", "original", tmp_path / "source")
    before = digests(tmp_path)
    run("gopro", "--source", source, "--data-dir", tmp_path / "sets", "--dry-run")
    assert digests(tmp_path) == before and not (tmp_path / "sets").exists()
    out = capsys.readouterr().out
    assert re.search(r"train: 9 pairs, 3 sequences, .*64x48, in GOPRO_Large/.*; PSNR of partners .* dB, of st", out)
    assert "warning: train: has 9 pairs, the published one 2,103." in out
    assert "nothing was written" in out


def test_errors_are_all_named_and_nothing_is_written(tmp_path, capsys):
    source = write_set("gopro", "restormer", tmp_path / "source")
    folder = source / "train" / "GoPro"
    paths = sorted((folder / "input").iterdir())
    swapped = [path.read_bytes() for path in paths[:2]]
    paths[0].write_bytes(swapped[1])
    paths[1].write_bytes(swapped[0])
    paths[3].unlink()
    paths[4].write_bytes(paths[4].read_bytes()[:1000])
    paths[5].write_bytes(encoded(sharp_picture(0, 0, 40, 64)))
    paths[7].write_bytes(paths[8].read_bytes())
    with pytest.raises(SystemExit) as caught:
        run("gopro", "--source", source, "--data-dir", tmp_path / "sets")
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    for place, reason in ((0, "exchanged"), (3, "no partner"), (4, "truncated"), (5, "64x40"), (8, "same picture")):
        assert re.search(rf"error: .*{paths[place].name}: .*{reason}", out), reason
    assert "has 5 errors and nothing was written" in err
    assert not (tmp_path / "sets").exists()


KILLED = """
import os, signal, sys
from concertormer_jax.commands import prepare
from concertormer_jax.datasets import builders
import tensorflow_datasets as tfds

for place in sys.argv[1].split(","):  # a process of its own for each, so that importing is waited for once
    child = os.fork()
    if child == 0:
        break
    print(place, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

def killing(function, calls):
    calls = iter(range(calls, -1, -1))
    def wrapped(*arguments, **settings):
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **settings)
    return wrapped

if place == "pictures":
    builders.encoded = killing(builders.encoded, 11)
elif place == "pairs":
    builders.write_text = killing(builders.write_text, 0)
elif place == "rename":
    tfds.core.DatasetInfo.write_to_directory = killing(tfds.core.DatasetInfo.write_to_directory, 0)
prepare.main(["gopro", "--source", sys.argv[2], "--data-dir", os.path.join(sys.argv[3], place)])
"""


@pytest.fixture(scope="module")
def killed(request, tmp_path_factory):
    """A folder with `pictures`, `pairs` and `rename`, where GoPro's preparation was killed, `nowhere`, and `here`."""
    folder = tmp_path_factory.mktemp("killed")
    source = write_set("gopro", "original", tmp_path_factory.mktemp("source"))
    command = [sys.executable, "-c", KILLED, "pictures,pairs,rename,nowhere", str(source), str(folder)]
    ended = subprocess.run(command, cwd=request.config.rootpath, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr
    assert {"pictures -9", "pairs -9", "rename -9", "nowhere 0"} <= set(ended.stdout.splitlines()), ended.stderr
    run("gopro", "--source", source, "--data-dir", folder / "here")
    return folder, source


@pytest.mark.parametrize("place", ["pictures", "pairs", "rename"])
def test_killed_preparation_leaves_nothing_to_trust_and_starts_again(killed, place):
    folder, source = killed
    assert list((folder / place).rglob("incomplete.*")) and not list((folder / place).rglob("1.0.0"))
    with pytest.raises(UserError, match=rf"tfds:gopro: is not in .*{place}; prepare it with"):
        open_prepared("gopro", data_dir=str(folder / place))
    run("gopro", "--source", source, "--data-dir", folder / place)
    assert digests(folder / place) == digests(folder / "here")


def test_another_process_writes_the_same_files(killed):
    folder, _ = killed
    assert digests(folder / "nowhere") == digests(folder / "here")


def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    from concertormer_jax.datasets import builders

    def full(item):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(builders, "encoded", full)
    source = write_set("gopro", "original", tmp_path / "source")
    with pytest.raises(SystemExit):
        run("gopro", "--source", source, "--data-dir", tmp_path / "sets")
    assert {path.name for path in (tmp_path / "sets").rglob("*") if path.is_file()} <= {".preparing", "metadata.json"}


def test_prepared_set_is_not_written_over(tmp_path, capsys):
    source = write_set("hide", "original", tmp_path / "source")
    run("hide", "--source", source, "--data-dir", tmp_path)
    before = digests(tmp_path)
    with pytest.raises(SystemExit):
        run("hide", "--source", source, "--data-dir", tmp_path)
    assert re.search(r"hide/1\.0\.0: is prepared already; delete it", capsys.readouterr().err)
    assert digests(tmp_path) == before
    run("hide", "--source", source, "--data-dir", tmp_path, "--dry-run")


def test_a_place_that_cannot_be_used_is_refused_before_the_pictures_are_checked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "examine", lambda *_: pytest.fail("hours of checks"))
    (tmp_path / "file").write_text("")
    (tmp_path / "sets" / "hide" / "1.0.0").mkdir(parents=True)
    for place, message in {
        "gs://bucket/sets": "must be on this machine",
        tmp_path / "file": "file: cannot be written (it is no folder); name another",
        tmp_path / "sets": "is prepared already",
    }.items():
        with pytest.raises(SystemExit):
            run("hide", "--source", tmp_path, "--data-dir", place)
        assert message in capsys.readouterr().err


def test_two_preparations_at_once_are_refused(tmp_path):
    import fcntl

    _, report = preparation.examine("hide", write_set("hide", "original", tmp_path / "source"))
    (tmp_path / "hide").mkdir()
    with open(tmp_path / "hide" / ".preparing", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is preparing"):
            preparation.prepare("hide", report, str(tmp_path))
    assert preparation.prepare("hide", report, str(tmp_path)) == tmp_path / "hide" / "1.0.0"


def test_own_pairs_have_names_of_their_own(tmp_path):
    for name in ("mine", "yours"):
        run(f"pairs/{name}", "--source", write_set("pairs", "input_target", tmp_path / name), "--data-dir", tmp_path)
    assert len(open_prepared("pairs/mine", data_dir=str(tmp_path))) == 6
    with pytest.raises(UserError, match="has mine, yours of it; name one as tfds:pairs/"):
        open_prepared("pairs", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    "reference, message",
    [("go-pro", "there is no set 'go-pro'; choose one of gopro, hide"), ("gopro/gamma", "choose one of gopro/blur, ")],
)
def test_unknown_names_are_refused(tmp_path, reference, message):
    with pytest.raises(UserError, match=message):
        preparation.described(reference)


def test_buckets_are_prepared_locally(tmp_path):
    _, report = preparation.examine("hide", write_set("hide", "original", tmp_path))
    with pytest.raises(UserError, match=r"--data-dir=gs://bucket/sets: must be on this machine"):
        preparation.prepare("hide", report, "gs://bucket/sets")


def test_help_lists_the_steps_to_every_set(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    for description in SETS.values():
        assert description.title in text
        for step in description.steps:
            assert step in text


@pytest.mark.parametrize(
    "reference, command",
    [
        ("gopro", "train --config=gopro --workdir=runs/gopro "),
        ("gopro/blur_gamma", "--config=gopro --workdir=runs/gopro --config.data.source=tfds:gopro/blur_gamma"),
        ("realblur_j", "--config=realblur_j --workdir=runs/realblur_j --config.init_from=runs/gopro"),
        ("rain13k", "--config=derain --workdir=runs/derain"),
        ("pairs", "--config=custom --workdir=runs/custom --config.data.source=tfds:pairs"),
        ("pairs/my own", "--workdir=runs/custom '--config.data.source=tfds:pairs/my own'"),
        ("hide", "evaluate --ckpt=runs/gopro --data=tfds:hide "),
    ],
)
def test_next_command_is_one_that_exists(tmp_path, reference, command):
    name = reference.partition("/")[0]
    _, report = preparation.examine(reference, write_set(name, "original" if name != "pairs" else "split", tmp_path))
    text = prepare.next_command(reference, report, str(tmp_path / "with space"))
    assert command in text
    assert shlex.split(text)[-1].endswith(f"={tmp_path / 'with space'}")
    for config in re.findall(r"--config=(\S+)", text):
        assert config in recipes()


@pytest.mark.parametrize("limit", [10, 1000, 20_000])
def test_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path, capsys, limit):
    source = write_set("hide", "original", tmp_path / "source")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the system then refuses larger files
    try:
        with pytest.raises(SystemExit) as caught:
            run("hide", "--source", source, "--data-dir", tmp_path / "sets")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(rf"error: {tmp_path}/sets/hide/\S+: File too large; raise the limit of a file's size \(", error)
    run("hide", "--source", source, "--data-dir", tmp_path / "sets")
    assert len(open_prepared("hide", "test", data_dir=str(tmp_path / "sets"))) == 4


@pytest.mark.parametrize("failing", ["write", "close"])
def test_full_disk_is_named_with_what_to_do(tmp_path, capsys, monkeypatch, failing):
    from concertormer_jax.datasets import builders

    class Full(builders.array_record_module.ArrayRecordWriter):
        def full(self, *_):
            raise RuntimeError("write() failed: No space left on device; writing somewhere")

    setattr(Full, failing, Full.full)
    monkeypatch.setattr(builders.array_record_module, "ArrayRecordWriter", Full)
    source = write_set("hide", "original", tmp_path / "source")
    with pytest.raises(SystemExit):
        run("hide", "--source", source, "--data-dir", tmp_path / "sets")
    error = capsys.readouterr().err.splitlines()[-1]
    message = rf"error: {tmp_path}/sets/hide/incomplete\S+/hide-test\.array_record-\S+: No space left on device; free "
    assert re.search(message, error)


def test_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    source = write_set("hide", "original", tmp_path / "source")
    _, report = preparation.examine("hide", source)
    needed = sum(part.bytes for part in report.splits.values())
    for free, fits in ((needed - 1, False), (needed, True)):
        usage = preparation.shutil._ntuple_diskusage(0, 0, free)
        monkeypatch.setattr(preparation.shutil, "disk_usage", lambda _, usage=usage: usage)
        if fits:
            preparation.prepare("hide", report, str(tmp_path / "sets"))
        else:
            with pytest.raises(UserError, match=r"sets/hide: has room for 0\.\d MiB but .* free some space there or"):
                preparation.prepare("hide", report, str(tmp_path / "sets"))
            assert not list((tmp_path / "sets").rglob("*1.0.0"))


def test_unwritable_place_is_named(tmp_path, capsys):
    source = write_set("hide", "original", tmp_path / "source")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        run("hide", "--source", source, "--data-dir", tmp_path / "file")
    assert re.search(r"error: .*/file: cannot be written \(it is no folder\); name another", capsys.readouterr().err)


@pytest.mark.parametrize("reference", ["pairs/../../x", "pairs//x", "pairs/..", "pairs/a\nb", "pairs/a/b"])
def test_names_of_own_sets_are_names(tmp_path, reference):
    with pytest.raises(UserError, match=r"is no name that a file can have|is a path in place of a name"):
        preparation.examine(reference, write_set("pairs", "input_target", tmp_path / "source"))


def test_list_that_is_no_text_is_named(tmp_path):
    source = write_set("realblur_j", "original", tmp_path)
    (source / "RealBlur_J_test_list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"RealBlur_J_test_list\.txt: is no text; download it again"):
        preparation.examine("realblur_j", source)


def test_thumbnails_of_a_network_drive_hide_no_blocks_and_lists(tmp_path):
    for name, file in (("sidd", "ValidationNoisyBlocksSrgb.mat"), ("realblur_j", "RealBlur_J_train_list.txt")):
        source = write_set(name, "original", tmp_path / name)
        (source / "@eaDir" / file).mkdir(parents=True)
        found, _ = preparation.examine(name, source)
        assert not found.unpaired and len(found.pairs["test"]) == len([p for p in pairs_of(name) if p.split == "test"])
