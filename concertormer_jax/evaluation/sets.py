"""From what the user names as data to the sets to score, and the protocol to score them by."""

import re
from pathlib import Path

from concertormer_jax.data.prepared import PREFIX
from concertormer_jax.datasets.layouts import sets_in
from concertormer_jax.datasets.preparation import known_set, open_evaluation_sets
from concertormer_jax.evaluation.protocols import PAIRS, PROTOCOLS, Protocol, protocol_named
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.runtime.paths import checked_part

_PROTOCOL_OF_SET = {"rain13k": "derain"}  # the others are named like their set


def open_sets(data: str, protocol: str | None, data_dir: str = "") -> tuple[Protocol, list[EvaluationSet]]:
    """Return the protocol and the sets that `--data` names: tfds:NAME, or a folder in any layout of the known sets.

    protocol: its name; None: that of the set, and `PAIRS` for a folder of no known set. Sets are named as in the
    protocol where their folders say so. Raises UserError for an unknown protocol and data that cannot be opened.
    """
    chosen = protocol_named(protocol) if protocol else None
    name, sources = open_evaluation_sets(data, data_dir)
    if chosen is None:
        chosen = _protocol_of(name)
    names = {row: checked_part(set_name(chosen, row, len(sources)), data) for row in sources}
    return chosen, [EvaluationSet(names[row], source) for row, source in sources.items()]


def protocol_of_training(source: str) -> Protocol:
    """Return the protocol of the benchmark that a network is for, by what it is trained on: `config.data.source`.

    That of the one known set among the sources, of which prepared ones are known by name and folders by those in them;
    `PAIRS` for any other data.
    """
    names = set()
    for place in filter(None, source.split(",")):
        if place.startswith(PREFIX):
            names.add(known_set(place.removeprefix(PREFIX)))
        else:
            names |= sets_in(place) if Path(place).is_dir() else set()
    names.discard(None)
    return _protocol_of(names.pop()) if len(names) == 1 else PAIRS


def _protocol_of(name: str | None) -> Protocol:
    """The protocol of the set `name`, None for pairs of no known set."""
    return PROTOCOLS.get(_PROTOCOL_OF_SET.get(name, name), PAIRS)


def set_name(protocol: Protocol, row: str, count: int) -> str:
    """Return the protocol's name of a set called `row` by its folder or split, one of `count`; else `row` itself."""
    if len(protocol.sets) == 1 and count == 1:
        return next(iter(protocol.sets))
    plain = {re.sub("[-_]", "", name).lower(): name for name in protocol.sets}
    return plain.get(re.sub("[-_]", "", row).lower(), row)
