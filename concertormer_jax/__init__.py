"""Concertormer (ICCV 2025) in JAX and Flax: image deblurring, deraining and denoising.

import concertormer_jax
restorer = concertormer_jax.load()                 # the bundled weights; or a training folder, a weights file
sharp = restorer(blurred).rgb                      # float32 [H, W, 3] in [0, 1]

module = concertormer_jax.create("lite")           # a Flax module: module.apply({"params": params}, images)
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("concertormer_jax")
except PackageNotFoundError:  # a clone that pip did not install
    __version__ = "0+clone"

# Imported when first used: a command that fails at its flags does not wait for the networks.
_HOMES = {
    "ABLATIONS": "models",
    "ConcertoSelfAttention": "models",
    "VARIANTS": "models",
    "create": "models",
    "load": "inference.restorer",
    "Restorer": "inference.restorer",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
