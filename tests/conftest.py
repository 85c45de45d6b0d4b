"""One set-up for all tests: eight faked devices, and programs compiled once for the whole session."""

import os
import tempfile
from importlib.metadata import version

# Compiling takes most of the time of the tests; without XLA's optimisations it takes a fifth. Subprocesses inherit all.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know is fatal, and newer ones do not know this
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}".strip()
_CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # noqa: E402  (after the environment that it reads)

jax.config.update("jax_num_cpu_devices", 8)
