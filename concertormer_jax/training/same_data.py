"""Whether a run that goes on has the data that it was begun with, wherever they lie now."""

import json

from etils import epath

from concertormer_jax.errors import UserError

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
