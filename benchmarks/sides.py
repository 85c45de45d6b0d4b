"""The sides of a race: worker processes that wait, do one thing when asked, and answer."""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from concertormer_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]


class Side:
    """One worker process; a context manager that ends it.

    `first_result_s` are the seconds from its start to its first result, imports and compilation included;
    `first_memory_bytes` is its peak memory then, and `import_memory_bytes` what the imports alone took.
    """

    def __init__(self, name: str, python: str, module: str, job: dict, environment: dict[str, str]):
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the worker lives)
        start = time.perf_counter()
        try:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(job)],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        except OSError as error:
            raise UserError(f"{name}: {python} cannot be started ({error.strerror}); check the path.") from None
        try:
            self.import_memory_bytes = self._answer()["memory_bytes"]
            self.first_memory_bytes = self._answer()["memory_bytes"]
        except BaseException:
            self.close()
            raise
        self.first_result_s = time.perf_counter() - start

    def seconds(self, calls: int) -> float:
        """Do `calls` calls and return the seconds that one took."""
        return self._ask(calls=calls)["seconds"] / calls

    def save(self, path: Path) -> None:
        """Have the outputs, or the losses of all training steps so far, written to `path`, a NumPy file."""
        self._ask(save=str(path))

    def describe(self) -> dict:
        """Versions, device and peak memory."""
        return self._ask(describe=True)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _ask(self, **request) -> dict:
        with contextlib.suppress(BrokenPipeError):  # the missing answer says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise UserError(f"{self.name} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        """The last line on stderr of a worker that died without a message, or its exit status."""
        status = self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with status {status}"
