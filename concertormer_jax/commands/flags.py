"""How every command starts: its flags, its logging and its failures, each of which is one sentence on stderr."""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import re
import sys
import traceback
from pathlib import Path

import absl.logging
from absl import flags
from ml_collections import ConfigDict, config_flags

from concertormer_jax.runtime import errors
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import bundled, recipes
from concertormer_jax.runtime.values import Number, Whole, shown
from concertormer_jax.training import config_limits


@contextlib.contextmanager
def running():
    """What a command does inside this ends with one sentence where it cannot go on (`errors.reported`).

    The libraries below are quiet: what Orbax logs as an error it also raises.
    """
    logging.getLogger("jax").setLevel(logging.ERROR)
    absl.logging.set_verbosity(absl.logging.FATAL)
    with errors.reported():
        yield


# Commands without a config: what argparse lacks to refuse what makes no sense.


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


flags.disclaim_key_flags()  # --help tells of --config with the flags of the command

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def define_config(help_string: str = "A recipe, such as gopro or gopro:lite, or a file.") -> flags.FlagHolder:
    """Define the flag --config, which loads a config file, and the flags --config.KEY, which set its keys."""
    with errors.reported():
        try:
            holder = config_flags.DEFINE_config_file("config", help_string=help_string)
        except flags.Error as error:  # of a --flagfile, which is read here already
            raise UserError(" ".join(str(error).split())) from error
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def parse_with_config(command: str, default_config: str | None = None) -> None:
    """Parse the flags of this process, as the module named `command` defines them, and check the config.

    default_config: what is loaded without --config. A mistake ends the process with one sentence, --help with a text.
    """
    argv = sys.argv
    if {"-h", "--help"}.intersection(argv[1:]):
        print(f"{sys.modules[command].__doc__}\n{flags.FLAGS.module_help(command)}")
        raise SystemExit(0)
    overrides = {}
    with errors.reported():
        flags.FLAGS.set_gnu_getopt(True)  # flags may stand behind what is no flag
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
    """The values on the command line by config key; that of a flag without `=` is the next argument."""
    found = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := _OVERRIDE.fullmatch(argument):
            found[match[1]] = following if match[2] is None else match[2]
    return found


def _sentence(error: flags.Error, overrides: dict[str, str]) -> str:
    """What absl says of a flag, shorter; of a config key, what it must be."""
    text = str(error).removeprefix("flag ")
    for key, value in overrides.items():
        if text.startswith(f"--config.{key}="):
            return f"config.{key}={shown(value)} must be {config_limits.KEYS[key]}"
    if missing := re.search(r"[Ff]lag (--\w+) must have a value other than None", text):
        return f"{missing[1]} is missing; see --help"
    text = re.sub(r"\('Non-boolean argument.*", "must be true or false", text)
    return " ".join(text.split())


class _ConfigFile(flags.ArgumentParser):
    """Loads `FILE` or `FILE:RECIPE`; the flag adds its name and value to the UserErrors."""

    def parse(self, path: str) -> ConfigDict:
        name, colon, recipe = path.partition(":")
        file = os.fspath(recipes().get(name, name))
        if not Path(file).is_file():
            raise UserError(f"{name or repr(name)} is no file and no recipe; the recipes are {', '.join(recipes())}")
        try:
            config = _called(_get_config(file), [recipe] if colon else [])
        except UserError:  # of an unknown recipe
            raise
        except (Exception, SystemExit) as error:  # a user's own program may raise anything
            raise UserError(_explained(file, error)) from error
        if not isinstance(config, ConfigDict):
            raise UserError(f"get_config() returns {shown(config)}, not the ConfigDict of configs/common.py")
        config_limits.require_kinds(config)
        return config.lock()

    def flag_type(self):
        return "config file"


def _get_config(file: str):
    # Recipes build on each other: `from configs import common` finds those that come with this software.
    package = importlib.machinery.ModuleSpec("configs", None, is_package=True)
    package.submodule_search_locations.append(os.fspath(bundled("configs")))
    sys.modules["configs"] = importlib.util.module_from_spec(package)
    spec = importlib.util.spec_from_loader("config", importlib.machinery.SourceFileLoader("config", file))
    module = sys.modules["config"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise UserError("the file defines no get_config(); see configs/demo.py")
    return module.get_config


def _called(get_config, arguments: list[str]):
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError as error:
        if arguments:
            raise UserError(f"the file takes no recipe; leave out :{arguments[0]}") from error
        raise UserError(f"the file needs the name of a recipe behind a colon ({error})") from error
    return get_config(*arguments)


def _explained(file: str, error: BaseException) -> str:
    """One sentence on an error in a config file: the line, the kind and the message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    message = error.msg if isinstance(error, SyntaxError) else error
    return " ".join(f"{f'line {line}: ' if line else ''}{type(error).__name__}: {message}".split())
