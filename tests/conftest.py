"""One set-up for all tests: eight faked devices, and programs compiled once for the whole session."""

import os
import tempfile

# The environment is set once, by the process that starts the workers: they inherit it, and so do their subprocesses.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Compiling takes most of the time of the tests; without XLA's optimisations it takes a fifth.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    # JAX does not write its files in one step. A process that meets half a file warns, and compiles the program itself.
    _CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # after the environment that it reads

jax.config.update("jax_num_cpu_devices", 8)

LONGEST = ("test_train.py", "test_golden.py", "test_ablations.py", "test_models.py", "test_other_networks.py")


def pytest_collection_modifyitems(items):
    """The longest files come first: at the end they would keep one process busy alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
