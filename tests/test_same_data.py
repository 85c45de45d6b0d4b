"""A run goes on with the data that it was begun with, wherever they lie, and with no others."""

import json
import shutil

import numpy as np
import pytest
import training_runs as runs
from dataset_fixtures import write_set

from concertormer_jax.data.images import write_png
from concertormer_jax.datasets.preparation import examine, prepare
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.setup import data_notes, sources_from
from concertormer_jax.training.workdir import DIGESTS_FILE, check_and_write_config, digests_of
from configs import common


@pytest.fixture
def photos(tmp_path):
    runs.write_photos(tmp_path / "photos")
    return tmp_path / "photos"


def claim(workdir, begun=True, **settings):
    config = runs.override(common.get_config(), {key.replace("__", "."): value for key, value in settings.items()})
    check_and_write_config(workdir, config, begun=begun, data=digests_of(*sources_from(config)))


def test_data_may_be_named_otherwise_and_moved(photos, tmp_path, monkeypatch):
    claim(tmp_path / "run", begun=False, data__source=str(photos))
    before = (tmp_path / "run" / DIGESTS_FILE).read_text()
    monkeypatch.chdir(tmp_path)
    for source in (f"{photos}/", f"{photos}//", "photos", "./photos/", f"{tmp_path}/run/../photos", f"{photos},"):
        claim(tmp_path / "run", data__source=source)
    photos.rename(tmp_path / "moved")
    claim(tmp_path / "run", data__source=str(tmp_path / "moved"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["source"] == str(tmp_path / "moved")
    assert (tmp_path / "run" / DIGESTS_FILE).read_text() == before


def test_prepared_sets_may_move_and_be_named_with_their_configuration(tmp_path):
    _, report = examine("gopro", write_set("gopro", "original", tmp_path / "source"))
    prepare("gopro", report, str(tmp_path / "sets"))
    settings = {"data__source": "tfds:gopro", "validation__source": "tfds:gopro"}
    claim(tmp_path / "run", begun=False, data__data_dir=str(tmp_path / "sets"), **settings)
    (tmp_path / "sets").rename(tmp_path / "elsewhere")
    settings = {"data__source": "tfds:gopro/blur", "validation__source": "tfds:gopro/"}
    claim(tmp_path / "run", data__data_dir=f"{tmp_path}/elsewhere/", **settings)


def test_other_blur_of_the_same_names_is_other_data(tmp_path):
    source = write_set("gopro", "original", tmp_path)
    for reference in ("gopro/blur", "gopro/blur_gamma"):
        prepare(reference, examine(reference, source)[1], str(tmp_path / "sets"))
    settings = {"data__data_dir": str(tmp_path / "sets")}
    claim(tmp_path / "run", begun=False, data__source="tfds:gopro/blur", **settings)
    with pytest.raises(UserError, match=r"config\.data\.source=tfds:gopro/blur_gamma: holds other training pictures"):
        claim(tmp_path / "run", data__source="tfds:gopro/blur_gamma", **settings)


def added(photos):
    write_png(photos / "new.png", np.zeros((48, 48, 3), np.uint8))


def removed(photos):
    next(photos.iterdir()).unlink()


def renamed(photos):
    (photos / "photo0.png").rename(photos / "photo9.png")


def replaced(photos):
    for path in photos.iterdir():
        write_png(path, np.full((48, 48, 3), 7, np.uint8))


@pytest.mark.parametrize("change", [added, removed, renamed, replaced])
@pytest.mark.parametrize("moved", [False, True])
def test_other_pictures_are_refused_whether_the_path_is_the_same_or_not(photos, tmp_path, change, moved):
    claim(tmp_path / "run", begun=False, data__source=str(photos))
    written = (tmp_path / "run" / DIGESTS_FILE).read_text()
    place = shutil.move(photos, tmp_path / "moved") if moved else photos
    change(place)
    message = (
        rf"config\.data\.source={place}: holds other \w+ pictures than {photos} did when {tmp_path}/run was begun "
        rf"\(\d+ then, \d+ now; .*\); give it the same pictures to go on, or go on from its weights in another folder: "
        rf"--workdir=NEW --config\.init_from={tmp_path}/run"
    )
    with pytest.raises(UserError, match=message):
        claim(tmp_path / "run", data__source=str(place))
    assert (tmp_path / "run" / DIGESTS_FILE).read_text() == written, "and refused the next time too"


def test_other_pictures_to_validate_on_are_refused(photos, tmp_path):
    runs.write_photos(tmp_path / "held", count=2, size=32)
    claim(tmp_path / "run", begun=False, data__source=str(photos), validation__source=str(tmp_path / "held"))
    removed(tmp_path / "held")
    with pytest.raises(UserError, match=r"config\.validation\.source=.*/held: holds other validation .*2 then, 1"):
        claim(tmp_path / "run", data__source=str(photos), validation__source=str(tmp_path / "held"))


def test_order_of_the_sources_counts(photos, tmp_path):
    runs.write_photos(tmp_path / "more", count=4, size=32)
    claim(tmp_path / "run", begun=False, data__source=f"{photos},{tmp_path}/more")
    with pytest.raises(UserError, match=r"5 and 3 then, 3 and 5 now"):
        claim(tmp_path / "run", data__source=f"{tmp_path}/more,{photos}")


def test_folder_without_digests_goes_by_the_names(photos, tmp_path):
    claim(tmp_path / "run", begun=False, data__source=str(photos))
    (tmp_path / "run" / DIGESTS_FILE).unlink()
    claim(tmp_path / "run", data__source=f"{photos}/")
    (tmp_path / "run" / DIGESTS_FILE).unlink()
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"config\.data\.source was .*/photos and is now .*/moved"):
        claim(tmp_path / "run", data__source=str(tmp_path / "moved"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": [{}], "validation": []}', '{"training": 1'])
def test_damaged_digests_are_named(photos, tmp_path, text):
    claim(tmp_path / "run", begun=False, data__source=str(photos))
    (tmp_path / "run" / DIGESTS_FILE).write_text(text)
    with pytest.raises(UserError, match=r"data\.json: is damaged; delete it"):
        claim(tmp_path / "run", data__source=str(photos))


def test_more_steps_are_refused_with_the_way_to_go_on(photos, tmp_path):
    claim(tmp_path / "run", begun=False, data__source=str(photos))
    message = rf"config\.stages\.steps was .* or go on .*: --workdir=NEW --config\.init_from={tmp_path}/run"
    with pytest.raises(UserError, match=message):
        claim(tmp_path / "run", data__source=str(photos), stages__steps=(1_000_000, 300_000, 100_000))
    with pytest.raises(UserError, match=r"config\.model\.variant was gopro and is now lite; use .* or another --w"):
        claim(tmp_path / "run", data__source=str(photos), model__variant="lite")


def test_start_says_what_was_found(tmp_path):
    for scene in ("walk", "ride"):
        for frame in range(4):
            for side in ("Blur", "Sharp"):
                write_png(tmp_path / "pairs" / side / f"{scene}-{frame}.png", np.full((8, 8, 3), frame, np.uint8))
    write_png(tmp_path / "pairs" / "preview.png", np.zeros((8, 8, 3), np.uint8))
    runs.write_photos(tmp_path / "photos")
    config = runs.override(common.get_config(), {"data.source": f"{tmp_path}/pairs,{tmp_path}/photos"})
    notes = data_notes(*sources_from(config), config)
    held = "walk" if "Blur/walk" in notes[2] else "ride"
    kept = {"walk": "ride", "ride": "walk"}[held]
    unused = f" (pictures beside them are not used: 1, such as {tmp_path}/pairs/preview.png)"
    assert notes[0] == (
        f"training on 4 pairs, such as {tmp_path}/pairs/Blur/{kept}-0.png with its target "
        f"{tmp_path}/pairs/Sharp/{kept}-0.png{unused}"
    )
    assert notes[1].startswith("training on 5 sharp photographs, such as ") and "degraded by CameraShake" in notes[1]
    assert notes[2].startswith("validating on held out: 4 pairs, such as ")
    assert notes[3].startswith("validating on held out: 1 sharp photographs, such as ")
    assert notes[4].startswith("36% of the pictures are held out in place of 5%, since whole sequences are; ")


def test_a_run_among_its_photographs_is_refused(photos, tmp_path):
    """Its samples would be photographs of the next start, which would refuse them as other data."""
    config = runs.override(common.get_config(), {"data.source": f"{photos}/"})
    with pytest.raises(UserError, match=rf"{photos}/run: lies in the folder of pictures {photos}, .* elsewhere"):
        sources_from(config, photos / "run")
    elsewhere = runs.override(config, {"data.source": str(photos), "validation.source": str(tmp_path / "held")})
    runs.write_photos(tmp_path / "held", count=2, size=32)
    with pytest.raises(UserError, match=rf"held/run: lies in the folder of pictures {tmp_path}/held"):
        sources_from(elsewhere, tmp_path / "held" / "run")
    for side in ("input", "target"):
        runs.write_photos(tmp_path / "pairs" / side)
    sources_from(runs.override(config, {"data.source": f"{tmp_path}/pairs"}), tmp_path / "pairs" / "run")
