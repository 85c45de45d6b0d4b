"""A worker process of ONNX Runtime's side of a race, on the CPU. (Started by benchmarks/sides.py.)"""

import os

import numpy as np
import onnxruntime

from benchmarks.worker import serve


class Restoration:
    """The restored picture, clipped to [0, 1] as the file says."""

    def __init__(self, job):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        self.session = onnxruntime.InferenceSession(job["onnx"], options, providers=["CPUExecutionProvider"])
        with np.load(job["images"]) as arrays:
            self.images = arrays["input"].astype(np.float32) / 255

    def run(self):
        (self.restored,) = self.session.run(None, {self.session.get_inputs()[0].name: self.images})

    def wait(self):
        """Nothing: `run` ends with the result."""

    def save(self, path):
        np.save(path, self.restored)

    def describe(self):
        return {"versions": {"onnxruntime": onnxruntime.__version__}, "device": "cpu", "device_bytes": None}


if __name__ == "__main__":
    serve(Restoration)
