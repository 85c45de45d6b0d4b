"""Command lines for tests, many of them parsed in one process, as starting it takes most of the time."""

import json
import subprocess
import sys

from training_runs import ROOT

_PARSE_ALL = """
import contextlib, importlib, io, json, sys, traceback
from absl import app
from absl.testing import flagsaver
from concertormer_jax import command_line
importlib.import_module(sys.argv[1])
app.define_help_flags()
results = []
for arguments in json.load(sys.stdin):
    sys.argv = ["command", *arguments]  # where the keys of a config are looked for
    said = io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_line.parse(sys.argv, *json.loads(DEFAULT))
            status = 0
        except SystemExit as stopped:
            status = stopped.code
        except BaseException:
            traceback.print_exc()
            status = 1
    results.append((status, said.getvalue()))
print(json.dumps(results))
"""


def parse_all(module: str, lines: list[list[str]], default_config: str | None = None) -> list[tuple[int, str]]:
    """Parse every one of `lines` with the flags of `module`: (exit status, what is on stderr) of each."""
    program = _PARSE_ALL.replace("DEFAULT", repr(json.dumps([default_config])))
    command = [sys.executable, "-c", program, module]
    done = subprocess.run(command, input=json.dumps(lines), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [tuple(result) for result in json.loads(done.stdout)]


def sentence_of(status: int, said: str) -> str:
    """What a command says that was refused: one sentence after `error: `."""
    assert status == 2, (status, said)
    (line,) = said.splitlines()
    assert line.startswith("error: "), line
    return line.removeprefix("error: ")
