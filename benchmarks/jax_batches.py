"""A worker process that reads batches with this project's pipeline. (Started by benchmarks/data_pipeline.py.)"""

import os

from benchmarks.worker import serve
from concertormer_jax.data.folders import find_pairs
from concertormer_jax.data.pipeline import batches
from concertormer_jax.data.sources import PairSource


class Batches:
    """Batches of random crops, mirrored and turned."""

    def __init__(self, job):
        source = PairSource(find_pairs(job["folder"]), cached=job["cached"])
        if job["cached"]:
            for index in range(len(source)):
                source.whole(index)  # decodes it into the cache
        self.batches = batches(
            source,
            seed=0,
            position=0,
            batch=job["batch"],
            host_index=0,
            host_count=1,
            crop_px=job["crop_px"],
        )

    def run(self):
        self.batch = next(self.batches)

    def wait(self):
        pass

    def describe(self):
        times = os.times()
        return {"cpu_s": times.user + times.system}


if __name__ == "__main__":
    serve(Batches)
