"""The diffusion index: how widely the contributions to a window are spread over the picture."""

import numpy as np


def strength(contributions: np.ndarray) -> np.ndarray:
    """|sum over the channels| of every pixel, divided by the largest.

    contributions: [H, W, C]. Returns float64 [H, W] in [0, 1]. Raises ValueError where all are 0.
    """
    strengths = np.abs(contributions.sum(axis=2, dtype=np.float64))
    if not strengths.max() > 0:
        raise ValueError("contributions are all 0, so that nothing can be said about their spread")
    return strengths / strengths.max()


def gini(values: np.ndarray) -> float:
    """The Gini coefficient of numbers from 0 up: 0 if they are equal, (n - 1) / n if only one of n is not 0.

    The mean difference of all pairs, relative to twice the mean: sum_ij |v_i - v_j| / (2 n^2 mean(v)).
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    count = ordered.size
    return float((2 * np.arange(1, count + 1) - count - 1) @ ordered / (count * ordered.sum()))


def diffusion_index(values: np.ndarray) -> float:
    """(1 - Gini coefficient) x 100 (Gu and Dong, CVPR 2021): 100 if all of n pixels count alike, 100 / n if one does.

    Pictures of different sizes cannot be compared: a neighbourhood of fixed size is a smaller share of a larger one.
    """
    return 100 * (1 - gini(values))


def holding(values: np.ndarray, share: float) -> np.ndarray:
    """The fewest elements of `values` (from 0 up, any shape) that hold `share` of their sum: booleans of its shape."""
    order = np.argsort(values, axis=None)[::-1]
    sums = np.cumsum(values.ravel()[order])
    inside = np.zeros(values.size, bool)
    inside[order[: np.searchsorted(sums, share * sums[-1]) + 1]] = True
    return inside.reshape(values.shape)
