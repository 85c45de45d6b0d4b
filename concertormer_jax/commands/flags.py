"""Flags, logging and failures of every command; a failure is one sentence on stderr.

Commands without a config use argparse (`make_parser`, `parse_arguments`), those with a config absl (`define_config`,
`parse_with_config`).
"""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import inspect
import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, NoReturn

import absl.logging
from absl import flags
from ml_collections import ConfigDict, config_flags

from concertormer_jax.runtime import errors
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import BUNDLED_WEIGHTS, bundled, recipes
from concertormer_jax.runtime.values import Number, Whole, shown
from concertormer_jax.training import config_limits

CROP_PX = 256
CKPT_HELP = "checkpoint, training folder, weights file, or hf://USER/NAME[/FILE] on the Hugging Face Hub"


@contextlib.contextmanager
def running() -> Generator[None]:
    """Run a command's work in this context: failures become one sentence (`errors.reported`), and libraries are quiet.

    Nothing is lost with Orbax's log: errors that it logs it also raises.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    absl.logging.set_verbosity(absl.logging.FATAL)
    with errors.reported():
        yield


def make_parser(description: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser that prints `description` (a module's docstring) and `epilog` as they are."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, epilog=epilog, formatter_class=formatter)


def add_ckpt(parser: argparse.ArgumentParser) -> None:
    """Add --ckpt, by default the weights that come with this software."""
    parser.add_argument(
        "--ckpt",
        default=BUNDLED_WEIGHTS,
        metavar="DIR",
        help=f"{CKPT_HELP}; default: the weights that come with this software",
    )


def analysis_parser(description: str | None, image_help: str, least_crop_px: int) -> argparse.ArgumentParser:
    """Return a parser with --ckpt, IMAGE and --crop. least_crop_px: 0 if --crop=0 stands for the whole picture."""
    parser = make_parser(description)
    add_ckpt(parser)
    parser.add_argument("image", metavar="IMAGE", help=image_help)
    whole_picture = "" if least_crop_px else "; 0 for the whole picture"
    parser.add_argument(
        "--crop",
        type=whole(least_crop_px, 65536),
        default=CROP_PX,
        metavar="PIXELS",
        help=f"default: {CROP_PX}{whole_picture}",
    )
    return parser


def parse_arguments(parser: argparse.ArgumentParser, arguments: Iterable[object] | None = None) -> argparse.Namespace:
    """Parse `arguments`, by default those of the process. A mistake, such as an empty one, ends it with a sentence."""
    given = sys.argv[1:] if arguments is None else [str(argument) for argument in arguments]

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    parser.error = refuse  # argparse itself would print several lines
    with errors.reported():
        require_no_empty(given)
        return parser.parse_args(given)


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a `type` for argparse: whole numbers from `least` to `most`."""
    kind = Whole(least, most)

    def read(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,20}", text.strip()) or int(text) not in kind:
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {kind}")
        return int(text)

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """Return a `type` for argparse: numbers from `least` to `most`."""
    kind = Number(least, most)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan  # which no range contains
        if value not in kind:
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {kind}")
        return value

    return read


def require_no_empty(arguments: Iterable[str]) -> None:
    """Raise UserError for `--flag=` and for an empty argument, which mostly stem from unset variables of the shell."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--?[\w-]+=", argument):
            raise UserError(f"{argument or repr(argument)} is empty; give a value, or leave it out")


flags.disclaim_key_flags()  # so that --help lists --config with the flags of the command, not with those of this file

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def define_config(help_string: str = "A recipe, such as gopro or gopro:lite, or a file.") -> flags.FlagHolder:
    """Define the flag --config, which loads a config file, and the flags --config.KEY, which set its keys."""
    with errors.reported():
        try:
            holder = config_flags.DEFINE_config_file("config", help_string=help_string)
        except flags.Error as error:  # absl reads a --flagfile here
            raise UserError(" ".join(str(error).split())) from error
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def parse_with_config(command: str, default_config: str | None = None) -> None:
    """Parse the flags of this process, as the module named `command` defines them, and check the config.

    default_config: the recipe that is loaded without --config. A mistake ends the process with one sentence.
    """
    argv = sys.argv
    if {"-h", "--help"}.intersection(argv[1:]):
        print(f"{sys.modules[command].__doc__}\n{flags.FLAGS.module_help(command)}")
        raise SystemExit(0)
    overrides = {}
    with errors.reported():
        flags.FLAGS.set_gnu_getopt(True)  # flags may follow other arguments
        try:
            argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
            overrides = _overrides(argv)
            for key in overrides:
                config_limits.require_known(key)
            require_no_empty(argument for argument in argv[1:] if not _OVERRIDE.match(argument))
            if default_config and not any(re.match(r"--?config(=|$)", argument) for argument in argv):
                argv = [argv[0], f"--config={default_config}", *argv[1:]]
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            raise UserError(_sentence(error, overrides)) from error
        if rest[1:]:
            raise UserError(f"{rest[1]!r} is no flag of this command; flags begin with --, see --help")
        config_limits.require_valid(flags.FLAGS.config)


def _overrides(argv: list[str]) -> dict[str, str]:
    """The values on the command line by config key. The value of a flag without `=` is the next argument."""
    found = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := _OVERRIDE.fullmatch(argument):
            found[match[1]] = following if match[2] is None else match[2]
    return found


def _sentence(error: flags.Error, overrides: dict[str, str]) -> str:
    """absl's message on a flag, made shorter; for a config key, a message on the values that it takes."""
    text = str(error).removeprefix("flag ")
    for key, value in overrides.items():
        if text.startswith(f"--config.{key}="):
            return f"config.{key}={shown(value)} must be {config_limits.KEYS[key]}"
    if missing := re.search(r"[Ff]lag (--\w+) must have a value other than None", text):
        return f"{missing[1]} is missing; see --help"
    text = re.sub(r"\('Non-boolean argument.*", "must be true or false", text)
    return " ".join(text.split())


class _ConfigFile(flags.ArgumentParser):
    """Loads NAME, FILE, or either with :RECIPE behind it. absl puts the flag's name and value before a UserError."""

    def parse(self, argument: str) -> ConfigDict:
        name, colon, recipe = argument.partition(":")
        file = os.fspath(recipes().get(name, name))
        if not Path(file).is_file():
            raise UserError(f"{name or repr(name)} is no file and no recipe; the recipes are {', '.join(recipes())}")
        try:
            config = _called(_get_config(file), [recipe] if colon else [])
        except UserError:  # the file has no such recipe
            raise
        except (Exception, SystemExit) as error:  # a user's file may raise anything
            raise UserError(_location_and_message(file, error)) from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"get_config() returns {shown(config)}, not the ConfigDict of configs/common.py")
        config_limits.require_kinds(config)
        return config.lock()

    def flag_type(self) -> str:
        return "config file"


def _get_config(file: str) -> Callable[..., Any]:
    """The function `get_config` of a config file, in which `from configs import common` finds the bundled recipes."""
    package = importlib.machinery.ModuleSpec("configs", None, is_package=True)
    package.submodule_search_locations = [os.fspath(bundled("configs"))]
    sys.modules["configs"] = importlib.util.module_from_spec(package)
    loader = importlib.machinery.SourceFileLoader("config", file)
    spec = importlib.util.spec_from_loader("config", loader)
    assert spec is not None  # as there is a loader
    module = sys.modules["config"] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UserError("the file defines no get_config(); see configs/demo.py")
    return module.get_config


def _called(get_config: Callable[..., Any], arguments: list[str]) -> Any:
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        if arguments:
            raise UserError(f"the file takes no recipe; leave out :{arguments[0]}") from error
        raise UserError(f"the file needs the name of a recipe behind a colon ({error})") from error
    return get_config(*arguments)


def _location_and_message(file: str, error: BaseException) -> str:
    """One sentence on an error in a config file: the line, the kind of error and its message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    message = error.msg if isinstance(error, SyntaxError) else error
    return " ".join(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {message}".split())
