"""The network as evaluation and restoration run it: compiled once per image size, and saying so."""

import time
from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax.ops.platform import single_device_kind
from concertormer_jax.runtime.devices import compile_interruptibly
from concertormer_jax.runtime.trace_cache import lower_cached

# How exactly a device multiplies float32 numbers. Left to itself ("default") a GPU rounds them to TF32 and a TPU to
# bfloat16 before it multiplies; a CPU never does.
PRECISIONS = ("highest", "high", "default")
PRECISION_HELP = "of a float32 network's products: highest, the default, float32; default, the device's fastest"


def precision_for(module, setting: str = "highest") -> str | None:
    """Return the precision, one of `PRECISIONS`, of a network's products: `setting` if it computes in float32.

    None for a network that computes in another type, such as bfloat16, whose few float32 products are left as they are.
    """
    return setting if jnp.dtype(module.dtype) == jnp.float32 else None


class CompiledPerShape:
    """A jitted `function(params, images)` that is compiled ahead of time for every new shape of `images`.

    log: called with a line before and after each compilation.
    precision: of all products of float32 that do not ask for their own, convolutions included; one of `PRECISIONS`, or
    None for what the process has set. The default is float32.
    fingerprint: of all that `function` depends on (`trace_cache.fingerprint`); None: its traces are not cached.
    device_kind: of the single device of a function that is not differentiated (`ops.platform.single_device_kind`).
    jit_options: for `jax.jit`. The shapes and shardings of `params` must not change between calls.
    """

    def __init__(
        self,
        function,
        log=print,
        *,
        precision: str | None = "highest",
        fingerprint: str | None = None,
        device_kind: str | None = None,
        **jit_options,
    ):
        self._lower = partial(lower_cached, function, fingerprint=fingerprint, **jit_options)
        self._precision = precision
        self._device_kind = device_kind
        self._compiled = {}
        self._log = log

    def lower(self, params, images) -> jax.stages.Lowered:
        """Return the program for `images` of this shape, not yet compiled."""
        precision = self._precision or jax.config.values["jax_default_matmul_precision"]
        with jax.default_matmul_precision(precision), single_device_kind(self._device_kind):
            return self._lower(params, images)

    def __call__(self, params, images):
        if images.shape not in self._compiled:
            size = f"{images.shape[2]}x{images.shape[1]}"
            self._log(f"compiling {size} (batch {images.shape[0]}) ...")
            start = time.perf_counter()
            self._compiled[images.shape] = compile_interruptibly(self.lower(params, images))
            self._log(f"compiled {size} in {time.perf_counter() - start:.1f} s")
        return self._compiled[images.shape](params, images)


def restore_floats(module):
    """Return a function of (params, float32 [B, H, W, 3] in [0, 1]) that gives (restored, finite).

    restored: float32 [B, H, W, 3] in [0, 1]; finite: bool [B], whether all values of the network's output are numbers.
    """

    def restore(params, images):
        output = module.apply({"params": params}, images)[-1].astype(jnp.float32)
        return jnp.clip(output, 0, 1), jnp.isfinite(output).all(axis=(1, 2, 3))

    return restore


def restore_bytes(module):
    """Return a function like that of `restore_floats` from uint8 to uint8 images, clipped and rounded."""
    restore = restore_floats(module)

    def restore_uint8(params, images):
        output, finite = restore(params, images.astype(jnp.float32) / 255)
        return jnp.round(output * 255).astype(jnp.uint8), finite

    return restore_uint8
