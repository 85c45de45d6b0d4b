"""XLA's settings for the tests: quick to compile, but for what must run as a user runs it."""

import os
from importlib.metadata import version

# Name: (quick, XLA's default). Compiling takes most of the time of the tests: the quick ones leave out optimisations,
# write fusions by the older emitters, and do not cut programs into parts for more cores than there are.
_FLAGS = {"xla_backend_optimization_level": (0, 3)}
if version("jaxlib").startswith("0.10."):  # a flag that XLA does not know is fatal, and another may not know these
    _FLAGS |= {"xla_cpu_use_fusion_emitters": (False, True), "xla_cpu_parallel_codegen_split_count": (1, 32)}

QUICK = [f"--{name}={quick}".lower() for name, (quick, _) in _FLAGS.items()]
# For `jax.jit(compiler_options=...)`: one program as XLA compiles it by default, in a process with the quick flags.
DEFAULT_OPTIONS = {name: default for name, (_, default) in _FLAGS.items()}


def default_flags() -> str:
    """This process's XLA_FLAGS without the quick ones, for a process that compiles as a user's does."""
    return " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in QUICK)
