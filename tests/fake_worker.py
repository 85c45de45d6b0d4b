"""A worker process for tests of benchmarks.sides: it does what its job says, without any framework."""

import os
import sys
import time

from benchmarks.worker import serve


class Counting:
    """Counts its calls, each of which takes `job["call_s"]`."""

    def __init__(self, job):
        if "raise" in job:
            raise ValueError(job["raise"])
        if "die" in job:
            print("first words", file=sys.stderr)
            print(job["die"], file=sys.stderr, flush=True)
            os._exit(3)
        print("a library that prints to the standard output")
        self.call_s = job["call_s"]
        self.ballast = bytearray(os.urandom(1)) * job["megabytes"] * 2**20
        self.calls = self.waits = 0

    def run(self):
        time.sleep(self.call_s)
        self.calls += 1

    def wait(self):
        self.waits += 1

    def describe(self):
        return {"calls": self.calls, "waits": self.waits}


if __name__ == "__main__":
    serve(Counting)
