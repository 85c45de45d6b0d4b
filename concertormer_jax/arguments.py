"""Arguments of the commands that have no config: what argparse lacks to refuse what makes no sense."""

import argparse
import re
import sys

from concertormer_jax import errors
from concertormer_jax.errors import UserError
from concertormer_jax.values import Number, Whole, shown


def parse_arguments(parser: argparse.ArgumentParser, arguments=None) -> argparse.Namespace:
    """Parse `arguments`, by default those of the process; a mistake, such as an empty one, ends it with a sentence."""
    given = sys.argv[1:] if arguments is None else [str(argument) for argument in arguments]

    def refuse(message: str):
        raise UserError(f"{message}; see --help")

    parser.error = refuse  # which prints several lines otherwise
    with errors.reported():
        require_no_empty(given)
        return parser.parse_args(given)


def whole(least: int, most: int):
    """A `type` of argparse: whole numbers from `least` to `most`."""
    kind = Whole(least, most)

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,20}", text.strip()) or int(text) not in kind:
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {kind}")
        return int(text)

    return read


def number(least: float, most: float):
    """A `type` of argparse: numbers from `least` to `most`."""
    kind = Number(least, most)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = None
        if value not in kind:
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {kind}")
        return value

    return read


def require_no_empty(arguments) -> None:
    """Raise UserError for `--flag=` and for an empty argument: mostly a variable of the shell that is not set."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--?[\w-]+=", argument):
            raise UserError(f"{argument or repr(argument)} is empty; give a value, or leave it out")
