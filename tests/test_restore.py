"""Photographs through the command: any size and format, tiles without seams, clear failures."""

import jax
import numpy as np
import pytest
from fake_model import FakeModule, fake_model
from PIL import Image

from concertormer_jax import restore as command
from concertormer_jax.errors import UserError
from concertormer_jax.restore import PhotoRestorer, restore_files
from concertormer_jax.restore_plan import Job, plan


def restorer(factor=1.0, **options):
    return PhotoRestorer(fake_model(factor), **{"tlc": "off", "log": lambda line: None, **options})


@pytest.fixture
def loaded(monkeypatch):
    """Let the command load a fake network, and leave the settings of the process alone."""
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda directory: fake_model())


def save(path, size, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(0).integers(0, 256, (*size, len(mode)), dtype=np.uint8)
    Image.fromarray(picture.squeeze(axis=2) if mode == "L" else picture).save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (37, 53), (720, 1280), (2000, 3000)])
def test_the_identity_network_gives_every_size_back(size):
    rgb = np.random.default_rng(0).random((*size, 3), dtype=np.float32)
    np.testing.assert_allclose(restorer()(rgb), rgb, atol=1e-6)


def test_large_pictures_compile_one_size():
    lines = []
    restore = restorer(tile="128", log=lines.append)
    for size in [(300, 200), (129, 500), (200, 200)]:
        restore(np.zeros((*size, 3), np.float32))
    assert sum("compiled 128x128" in line for line in lines) == 1
    assert len(lines) == 2


def test_a_picture_is_restored_in_its_own_format(tmp_path):
    source = save(tmp_path / "in.png", (40, 50), "RGBA", compress_level=0)
    lines = []
    results = restore_files(restorer(0.5), plan(source, tmp_path / "out.png"), log=lines.append).restored
    assert results == (tmp_path / "out.png",)
    np.testing.assert_array_equal(read(results[0])[:, :, 3], read(source)[:, :, 3])
    assert np.abs(read(results[0])[:, :, :3].astype(float) - read(source)[:, :, :3] / 2).max() <= 0.5
    assert "40x50, whole" in lines[0]
    restore_files(restorer(0.5), plan(source, tmp_path / "out.jpg"), log=lines.append)
    assert "JPEG has no alpha" in lines[2]


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
    assert "3x4 tiles of 128 px" in lines[1]
    (tmp_path / "in" / "a.png").write_bytes(b"broken")
    (tmp_path / "out" / "b.jpg").unlink()
    outcome = restore_files(restorer(), plan(tmp_path / "in", tmp_path / "out"), log=lines.append)
    assert outcome.restored == (tmp_path / "out" / "b.jpg",)
    assert list(outcome.failed) == [tmp_path / "in" / "a.png"]
    assert (tmp_path / "out" / "b.jpg").exists()


def test_tlc_reaches_the_network(tmp_path):
    rgb = np.full((10, 10, 3), 0.5, np.float32)
    np.testing.assert_allclose(restorer(tlc="auto")(rgb), 0.6, atol=1e-6)
    np.testing.assert_allclose(restorer(tlc="off")(rgb), 0.5, atol=1e-6)


def test_the_result_is_clipped():
    assert restorer(9.0)(np.full((10, 10, 3), 0.5, np.float32)).max() == 1


def test_a_network_that_diverged_is_refused():
    with pytest.raises(UserError, match="not finite"):
        restorer(np.nan)(np.zeros((10, 10, 3), np.float32))


def test_a_full_device_is_reported_with_the_flag():
    class Greedy(FakeModule):
        def clone(self, tlc_window):
            return Greedy(tlc_window)

        def apply(self, variables, images):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")

    model = fake_model()
    object.__setattr__(model, "module", Greedy())
    with pytest.raises(UserError, match="--tile=448"):
        PhotoRestorer(model)(np.zeros((10, 10, 3), np.float32))


def test_the_command_restores_and_says_what_it_did(tmp_path, loaded, capsys):
    source = save(tmp_path / "in.png", (200, 300))
    command.main(
        [f"--ckpt={tmp_path}", str(source), str(tmp_path / "out.webp"), "--tile=128", "--tlc=off", "--compare"]
    )
    np.testing.assert_array_equal(read(tmp_path / "out.webp"), read(source))
    printed = capsys.readouterr().out
    assert "compiling 128x128" in printed
    assert f"{tmp_path / 'out.webp'}: 200x300, 3x4 tiles of 128 px, cpu, " in printed
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
