"""The choice of a dictionary in a weights file, and of the network's names in it.

Trainers save the weights under many keys, several times (with a moving average), with prefixes before their names, and
with counters between them. One rule serves all: every dictionary of tensors in the file, with every prefix before names
of a known network, is a candidate. Candidates with at least half as many such names as the best one are considered. Of
these the moving average is taken, since papers evaluate that, and else the only one.
"""

import re
from collections import Counter, deque
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.weights.torch_pickle import Tensor, shown

MAX_DEPTH = 4  # of dictionaries in dictionaries
MAX_KEY = 100  # characters in the key of a dictionary
MAX_PREFIXES = 8  # candidates in one dictionary
COUNTERS = ("total_ops", "total_params")  # buffers that the package thop leaves in every layer
OPTIMIZER = re.compile(r"optimizer|optim_|(?:^|\.)optim(?:\.|$)", re.IGNORECASE)
AVERAGE = re.compile(r"(?:^|[^A-Za-z])ema(?:[^A-Za-z]|$)|EMA|Ema|averaged")


class Selection(NamedTuple):
    """The chosen tensors (`Tensor` or NumPy arrays, as in the file) by the network's names, and a remark on the choice.

    remark: "" for a file with one dictionary and no prefix.
    """

    tensors: dict[str, Any]
    remark: str


class _Candidate(NamedTuple):
    """A dictionary with one prefix. key: the keys that lead to it, joined by dots, "" for the file itself; hits: how
    many of its names are a known network's.
    """

    key: str
    prefix: str
    tensors: dict[str, Any]
    hits: int

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)


def select(content: Any, path: AnyPath, known: Collection[str], key: str | None = None) -> Selection:
    """Choose among the dictionaries of tensors in a file's `content`; `path` is its name in messages.

    known: the names of the weights of all known networks; if empty, every dictionary is considered. key: the keys that
    lead to a dictionary, joined by dots. Raises UserError when there is no such dictionary, or when the rule leaves
    several.
    """
    dictionaries = _dictionaries(content)
    if not dictionaries:
        raise UserError(f"{path} holds no dictionary of tensors")
    candidates = [candidate for way, tensors in dictionaries.items() for candidate in _candidates(way, tensors, known)]
    most = max(candidate.hits for candidate in candidates)
    considered = [candidate for candidate in candidates if 2 * candidate.hits >= most]
    if key is not None:
        named = [c for c in candidates if c.label == key] or [c for c in candidates if c.key == key]
        if not named:
            raise UserError(f"{path} holds no dictionary of tensors {key!r}; choose from {_listed(candidates)}")
        chosen = max(named, key=lambda candidate: candidate.hits)
    else:
        meant = [candidate for candidate in considered if AVERAGE.search(candidate.label)] or considered
        if len(meant) > 1:
            raise UserError(f"{path} holds several networks, {_listed(meant)}; convert one with --key=NAME")
        (chosen,) = meant
    return _selection(chosen, [candidate for candidate in considered if candidate is not chosen])


def _dictionaries(content: Any) -> dict[str, dict[str, Any]]:
    """The tensors of every dictionary in `content` that holds any, by the keys that lead to it."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    queue = deque([("", content, 0)] if type(content) is dict else [])
    while queue:
        way, value, depth = queue.popleft()
        if id(value) in seen or OPTIMIZER.search(way):
            continue
        seen.add(id(value))
        tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor | np.ndarray)}
        if tensors:
            found.setdefault(way, tensors)
        if depth < MAX_DEPTH:
            inner = [(name, child) for name, child in value.items() if type(child) is dict and len(name) <= MAX_KEY]
            queue.extend((f"{way}.{name}" if way else name, child, depth + 1) for name, child in inner)
    return found


def _candidates(way: str, tensors: dict[str, Any], known: Collection[str]) -> list[_Candidate]:
    parts = max((name.count(".") for name in known), default=0)
    hits: Counter[str] = Counter()
    for name in tensors:
        pieces = name.rsplit(".", parts + 1)[-parts - 1 :]
        for start in range(len(pieces)):
            ours = ".".join(pieces[start:])
            if ours in known:
                hits[name.removesuffix(ours)] += 1
                break
    if not hits:
        return [_Candidate(way, "", tensors, 0)]
    return [_Candidate(way, prefix, tensors, count) for prefix, count in hits.most_common(MAX_PREFIXES)]


def _selection(chosen: _Candidate, others: list[_Candidate]) -> Selection:
    """Take the network's tensors out of the chosen dictionary, and say what else is in the file."""
    prefixes = {chosen.prefix, *(other.prefix for other in others if other.key == chosen.key)}
    kept, counters, surplus = {}, 0, []
    for name, tensor in chosen.tensors.items():
        owner = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if name.rsplit(".", 1)[-1] in COUNTERS:
            counters += 1
        elif owner == chosen.prefix:
            kept[name.removeprefix(owner)] = tensor
        elif owner is None:
            surplus.append(name)
    remarks = []
    if chosen.key or others:
        remarks.append(f"took {_listed([chosen])}" + (f", not {_listed(others)}" if others else ""))
    if chosen.prefix:
        remarks.append(f"without the prefix '{shown(chosen.prefix)}'")
    if counters:
        remarks.append(f"left out {counters:,} counters ({', '.join(COUNTERS)})")
    if surplus:
        more = f" and {len(surplus) - 1:,} more" if len(surplus) > 1 else ""
        remarks.append(f"left out '{shown(surplus[0])}'{more}, not under that prefix")
    return Selection(kept, "; ".join(remarks))


def _listed(candidates: list[_Candidate]) -> str:
    labels = [f"'{shown(candidate.label)}'" if candidate.label else "what has no key" for candidate in candidates]
    return ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
