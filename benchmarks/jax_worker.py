"""A worker process of this project's side of a race. (Started by benchmarks/sides.py.)"""

from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.params import read_params
from benchmarks.worker import serve
from concertormer_jax.models import create
from concertormer_jax.runtime.devices import (
    compile_interruptibly,
    prepare_to_compile,
    run_in_background,
    run_once_options,
)
from concertormer_jax.runtime.trace_cache import fingerprint, lower_cached
from concertormer_jax.training.schedule import adamw, cosine
from concertormer_jax.training.step import initial_state, make_train_step, to_unit


class OnDevice:
    """What all tasks of this side share; `program` is the compiled function that a call runs."""

    def __init__(self, job):
        prepare_to_compile()
        if job["device"] == "gpu" and job["dtype"] == "float32":  # float32 means float32, on both sides
            jax.config.update("jax_default_matmul_precision", "highest")
        self.module = create(
            job["variant"],
            tlc_window=job["tlc_window"],
            dtype=jnp.dtype(job["dtype"]),
            remat=True,  # as in configs/
        )
        with np.load(job["images"]) as arrays:
            self.batch = jax.device_put({part: arrays[part] for part in ("input", "target")})

    def describe(self):
        device = jax.devices()[0]
        statistics = device.memory_stats() or {}
        return {
            "versions": {name: version(name) for name in ("jax", "jaxlib", "flax")},
            "device": device.device_kind,
            "device_bytes": statistics.get("peak_bytes_in_use"),
        }


class Restoration(OnDevice):
    """The restored images of one batch."""

    def __init__(self, job):
        super().__init__(job)
        self.params = jax.device_put(read_params(job["params"]))
        self.images = jax.jit(to_unit)(self.batch["input"])

        def restore(params, images):
            return self.module.apply({"params": params}, images)[-1]

        key = fingerprint(self.module)
        self.program = compile_interruptibly(lower_cached(restore, self.params, self.images, fingerprint=key))

    def run(self):
        self.restored = self.program(self.params, self.images)

    def wait(self):
        self.restored.block_until_ready()

    def save(self, path):
        np.save(path, np.asarray(self.restored, np.float32))


class Training(OnDevice):
    """Training steps on one batch, over and over."""

    def __init__(self, job):
        super().__init__(job)
        learning_rates = (1e-3, 1e-7, job["schedule_steps"])
        schedule = cosine(*learning_rates)
        settings = {"beta1": 0.9, "beta2": 0.9, "epsilon": 1e-8, "weight_decay": 1e-3, "clip_norm": 0.01}
        optimizer = adamw(schedule, **settings)

        def apply(params, images):
            return self.module.apply({"params": params}, images)

        step = make_train_step(apply, optimizer, schedule, fft_weight=0.1, accumulation=1, ema_decay=0.0)

        def initialise(params):
            return initial_state(params, optimizer, ema_decay=0.0)

        params = jax.device_put(read_params(job["params"]))
        starting = jax.jit(initialise, **run_once_options()).lower(params)
        started = run_in_background(starting, lambda: params)
        key = fingerprint(self.module, learning_rates, settings)
        lowered = lower_cached(step, starting.out_info, self.batch, fingerprint=key, donate_argnums=0)
        self.program = compile_interruptibly(lowered)
        self.state = started.result()
        self.losses = []

    def run(self):
        self.state, metrics = self.program(self.state, self.batch)
        self.losses.append(metrics["loss"])

    def wait(self):
        jax.block_until_ready(self.state)

    def save(self, path):
        np.save(path, np.array([float(loss) for loss in self.losses]))


def task_of(job: dict) -> OnDevice:
    """Build what `benchmarks.jobs.make_job` describes."""
    return (Training if job["train"] else Restoration)(job)


if __name__ == "__main__":
    serve(task_of)
