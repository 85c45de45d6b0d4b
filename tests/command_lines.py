"""Command lines for tests, many of them in one process, as starting it takes most of the time."""

import json
import os
import subprocess
import sys

from training_runs import ROOT

_PROGRAM = """
import contextlib, importlib, io, json, sys, traceback
from absl.testing import flagsaver
from concertormer_jax.commands import flags
name, how, default_config = sys.argv[1:]
module = importlib.import_module(name)
results = []
for arguments in json.load(sys.stdin):
    sys.argv = ["command", *arguments]  # where the keys of a config are looked for
    said = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            if how == "parse":
                flags.parse_with_config(name, default_config or None)
            else:
                module.main()
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
            status = 1
    results.append((status, said.getvalue()))
print(json.dumps(results))
"""


def parse_all(module: str, lines: list[list[str]], default_config: str = "") -> list[tuple[int, str]]:
    """Parse every one of `lines` with the flags of `module`: (exit status, what is on stderr) of each."""
    return _all(module, "parse", default_config, lines, ROOT)


def run_all(module: str, lines: list[list[str]], folder, default_config: str = "") -> list[tuple[int, str]]:
    """As `parse_all`, but the command runs, with `folder` as the current one."""
    return _all(module, "run", default_config, lines, folder)


def _all(module, how, default_config, lines, folder):
    command = [sys.executable, "-c", _PROGRAM, module, how, default_config]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, input=json.dumps(lines), cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def sentence_of(status: int, said: str) -> str:
    """What a command says that was refused: one sentence after `error: `."""
    assert status == 2, (status, said)
    (line,) = said.splitlines()
    assert line.startswith("error: "), line
    return line.removeprefix("error: ")
