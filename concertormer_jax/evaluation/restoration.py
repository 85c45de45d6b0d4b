"""The pictures of a set on their way through the network: in steps of one padded size, over this process's devices."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.inference.compiled import CompiledPerShape, precision_for, restore_bytes, restore_floats
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.devices import batch_sharding, kind_of_single, replicated
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.trace_cache import fingerprint


@dataclasses.dataclass(frozen=True)
class Item:
    """A pair's index, the size of its pictures, that size padded, and how many of that size go into one step."""

    index: int
    height: int
    width: int
    padded: tuple[int, int]
    step: int


def share_of(sizes, multiple: int, host: int, hosts: int) -> list[int]:
    """Return the indices of the pictures that process `host` of `hosts` restores, sorted by padded size.

    sizes: (height, width) of all pictures; multiple: of the network. Every picture is in one share. Shares have about
    equal numbers of pixels, and few padded sizes each, as each has to be compiled.
    """
    padded = [_padded_size(size, multiple) for size in sizes]
    order = sorted(range(len(sizes)), key=lambda index: padded[index])
    pixels = np.array([padded[index][0] * padded[index][1] for index in order], np.int64)
    middles = np.cumsum(pixels) - pixels / 2
    return [index for index, middle in zip(order, middles, strict=True) if int(middle * hosts / pixels.sum()) == host]


def items_of(indices: Iterable[int], sizes, multiple: int, batch: int, devices: int) -> list[Item]:
    """Return the items of the pictures `indices`, those of one padded size together.

    A step takes `batch` pictures, or all of a size that has fewer, and is a multiple of `devices`.
    """
    padded = {index: _padded_size(sizes[index], multiple) for index in indices}
    count = collections.Counter(padded.values())
    items = [
        Item(index, *sizes[index], size, padded_size(min(batch, count[size]), devices))
        for index, size in padded.items()
    ]
    return sorted(items, key=lambda item: item.padded)


class Restoration:
    """A network (`checkpoints.LoadedModel`) with a TLC window, on the devices of `mesh`, all of this process.

    unrounded: whether it gives float32 in [0, 255] in place of uint8. precision: of a float32 network's products;
    log: called with a line per compilation.
    """

    def __init__(self, model, window: int | None, mesh, *, unrounded: bool, precision: str, log: Callable):
        whole, split = replicated(mesh), batch_sharding(mesh)
        module = model.module.clone(tlc_window=window)
        self._restore = CompiledPerShape(
            _restore_unrounded(module) if unrounded else restore_bytes(module),
            log,
            precision=precision_for(module, precision),
            fingerprint=fingerprint(module),
            device_kind=kind_of_single(mesh),
            in_shardings=(whole, split),
            out_shardings=(split, split),
        )
        self._params = jax.device_put(model.params, whole)
        self._split = split

    def __call__(self, pairs: EvaluationSet, loaded: Iterable) -> Iterator:
        """Yield (item, (input, target), restored) for every entry of `loaded`; all pictures [H, W, 3].

        loaded: (item, (input, target)) of `pairs`, uint8, those of one padded size together. A step's results are taken
        from the device when the next step has been given to it. The last step of a size is filled up by repeating its
        last picture, without a result. Raises UserError for an output that is not finite.
        """
        computing = None
        for (_, step), same_size in itertools.groupby(loaded, key=lambda entry: (entry[0].padded, entry[0].step)):
            while entries := list(itertools.islice(same_size, step)):
                images = [_padded(images[0], item.padded) for item, images in entries]
                images += [images[-1]] * (step - len(images))
                results = self._restore(self._params, jax.device_put(np.stack(images), self._split))
                if computing is not None:
                    yield from _cropped(pairs, *computing)
                computing = entries, results
        if computing is not None:
            yield from _cropped(pairs, *computing)


def _restore_unrounded(module):
    restore = restore_floats(module)

    def restore_uint8(params, images):
        output, finite = restore(params, images.astype(np.float32) / 255)
        return output * 255, finite

    return restore_uint8


def _padded_size(size, multiple):
    return tuple(padded_size(length, multiple) for length in size)


def _padded(image, size):
    """Reflect uint8 [H, W, 3] at the bottom and the right, as the network does with a size that is no multiple."""
    return np.pad(image, ((0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)), mode="reflect")


def _cropped(pairs, entries, results):
    restored, finite = jax.device_get(results)
    for (item, images), picture, good in zip(entries, restored, finite, strict=False):
        if not good:
            raise UserError(
                f"{pairs.names[item.index]} of {pairs.name}: the network's output is not finite; its weights are "
                "damaged or diverged."
            )
        yield item, images, picture[: item.height, : item.width]
