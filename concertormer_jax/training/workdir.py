"""The work folder of a run: its lock, and the config and the data that it was begun with."""

import contextlib
import json

import jax

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import locked, write_text
from concertormer_jax.runtime.paths import user_path

CONFIG_FILE = "config.json"
DIGESTS_FILE = "data.json"
_LOCK_FILE = ".lock"
_NAMES_OF_DATA = ("data.source", "data.data_dir", "validation.source")
_MAY_CHANGE = ("run.", "train.accumulation", "model.remat")  # these change the result by rounding alone, or not at all


def only_run_in(workdir):
    """A context that locks `workdir` against other runs. The first host of a run holds the lock for all of them.

    Raises UserError on entry when another run holds it.
    """
    if jax.process_index() > 0:
        return contextlib.nullcontext()
    refusal = f"{workdir}: {{holder}} is training in this folder; wait for it, end it, or give another --workdir"
    return locked(workdir / _LOCK_FILE, refusal)


def check_and_write_config(workdir, config, *, begun: bool, flag: str = "--workdir", data: dict | None = None) -> None:
    """Write config.json and data.json into `workdir`; first compare them with `config` and `data` if a run has `begun`.

    Only keys that do not change the result may differ, and keys that name data, if the data are the same. Keys that
    config.json lacks, since it was written by an older version, are not compared.
    flag: the flag that named the folder, for messages. data: from `digests_of`; None: data are compared by name.
    Raises UserError naming the first key that differs, and when a file is damaged.
    """
    workdir = user_path(workdir, flag)
    path = workdir / CONFIG_FILE
    wanted = json.loads(config.to_json_best_effort())
    if begun and path.exists():
        stored = _read_config(path)
        begin_again = another = f"another {flag}"
        if flag == "--workdir":
            begin_again = f"go on from its weights in another folder: {flag}=NEW --config.init_from={workdir}"
        for name, old, new in _differences(stored, wanted):
            remedy = another if name.startswith("config.model.") else begin_again  # other networks have other weights
            raise UserError(_another_config(workdir, name, old, new, remedy))
        _require_same_data(workdir, stored, wanted, data, begin_again)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        if data is not None:
            write_text(workdir / DIGESTS_FILE, json.dumps(data, indent=2) + "\n")
        write_text(path, json.dumps(wanted, indent=2) + "\n")


def _read_config(path) -> dict:
    try:
        stored = json.loads(path.read_text())
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise UserError(f"{path} is damaged; remove it if this is the command of the run, which writes it anew")
    return stored


def _differences(stored: dict, wanted: dict):
    """Yield (name, old, new) of every key that must not change and did."""

    def flat(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    old, new = dict(flat(stored)), dict(flat(wanted))
    for name in sorted(old.keys() & new.keys()):
        if not name.startswith(_MAY_CHANGE) and name not in _NAMES_OF_DATA and old[name] != new[name]:
            yield f"config.{name}", old[name], new[name]


def _another_config(workdir, name, old, new, remedy) -> str:
    return f"{workdir} was made with another config: {name} was {old} and is now {new}; use the old value, or {remedy}"


# The data are known by digests, not by their path: they may move between two starts of a run.


def digests_of(source, validation) -> dict:
    """The digests of the parts of both sources, as data.json holds them."""
    return {"training": _digests(source), "validation": _digests(validation)}


def _digests(source) -> list[dict]:
    return [part.digest() for part in source.parts()]


def _require_same_data(workdir, stored: dict, wanted: dict, data: dict | None, begin_again: str) -> None:
    """Raise UserError unless the run in `workdir` was begun with the data of the digests `data`, wherever they lay.

    stored, wanted: the configs of then and now; begin_again: what to do with other data.
    """
    path = workdir / DIGESTS_FILE
    old_names, new_names = _names_of_data(stored), _names_of_data(wanted)
    if data is None or not path.exists():
        for key in _NAMES_OF_DATA:
            old, new = old_names[key], new_names[key]
            if old != new:
                raise UserError(_another_config(workdir, f"config.{key}", _shown(old), _shown(new), begin_again))
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
                f"config.{key}={_shown(new_names[key])}: holds other {name} pictures than {_shown(old_names[key])} did "
                f"when {workdir} was begun ({counts[0]} then, {counts[1]} now; names or files differ); give it the "
                f"same pictures to go on, or {begin_again}"
            )


def _names_of_data(config: dict) -> dict[str, list[str]]:
    """The values of the keys that name data, as lists of paths without a slash at the end."""
    result = {}
    for key in _NAMES_OF_DATA:
        group, _, name = key.partition(".")
        places = config.get(group, {}).get(name, "").split(",")
        result[key] = [place.rstrip("/") or place for place in places if place]
    return result


def _shown(places: list[str]) -> str:
    return ",".join(places) or "(empty)"
