"""Flags with a config: what the user mistypes is one sentence, on stderr, and exit status 2."""

import importlib.machinery
import importlib.util
import inspect
import re
import sys
import traceback
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from concertormer_jax import errors
from concertormer_jax.arguments import require_no_empty
from concertormer_jax.errors import UserError
from concertormer_jax.training import config_limits
from concertormer_jax.values import shown

flags.disclaim_key_flags()  # --help tells of --config with the flags of the command

_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


def define_config(help_string: str = "A file in configs/.") -> flags.FlagHolder:
    """Define the flag --config, which loads a config file, and the flags --config.KEY, which set its keys."""
    with errors.reported():
        try:
            holder = config_flags.DEFINE_config_file("config", help_string=help_string)
        except flags.Error as error:  # of a --flagfile, which is read here already
            raise UserError(" ".join(str(error).split())) from error
    flags.FLAGS["config"].parser = _ConfigFile()
    return holder


def parse(argv: list[str], default_config: str | None = None) -> list[str]:
    """Parse flags with a config, for `absl.app.run(main, flags_parser=parse)`; the config is checked as well.

    default_config: the file that is loaded without --config. A mistake ends the process with one sentence.
    """
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
        return rest


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
        file, colon, recipe = path.partition(":")
        if not Path(file).is_file():
            raise UserError(f"{file or repr(file)} is no file; choose one in configs/, such as configs/demo.py")
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
