"""One set-up for all tests: eight faked devices, and programs compiled once for the whole session."""

import os
import signal
import tempfile
from pathlib import Path

from xla_flags import QUICK

# The environment is set once, by the process that starts the workers: they inherit it, and so do their subprocesses.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Memory in huge pages, Python's objects too, that stays with a process once it has it: where a busy host makes new
    # pages and small ones slow, tracing and compiling take 0.4 of their time. glibc reads this, others ignore it.
    tunables = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**33, "top_pad": 2**26, "arena_max": 2}
    os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())
    os.environ["PYTHONMALLOC"] = "malloc"
    # And collecting no garbage while importing, which makes none, takes 0.6 of the time.
    startup = str(Path(__file__).parent / "startup")
    os.environ["PYTHONPATH"] = os.pathsep.join([startup, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *QUICK]).strip()
    # JAX does not write its files in one step. A process that meets half a file warns, and compiles the program itself.
    _CACHE = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import jax  # after the environment that it reads
from browser import browser  # noqa: F401  (a fixture of several files)
from jaxtyping import install_import_hook

# The shapes and types in the signatures are checked in the tests alone.
install_import_hook(["concertormer_jax.ops", "concertormer_jax.models"], "beartype.beartype")

jax.config.update("jax_num_cpu_devices", 8)

# A shell that runs the tests in the background has them ignore Ctrl-C, which some of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "test_golden.py",
    "test_end_to_end.py",
    "test_train.py",
    "test_ablations.py",
    "test_models.py",
    "test_other_networks.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items):
    """The longest files come first: at the end they would keep one process busy alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
