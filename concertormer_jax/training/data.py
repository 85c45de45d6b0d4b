"""The data of a run: where they come from, and what the run says of them."""

import json

from etils import epath

from concertormer_jax.data.degrade import make_degradation
from concertormer_jax.data.sources import Mixture, leave_out, open_source, split_source
from concertormer_jax.runtime.errors import UserError

_MUCH_MORE = 1.5  # times the pictures to hold out, from which on that is said


def sources_from(config):
    """The sources for training and validation: held-out images of the former, unless config.validation names one.

    What is validated on is left out of the training. Raises UserError like `open_source`, and if nothing is left.
    """
    data = config.data
    degradation = make_degradation(
        data.degradation,
        min_length_px=data.blur_min_px,
        max_length_px=data.blur_max_px,
        shot_noise=data.shot_noise,
        read_noise=data.read_noise,
        jpeg_quality=data.jpeg_quality,
    )
    if not _places(data.source):
        raise UserError("config.data.source is empty; name a folder with input/ and target/ or one of photographs")
    settings = {"degradation": degradation, "data_dir": data.data_dir}
    opened = [open_source(place, cached=config.run.cache, **settings) for place in _places(data.source)]
    if _places(config.validation.source):
        held = [open_source(place, validation=True, **settings) for place in _places(config.validation.source)]
        training = [leave_out(source, held) for source in opened]
        for place, source in zip(_places(data.source), training, strict=True):
            if not len(source):
                raise UserError(
                    f"config.data.source={place}: config.validation.source={config.validation.source} holds all its "
                    "pictures, so that none is left to train on; name other pictures, or leave the latter empty"
                )
        validation = Mixture(held) if len(held) > 1 else held[0]
    else:
        split = [split_source(source, config.validation.fraction) for source in opened]
        training = [part for part, _ in split]
        validation = Mixture([part for _, part in split])
    source = Mixture(training, data.shares or None) if len(training) > 1 else training[0]
    return source, validation


def data_notes(source, validation, config) -> list[str]:
    """What to say of the sources at the start: kind, number, and an example of each part."""
    lines = [f"training on {part.describe()}" for part in source.parts()]
    held_out = "" if config.validation.source else "held out: "
    lines += [f"validating on {held_out}{part.describe()}" for part in validation.parts()]
    share = len(validation) / (len(source) + len(validation))
    if held_out and share > _MUCH_MORE * config.validation.fraction and len(validation) > len(validation.parts()):
        lines.append(
            f"{share:.0%} of the pictures are held out in place of {config.validation.fraction:.0%}, since whole "
            "sequences are; name pictures to validate on as config.validation.source to train on all of these"
        )
    return lines


def _places(text: str) -> list[str]:
    return [place for place in text.split(",") if place]


# Whether a run that goes on has the data that it was begun with, wherever they lie now.

DIGESTS_FILE = "data.json"
NAMES_OF_DATA = ("data.source", "data.data_dir", "validation.source")


def digests_of(source, validation) -> dict:
    """What the data of a run are known by, as JSON keeps it: the digests of the parts of both sources."""
    return {"training": _digests(source), "validation": _digests(validation)}


def write_digests(workdir, data: dict) -> None:
    """Write `data` into a work folder, in place of what was there."""
    path = epath.Path(workdir) / DIGESTS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{DIGESTS_FILE}.tmp"
    temporary.write_text(json.dumps(data, indent=2) + "\n")
    temporary.replace(path)


def require_same_data(workdir, stored: dict, wanted: dict, data: dict | None, begin_again: str) -> None:
    """Raise UserError unless a run in `workdir` was begun with the data of the digests `data`, wherever they lay then.

    stored, wanted: the configs of then and now, as JSON keeps them; begin_again: what to do with other data. A folder
    without digests, or one that is asked without any, is compared by the names of the data.
    """
    path = epath.Path(workdir) / DIGESTS_FILE
    old_names, new_names = _names(stored), _names(wanted)
    if data is None or not path.exists():
        for key in NAMES_OF_DATA:
            if old_names[key] != new_names[key]:
                raise UserError(
                    f"{workdir} was made with another config: config.{key} was {_text(old_names[key])} and is now "
                    f"{_text(new_names[key])}; use the old value, or {begin_again}"
                )
        return
    try:
        before = json.loads(path.read_text())
        parts = {name: [(part["pictures"], part["digest"]) for part in before[name]] for name in data}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is damaged; delete it to go on without knowing the data again") from error
    for name, key in (("training", "data.source"), ("validation", "validation.source")):
        now = [(part["pictures"], part["digest"]) for part in data[name]]
        if now != parts[name]:
            counts = [" and ".join(f"{count:,}" for count, _ in one) for one in (parts[name], now)]
            key = key if new_names[key] else "data.source"
            raise UserError(
                f"config.{key}={_text(new_names[key])}: holds other {name} pictures than {_text(old_names[key])} did "
                f"when {workdir} was begun ({counts[0]} then, {counts[1]} now; names or files differ); give it the "
                f"same pictures to go on, or {begin_again}"
            )


def _digests(source) -> list[dict]:
    return [part.digest() for part in source.parts()]


def _names(config: dict) -> dict[str, list[str]]:
    """The values of the keys that name data, as far as there are such, without what makes no difference to a path."""
    result = {}
    for key in NAMES_OF_DATA:
        group, _, name = key.partition(".")
        places = config.get(group, {}).get(name, "").split(",")
        result[key] = [place.rstrip("/") or place for place in places if place]
    return result


def _text(places: list[str]) -> str:
    return ",".join(places) or "(empty)"
