"""One set-up for all tests: eight faked devices, and programs compiled once for the whole session."""

import os
import tempfile

# Compiling takes most of the time of the tests; without XLA's optimisations it takes a fifth. Subprocesses inherit all.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
_CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402  (after the environment that it reads)

jax.config.update("jax_num_cpu_devices", 8)
