"""From what the user names as data to the sets to score and the protocol to score them by."""

import re

from concertormer_jax.datasets.opening import open_evaluation_sets
from concertormer_jax.evaluation.protocols import PAIRS, PROTOCOLS, Protocol, protocol_named
from concertormer_jax.evaluation.sets import EvaluationSet

_PROTOCOL_OF_SET = {"rain13k": "derain"}  # the others are named like their set


def open_sets(data: str, protocol: str | None, data_dir: str = "") -> tuple[Protocol, list[EvaluationSet]]:
    """Return the protocol and the sets that `--data` names: tfds:NAME, or a folder in any layout of the known sets.

    protocol: its name; None: that of the set, and `PAIRS` for a folder of no known set. Sets are named as in the
    protocol where their folders say so. Raises UserError for an unknown protocol and data that cannot be opened.
    """
    chosen = protocol_named(protocol) if protocol else None
    name, sources = open_evaluation_sets(data, data_dir)
    if chosen is None:
        chosen = PROTOCOLS.get(_PROTOCOL_OF_SET.get(name, name), PAIRS)
    return chosen, [EvaluationSet(set_name(chosen, row, len(sources)), source) for row, source in sources.items()]


def set_name(protocol: Protocol, row: str, count: int) -> str:
    """Return the protocol's name of a set called `row` by its folder or split, one of `count`; else `row` itself."""
    if len(protocol.sets) == 1 and count == 1:
        return next(iter(protocol.sets))
    plain = {re.sub("[-_]", "", name).lower(): name for name in protocol.sets}
    return plain.get(re.sub("[-_]", "", row).lower(), row)
