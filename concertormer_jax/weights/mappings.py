"""How one array is called and laid out in a published PyTorch model and in ours."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Mapping(NamedTuple):
    """The two names of one array, and functions that lay one side's array out for the other."""

    torch_name: str
    paths: tuple[tuple[str, ...], ...]  # of ours, in the parameter tree; of several, joined along their last axis
    index: int | None  # in the stack of equal blocks, None for an array that is not stacked
    to_ours: Callable
    to_torch: Callable


def convolution(name: str, path: str, bias: bool = True) -> list[Mapping]:
    """The kernel (and the bias) of a convolution."""
    kernel = Mapping(
        f"{name}.weight",
        ((path, "kernel"),),
        None,
        lambda a: a.transpose(2, 3, 1, 0),
        lambda a: a.transpose(3, 2, 0, 1),
    )
    return [kernel, same(f"{name}.bias", (path, "bias"), None)][: 2 if bias else 1]


def same(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """An array that is laid out alike."""
    return Mapping(name, (path,), index, np.asarray, np.asarray)


def pointwise(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """The kernel of a 1x1 convolution, which is a matrix of ours."""
    return Mapping(name, (path,), index, lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])


def depthwise(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """The kernel of a depthwise convolution."""
    return Mapping(name, (path,), index, lambda a: a[:, 0].transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1)[:, None])
