"""How often each bundle of an operation's final schedule runs.

A bundle holds the instructions that one cycle issues. libtpu writes bundles in their order. A backward branch ends the
body of a loop; a forward branch skips instructions that need not run in this turn, such as arithmetic while a pipeline
fills. The scalar instructions decide which branches are taken. Here they are interpreted as far as they depend on
constants alone.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) [ A-Z:]*: *>* *(?=\{)", re.MULTILINE)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)\b")
_BRANCH = re.compile(r"\bsbr\.rel (?:\((!?%\w+)\) )?target = \$region(\d+)")
_SCALAR = re.compile(r"(%[sp]\d+\w*) = ([a-z_.0-9]+) ([^;}]*)")
_SPILL = re.compile(r"\bsst \[smem:\[(#\w+_spill)\]\] (%\w+)")  # a register is stored in memory
_FILL = re.compile(r"\[smem:\[(#\w+_spill)\]\]")  # and loaded again
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_OPERAND = re.compile(r"!?%\w+|#\w+|-?\b\d+\b")
_DELAY = 4  # bundles behind a branch that run whether it is taken or not
_MOST_TURNS = 2**17  # of all loops of an operation that are interpreted
_ARITHMETIC = {
    "sadd.s32": lambda a, b: a + b,
    "ssub.s32": lambda a, b: a - b,
    "smul.u32": lambda a, b: a * b,
    "smulhi.u32": lambda a, b: (a % 2**32 * (b % 2**32)) >> 32,
    "sand.u32": lambda a, b: a & b,
    "sor.u32": lambda a, b: a | b,
    "sshll.u32": lambda a, b: a << (b % 32),
    "sshrl.u32": lambda a, b: (a % 2**32) >> (b % 32),
    "sshra.s32": lambda a, b: a >> (b % 32),
    "scmp.eq.s32.totalorder": lambda a, b: a == b,
    "scmp.ne.s32.totalorder": lambda a, b: a != b,
    "scmp.lt.s32.totalorder": lambda a, b: a < b,
    "scmp.le.s32.totalorder": lambda a, b: a <= b,
    "scmp.gt.s32.totalorder": lambda a, b: a > b,
    "scmp.ge.s32.totalorder": lambda a, b: a >= b,
}


def split(text: str) -> list[str]:
    """Return the bundles of a `final_bundles` file, each from its brace to the next bundle."""
    found = list(_BUNDLE.finditer(text))
    ends = [following.start() for following in found[1:]] + [len(text)]
    return [text[bundle.end() : end].strip() for bundle, end in zip(found, ends, strict=True)]


def is_empty(bundle: str) -> bool:
    """Return whether the bundle issues nothing: it waits for a result, or is a delay slot of a branch."""
    return bundle.startswith("{}")


def loops(bundles: list[str]) -> list[tuple[int, int, str]]:
    """Return the loops as (first bundle, first bundle behind the loop, condition to go on), outer ones first."""
    found = [
        (to, min(len(bundles), source + 1 + _DELAY), test) for source, to, test in _branches(bundles) if to <= source
    ]
    return sorted(found, key=lambda loop: (loop[0], -loop[1]))


def executions(bundles: list[str]) -> tuple[list[int], int]:
    """Return how often each bundle runs, and the number of loops of unknown length, which count as one turn.

    A forward branch of unknown condition counts as not taken.
    """
    if not _branches(bundles):
        return [1] * len(bundles), 0
    return _Execution(bundles).count()


def _branches(bundles: list[str]) -> list[tuple[int, int, str]]:
    """Branches within the operation as (bundle, target bundle, condition, which is "" for always)."""
    regions: dict[str, int] = {}
    for i, bundle in enumerate(bundles):
        if "Start" in bundle:
            for number in _REGION.findall(bundle):
                regions.setdefault(number, i)
    return [
        (i, regions[number], condition)
        for i, bundle in enumerate(bundles)
        if "sbr.rel" in bundle
        for condition, number in _BRANCH.findall(bundle)
        if number in regions
    ]


class _Execution:
    """Interprets the loops of one operation, turn by turn. A nest is a tuple of numbers of loops, outermost first."""

    def __init__(self, bundles: list[str]):
        self._length = len(bundles)
        self._loops = loops(bundles)
        nests: list[tuple[int, ...]] = [()] * len(bundles)
        for number, (first, end, _) in enumerate(self._loops):
            nests[first:end] = [(*nest, number) for nest in nests[first:end]]
        # Of each nest, in the order of the bundles: (first bundle, end, condition, number of a loop, None for a skip).
        self._events: dict[tuple[int, ...], list[tuple[int, int, str, int | None]]] = {}
        for source, to, condition in _branches(bundles):
            if to > source + 1 + _DELAY:
                self._events.setdefault(nests[source], []).append((source + 1 + _DELAY, to, condition, None))
        for number, (first, end, condition) in enumerate(self._loops):
            self._events.setdefault(nests[first][:-1], []).append((first, end, condition, number))
        for events in self._events.values():  # a skip comes before a loop that begins at the same bundle
            events.sort(key=lambda event: (event[0], event[3] is not None))
        self._scalars = _Scalars(bundles, nests, [first for first, _, _ in self._loops])
        self._left_out: Counter = Counter()  # how often a body ran, by (first bundle, end, ranges that it left out)
        self._unknown: set[tuple[int, ...]] = set()
        self._turns = 0

    def count(self) -> tuple[list[int], int]:
        """Return what `executions` returns."""
        self._run((), (), 0, self._length)
        changes = [0] * (self._length + 1)
        for (first, end, left_out), times in self._left_out.items():
            for start, stop, sign in [(first, end, 1), *((start, stop, -1) for start, stop in left_out)]:
                changes[start] += sign * times
                changes[stop] -= sign * times
        return list(itertools.accumulate(changes[:-1])), len(self._unknown)

    def _run(self, nest: tuple, turns: tuple, first: int, end: int) -> None:
        """Run one turn of a body, with all turns of the loops in it."""
        left_out: list[tuple[int, int]] = []
        for start, stop, condition, number in self._events.get(nest, ()):
            if left_out and start < left_out[-1][1]:
                continue  # it lies in a skipped range
            if number is not None:
                self._loop((*nest, number), turns, start, stop, condition)
            elif self._scalars.value(condition, nest, turns) is not True:
                continue
            left_out.append((start, stop))
        self._left_out[first, end, tuple(left_out)] += 1

    def _loop(self, nest: tuple, turns: tuple, first: int, end: int, condition: str) -> None:
        for turn in itertools.count():
            self._run(nest, (*turns, turn), first, end)
            self._turns += 1
            again = self._scalars.value(condition, nest, (*turns, turn))
            if again is None or self._turns > _MOST_TURNS:
                self._unknown.add(nest)
            elif again:
                continue
            self._scalars.leave(nest, turns, turn)
            return


class _Scalars:
    """The values of scalar registers in each turn of the loops that compute them; None for an unknown value."""

    def __init__(self, bundles: list[str], nests: list[tuple], headers: list[int]):
        self._defined: dict[str, tuple[str, list[str], tuple]] = {}
        self._values: dict[tuple[str, tuple], int | bool | None] = {}
        self._last: dict[tuple[tuple, tuple], int] = {}
        for i, name, operation, operands in _definitions(bundles, nests):
            if name in self._defined or (operation == "sphi" and i not in headers):
                operation = "unknown"  # the value comes from one of several writes or paths
            self._defined[name] = operation, operands, nests[i]

    def leave(self, nest: tuple, turns: tuple, last: int) -> None:
        """Store the last turn of the innermost loop of `nest`, in these turns of the outer ones."""
        self._last[nest, turns] = last

    def value(self, operand: str, nest: tuple, turns: tuple) -> int | bool | None:
        """Return the value of an operand that is used in these turns of the loops of `nest`. That of "" is True."""
        if not operand:
            return True
        if operand.startswith("!"):
            value = self.value(operand[1:], nest, turns)
            return None if value is None else not value
        if not operand.startswith(("%", "#")):
            return _signed(int(operand))
        operation, operands, home = self._defined.get(operand, ("", [], ()))
        turns = turns[: len(home)]
        if home != nest[: len(home)]:  # the value after the last turn of a loop that has ended
            last = self._last.get((home, turns[: len(home) - 1]))
            if last is None or home[:-1] != nest[: len(home) - 1]:
                return None
            turns = *turns[: len(home) - 1], last
        key = operand, turns
        if key not in self._values:
            self._values[key] = None  # the answer for a value that depends on itself within a turn
            self._values[key] = self._computed(operation, operands, home, turns)
        return self._values[key]

    def _computed(self, operation: str, operands: list[str], nest: tuple, turns: tuple) -> int | bool | None:
        if operation == "sphi":
            *outer, turn = turns
            if turn == 0:
                return self.value(operands[0], nest[:-1], tuple(outer))
            return self.value(operands[1], nest, (*outer, turn - 1))
        if operation in ("smov", "scalar_select") and len(operands) == 3:
            predicate = self.value(operands[0], nest, turns)
            # `smov (%p, %old), %new` is the new value if %p holds, else the old one.
            on_true, on_false = operands[1:] if operation == "scalar_select" else operands[:0:-1]
            return None if predicate is None else self.value(on_true if predicate else on_false, nest, turns)
        values = [self.value(operand, nest, turns) for operand in operands[-2:]]  # a predicate may precede them
        if operation in ("smov", "sld"):
            return values[-1] if values else None
        if operation == "pneg":
            return None if values[-1] is None else not values[-1]
        if operation == "por":
            return _any(values)
        if operation in ("pand", "pnand"):
            nand = _any([None if value is None else not value for value in values])
            return nand if operation == "pnand" or nand is None else not nand
        if operation not in _ARITHMETIC or len(values) != 2 or None in values:
            return None
        result = _ARITHMETIC[operation](*values)
        return result if isinstance(result, bool) else _signed(result)


def _any(values: Sequence[int | bool | None]) -> bool | None:
    """Logical or, where None is not known."""
    return True if True in values else None if None in values else False


def _signed(value: int) -> int:
    """The value as a signed number of 32 bits."""
    return (value + 2**31) % 2**32 - 2**31


def _definitions(bundles: list[str], nests: list[tuple]) -> Iterator[tuple[int, str, str, list[str]]]:
    """Writes of scalar registers and of their spill slots: (bundle, name, operation, operands).

    A slot may keep one register after another. Each write gives it a new name, with the number of the write behind it;
    a load reads the last.
    """
    texts = [_COMMENT.sub("", bundle) if "%s" in bundle or "%p" in bundle else "" for bundle in bundles]
    writes: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        for slot, register in _SPILL.findall(text):
            writes.setdefault(slot, []).append(i)
            yield i, f"{slot}{len(writes[slot])}", "smov", [register]
    for i, text in enumerate(texts):
        loaded = _FILL.sub(lambda fill, i=i: _written(fill[1], writes.get(fill[1], []), nests, i), text)
        for name, operation, operands in _SCALAR.findall(loaded):
            yield i, name, operation, _OPERAND.findall(operands)


def _written(slot: str, writes: list[int], nests: list[tuple], bundle: int) -> str:
    """The name of what a slot holds in a bundle: that of the last write before it.

    Where a later write in the same loop may have come before, in the loop's last turn, it is number 0, which no write
    has.
    """
    before = [write for write in writes if write < bundle]
    for write in writes[len(before) :]:
        loop = tuple(a for a, b in zip(nests[bundle], nests[write], strict=False) if a == b)
        if loop and (not before or nests[before[-1]][: len(loop)] != loop):
            return f"{slot}0"
    return f"{slot}{len(before)}"
