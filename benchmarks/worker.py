"""What a worker process of a race does: build one task, run it when asked to, and report over a pipe.

The two sides live in different Python environments; this module needs nothing but the standard library. Messages are
JSON objects, one in a line: the job comes as the last argument of the command, requests come on stdin, answers go to
the standard output that the process was started with (libraries that print are sent to stderr).
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Protocol


class Task(Protocol):
    """What a side builds for a job: `run` starts one call, `wait` ends when the device has done all of them."""

    def run(self) -> None: ...

    def wait(self) -> None: ...

    def save(self, path: str) -> None:
        """Write what the calls gave as a NumPy file: the last output, or the losses of all steps. (Networks only.)"""

    def describe(self) -> dict:
        """Networks: versions, the device's name, and its peak memory `device_bytes` (None for a CPU).

        Data pipelines: `cpu_s`, the processor time that the process and its children took so far.
        """


def peak_memory_bytes() -> int:
    """The most memory that this process had resident so far (the kernel's VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not report VmHWM in /proc/self/status")


def serve(build) -> None:
    """Build the job's task with `build(job)`, run it once, and answer requests until stdin ends.

    Sends {"event": "imported"}, then {"event": "first"} when the first call is done; then, for every
    {"calls": n}, {"seconds": those of n calls}; for {"save": path} and {"describe": true}, an answer when done.
    A failure is sent as {"error": text}.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(**message):
        print(json.dumps(message), file=answers, flush=True)

    try:
        send(event="imported", memory_bytes=peak_memory_bytes())
        task = build(json.loads(sys.argv[-1]))
        task.run()
        task.wait()
        send(event="first", memory_bytes=peak_memory_bytes())
        for line in sys.stdin:
            request = json.loads(line)
            if "calls" in request:
                start = time.perf_counter()
                for _ in range(request["calls"]):
                    task.run()
                task.wait()
                send(seconds=time.perf_counter() - start)
            elif "save" in request:
                task.save(request["save"])
                send(saved=True)
            else:
                send(**task.describe(), memory_bytes=peak_memory_bytes())
    except Exception as error:
        traceback.print_exc()
        send(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        raise SystemExit(1) from None
