"""Photographs through the command: any size and format, tiles without seams, clear failures."""

import os

import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.commands import restore as command
from concertormer_jax.data import images
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos import restoring
from concertormer_jax.photos.restoring import Job, plan, restore_files
from concertormer_jax.runtime import memory
from concertormer_jax.runtime.errors import UserError


def restorer(factor=1.0, **options):
    return Restorer(fake_model(factor), **{"tlc": "off", "log": lambda line: None, **options})


@pytest.fixture
def loaded(monkeypatch):
    """Let the command load a fake network, and leave the settings of the process alone."""
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: fake_model())


def save(path, size, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (*size, len(mode)), dtype=np.uint8)
    Image.fromarray(picture.squeeze(axis=2) if mode == "L" else picture).save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_picture_is_restored_in_its_own_format(tmp_path):
    source = save(tmp_path / "in.png", (40, 50), "RGBA", compress_level=0)
    lines = []
    results = restore_files(restorer(0.8), plan(source, tmp_path / "out.png"), log=lines.append).restored
    assert results == (tmp_path / "out.png",)
    np.testing.assert_array_equal(read(results[0])[:, :, 3], read(source)[:, :, 3])
    assert np.abs(read(results[0])[:, :, :3].astype(float) - 0.8 * read(source)[:, :, :3]).max() <= 0.5
    assert "50x40, whole" in lines[0]
    restore_files(restorer(0.8), plan(source, tmp_path / "out.jpg"), log=lines.append)
    assert "JPEG has no alpha" in lines[1], "before it is restored"


def test_a_turned_photograph_has_its_displayed_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = save(tmp_path / "in.jpg", (40, 50), exif=exif)
    restore_files(restorer(), plan(source, tmp_path / "out.jpg", compare=True), log=lambda line: None)
    assert read(tmp_path / "out.jpg").shape == (50, 40, 3)
    assert read(tmp_path / "out_compare.png").shape[0] == 50 + 30


def test_a_folder_keeps_its_names_and_one_bad_picture_does_not_stop_the_others(tmp_path):
    save(tmp_path / "in" / "a.png", (40, 50), "L")
    save(tmp_path / "in" / "b.jpg", (200, 300))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "._b.jpg").write_text("what macOS leaves beside b.jpg")
    lines = []
    restore_files(restorer(tile="128"), plan(tmp_path / "in", tmp_path / "out"), log=lines.append)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg"]
    assert read(tmp_path / "out" / "a.png").shape == (40, 50)
    assert "12 tiles of 128 px" in lines[1]
    (tmp_path / "in" / "a.png").write_bytes(b"broken")
    (tmp_path / "out" / "b.jpg").unlink()
    outcome = restore_files(restorer(), plan(tmp_path / "in", tmp_path / "out"), log=lines.append)
    assert outcome.restored == (tmp_path / "out" / "b.jpg",)
    assert list(outcome.failed) == [tmp_path / "in" / "a.png"]
    assert (tmp_path / "out" / "b.jpg").exists()


def test_the_command_restores_and_says_what_it_did(tmp_path, loaded, capsys):
    source = save(tmp_path / "in.png", (200, 300))
    command.main(
        [f"--ckpt={tmp_path}", str(source), str(tmp_path / "out.webp"), "--tile=128", "--tlc=off", "--compare"]
    )
    np.testing.assert_array_equal(read(tmp_path / "out.webp"), read(source))
    printed = capsys.readouterr().out
    assert "compiling 128x128" in printed
    assert f"{tmp_path / 'out.webp'}: 300x200, 12 tiles of 128 px, cpu, " in printed
    assert (tmp_path / "out_compare.html").read_text().count('src="data:image/webp') == 2
    both = read(tmp_path / "out_compare.png")
    np.testing.assert_array_equal(both[-200:, :300], both[-200:, -300:])


def test_the_command_fails_with_one_sentence(tmp_path, loaded, capsys):
    source = save(tmp_path / "in.png", (20, 30))
    with pytest.raises(SystemExit) as exit_status:
        command.main([f"--ckpt={tmp_path}", str(source), str(source / "out.png")])
    assert exit_status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {source}: cannot be written")


def test_impossible_plans_are_refused(tmp_path):
    picture = save(tmp_path / "in" / "a.png", (4, 4))
    (tmp_path / "empty").mkdir()
    for source, destination, message in [
        (tmp_path / "missing", tmp_path / "out", "missing: no such"),
        (tmp_path / "empty", tmp_path / "out", "holds no pictures"),
        (picture, picture, "overwrite the original"),
        (picture, tmp_path / "in", "overwrite the original"),
        (tmp_path / "in", tmp_path / "in", "overwrite the original"),
        (tmp_path / "in", picture, "is a file"),
        (picture, tmp_path / "out.gif", "unknown picture format"),
    ]:
        with pytest.raises(UserError, match=message):
            plan(source, destination)
    assert plan(picture, tmp_path / "empty").jobs == (Job(picture, tmp_path / "empty" / "a.png"),)
    for options in ({"tile": "200"}, {"tlc": "200"}):
        with pytest.raises(UserError, match="192 and 256"):
            restorer(**options)


@pytest.fixture
def written(tmp_path, loaded, capsys):
    """Call the command; give its status and its lines on stdout and stderr."""

    def call(*arguments):
        try:
            command.main([f"--ckpt={tmp_path}", "--tlc=off", *map(str, arguments)])
            status = 0
        except SystemExit as exit_status:
            status = exit_status.code
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return call


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_everything_in_a_folder_that_can_be_decoded_is_restored_and_the_rest_is_listed(tmp_path, written):
    source = tmp_path / "in"
    formats = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "bmp": "BMP", "gif": "GIF", "avif": "AVIF", "tif": "TIFF"}
    for suffix, file_format in formats.items():
        save(source / f"{suffix}.{suffix}", (8, 9), format=file_format)
    save(source / "deep" / "deeper" / "a.png", (8, 9))
    save(source / "@eaDir" / "a.png", (8, 9))
    for name in ("notes.txt", ".hidden.png", "photo.cr2"):
        (source / name).write_bytes(b"")
    status, _, said = written(source, tmp_path / "out")
    assert status == 0
    results = ["JPG.JPG", "avif.png", "bmp.png", "gif.png", "jfif.jfif", "jpe.jpe", "tif.tif"]
    assert names(tmp_path / "out") == results
    for name in ("avif", "bmp", "gif"):
        assert read(tmp_path / "out" / f"{name}.png").shape == (8, 9, 3)
    np.testing.assert_array_equal(read(tmp_path / "out" / "bmp.png"), read(source / "bmp.bmp"))
    assert said == [
        f"left out 2 files whose names are not those of pictures: {source / 'notes.txt'}, {source / 'photo.cr2'}",
        "left out 1 hidden files",
        "left out 1 pictures in subfolders; --recursive takes them too",
    ]
    status, _, said = written(source, tmp_path / "all", "--recursive")
    assert status == 0
    assert names(tmp_path / "all") == sorted([*results, "deep/deeper/a.png"])
    assert len(said) == 2


def test_results_inside_the_folder_are_not_restored_again(tmp_path, written):
    save(tmp_path / "in" / "a.png", (8, 9))
    for _ in range(2):
        assert written(tmp_path / "in", tmp_path / "in" / "out", "--recursive")[::2] == (0, [])
    assert names(tmp_path / "in") == ["a.png", "out/a.png"]


def test_an_unforeseen_failure_does_not_stop_the_others(tmp_path, written, monkeypatch):
    for name in "abc":
        save(tmp_path / "in" / f"{name}.png", (8, 9))
    write_photo = restoring.write_photo

    def broken(path, photo):
        if path.name == "b.png":
            raise TypeError("nobody thought of\x1b[31m this")
        write_photo(path, photo)

    monkeypatch.setattr(restoring, "write_photo", broken)
    status, _, said = written(tmp_path / "in", tmp_path / "out")
    assert status == 1
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    reason = f"{tmp_path / 'in' / 'b.png'}: could not be restored (TypeError: nobody thought of\\x1b[31m this)."
    assert said == ["error: 1 of 3 pictures could not be restored:", rf"  {reason}"]
    status, _, said = written(tmp_path / "in" / "b.png", tmp_path / "b.png")
    assert (status, said) == (2, [f"error: {reason}"])


def test_pipes_links_and_raw_files_are_told_apart(tmp_path, written, monkeypatch):
    monkeypatch.setattr(images, "_PILLOW_FORMATS", ["PNG"])  # as without pillow-heif
    source = tmp_path / "in"
    save(source / "a.png", (8, 9))
    os.mkfifo(source / "pipe.png")
    (source / "link.png").symlink_to("a.png")
    (source / "nowhere.png").symlink_to("gone.png")
    (source / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    status, _, said = written(source, tmp_path / "out")
    assert status == 1
    assert names(tmp_path / "out") == ["a.png", "link.png"]
    for reason in ("nowhere.png: no such file", "photo.heic: is a HEIF", "pipe.png: is a named pipe"):
        assert any(reason in line for line in said)
    assert any("pip install pillow-heif" in line for line in said)


def test_a_picture_too_large_for_its_format_is_refused_before_it_is_restored(tmp_path):
    class Untouched:
        def choose_canvas(self, sizes):
            pass

        def __call__(self, rgb):
            raise AssertionError("the network was run")

    save(tmp_path / "wide.png", (1, 16384))
    for suffix, reason in ((".webp", "a WEBP has at most 16383 pixels a side"),):
        with pytest.raises(UserError, match=reason):
            restore_files(Untouched(), plan(tmp_path / "wide.png", tmp_path / f"out{suffix}"), log=lambda line: None)
    Image.new("1", (65501, 1)).save(tmp_path / "wide.png")
    with pytest.raises(UserError, match="a JPEG has at most 65500 pixels a side"):
        restore_files(Untouched(), plan(tmp_path / "wide.png", tmp_path / "out.jpg"), log=lambda line: None)


def test_a_picture_too_large_for_the_memory_is_refused_with_what_to_do(tmp_path, monkeypatch):
    save(tmp_path / "a.png", (600, 700))
    monkeypatch.setattr(memory, "_LITTLE_BYTES", 0)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 10_000_000)
    with pytest.raises(UserError, match=r"a\.png: restoring 700x600 pixels needs .* make the picture smaller"):
        restore_files(restorer(), plan(tmp_path / "a.png", tmp_path / "b.png"))


def test_a_wrong_suffix_is_said_and_the_result_is_what_it_names(tmp_path, written):
    save(tmp_path / "in.png", (8, 9), format="JPEG")
    status, lines, _ = written(tmp_path / "in.png", tmp_path / "out.png")
    assert status == 0
    assert f"note: {tmp_path / 'in.png'} is a JPEG by its content." in lines
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"


def test_names_do_not_reach_the_terminal_unescaped(tmp_path, written):
    source = tmp_path / "in"
    save(source / "a\x1b[2J\n.png", (8, 9))
    (source / "b\x1b]0;title\x07.txt").write_text("")
    (source / "c\x9b31m.png").write_bytes(b"broken")
    status, lines, said = written(source, tmp_path / "out")
    assert status == 1
    for line in (*lines, *said):
        assert line.isprintable()
    assert any(r"a\x1b[2J\n.png" in line for line in lines)
    assert any(r"c\x9b31m.png" in line for line in said)


def test_a_result_with_the_longest_possible_name_is_written(tmp_path, written):
    save(tmp_path / "in" / f"{'x' * 251}.png", (8, 9))
    assert written(tmp_path / "in", tmp_path / "out")[0] == 0
    status, _, said = written(tmp_path / "in", tmp_path / "out2", "--compare")
    assert status == 2
    assert "File name too long" in said[0]
