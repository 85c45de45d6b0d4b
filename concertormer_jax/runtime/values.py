"""Kinds of values that a flag or key takes: `value in kind` checks one, `str(kind)` describes them in a message."""

import dataclasses
import re
from typing import Any

_LONGEST_TEXT = 4096
_LONGEST_SHOWN = 200  # characters


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`, a multiple of `multiple`."""

    least: int
    most: int
    multiple: int = 1

    def __contains__(self, value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.least <= value <= self.most and value % self.multiple == 0

    def __str__(self) -> str:
        kind = "a whole number" if self.multiple == 1 else f"a multiple of {self.multiple}"
        return f"{kind} from {self.least} to {self.most}"


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number from `least` to `most`."""

    least: float
    most: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class Switch:
    """True or False."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


class Text:
    """A name or path, possibly empty, without control characters."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= _LONGEST_TEXT and not re.search(r"[\x00-\x1f\x7f]", value)

    def __str__(self) -> str:
        return f"text of at most {_LONGEST_TEXT} characters without control characters"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of `names`."""

    names: tuple[str, ...]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names

    def __str__(self) -> str:
        return f"one of {', '.join(name or repr(name) for name in self.names)}"


@dataclasses.dataclass(frozen=True)
class NamesOf:
    """Names separated by commas: any of `names`, each at most once; with `repeated` at least one, as often as liked."""

    names: tuple[str, ...]
    repeated: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, str):
            return False
        given = [name.strip() for name in value.split(",") if name.strip()]
        if not set(given) <= set(self.names):
            return False
        return len(given) > 0 if self.repeated else len(set(given)) == len(given)

    def __str__(self) -> str:
        kind = "one or more" if self.repeated else "different names"
        return f"{kind} of {', '.join(self.names)}, separated by commas"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple or list of `fewest` to `most` entries of the kind `each`."""

    each: Any
    fewest: int
    most: int

    def __contains__(self, value: object) -> bool:
        tuples = isinstance(value, tuple | list)
        return tuples and self.fewest <= len(value) <= self.most and all(entry in self.each for entry in value)

    def __str__(self) -> str:
        return f"a tuple of {self.fewest} to {self.most} entries, each {self.each}"


@dataclasses.dataclass(frozen=True)
class OrNone:
    """None, or a value of `kind`."""

    kind: Any

    def __contains__(self, value: object) -> bool:
        return value is None or value in self.kind

    def __str__(self) -> str:
        return f"{self.kind}, or None"


def shown(value: object) -> str:
    """Return `repr(value)` for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
