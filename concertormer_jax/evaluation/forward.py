"""The network as evaluation and restoration run it: compiled once per image size, and saying so."""

import time
from functools import partial

import jax
import jax.numpy as jnp

from concertormer_jax import kept_traces
from concertormer_jax.devices import compile_while_listening


class CompiledBySize:
    """A jitted `function(params, images)` that is compiled ahead of time for every new shape of `images`.

    log: called with a line before and after each compilation.
    made_from: all that `function` depends on, as text, with which its traces are kept (`kept_traces`); None for not.
    jit_options: for `jax.jit`. The shapes and shardings of `params` must not change between calls.
    """

    def __init__(self, function, log=print, *, made_from=None, **jit_options):
        if made_from is None:
            self._lower = jax.jit(function, **jit_options).lower
        else:
            self._lower = partial(kept_traces.lower, function, made_from=made_from, **jit_options)
        self._compiled = {}
        self._log = log

    def __call__(self, params, images):
        if images.shape not in self._compiled:
            size = f"{images.shape[1]}x{images.shape[2]}"
            self._log(f"compiling {size} (batch {images.shape[0]}) ...")
            start = time.perf_counter()
            self._compiled[images.shape] = compile_while_listening(self._lower(params, images))
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
