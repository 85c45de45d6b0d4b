"""Restoring and scoring a folder of pairs: every picture once, on any number of devices, in bounded memory."""

import collections
import dataclasses
import itertools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from tqdm import tqdm

from concertormer_jax.data.cache import image_sizes
from concertormer_jax.data.images import read_rgb, write_png
from concertormer_jax.data.sources import Pair, find_pairs
from concertormer_jax.devices import batch_sharding, data_mesh, replicated
from concertormer_jax.errors import UserError
from concertormer_jax.evaluation.forward import CompiledBySize, out_of_memory_explained, restore_bytes
from concertormer_jax.evaluation.outputs import require_writable, restored_path
from concertormer_jax.evaluation.settings import tlc_window
from concertormer_jax.metrics import metrics_named
from concertormer_jax.ops.image import padded_size

DEFAULT_METRICS = ("psnr_rgb", "ssim_rgb_3d")
ORDERING_METRIC = "psnr_rgb"  # of the progress bar and the worst ten; computed whatever else is asked for
_PADDING_MULTIPLE = 64
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class ImageScores:
    """One picture's scores by metric name, those of the restored picture and those of the input itself.

    height, width: in pixels; window_covers: whether one TLC window covers the padded picture, so that TLC does nothing.
    """

    pair: Pair
    height: int
    width: int
    window_covers: bool
    restored: dict[str, float]
    input: dict[str, float]

    @property
    def name(self) -> str:
        return self.pair.name


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a checkpoint on a folder. tlc: the setting as given; tlc_window: in pixels, None for off."""

    checkpoint: str
    data: str
    tlc: str
    tlc_window: int | None
    metrics: tuple[str, ...]
    images: tuple[ImageScores, ...]
    devices: str
    seconds: float

    def mean(self, which: str, metric: str) -> float:
        """Return the mean over the images; which: "restored" or "input"."""
        return float(np.mean([getattr(image, which)[metric] for image in self.images]))

    def gain(self, metric: str) -> float:
        """Return how much higher the mean of the restored images is than that of the inputs; 0 if both are infinite."""
        return difference(self.mean("restored", metric), self.mean("input", metric))


@dataclasses.dataclass(frozen=True)
class _Item:
    """A pair, the size of its pictures, that size padded, and how many pictures of that size go into one step."""

    pair: Pair
    height: int
    width: int
    padded: tuple[int, int]
    step: int


def difference(a: float, b: float) -> float:
    """Return a - b, and 0 for equal infinities."""
    return 0.0 if a == b else a - b


def evaluate(
    model, folder, output, *, tlc="auto", metrics=DEFAULT_METRICS, batch=None, devices=None, log=tqdm.write
) -> Evaluation:
    """Restore the inputs of `folder` (input/ and target/), write them to `output`/restored/, and score them.

    model: a `checkpoints.LoadedModel`; tlc: `auto`, `off` or a number of pixels, see `settings.tlc_window`.
    metrics: names, see `metrics.METRICS`; the outputs are clipped and rounded to uint8 before.
    batch: images per step over all devices (None: one for each); log: called with a line per compilation.
    Raises UserError for bad settings, an unwritable output (both before anything is computed) and bad pictures.
    """
    start = time.perf_counter()
    wanted = tuple(metrics_named(metrics))
    functions = metrics_named(dict.fromkeys([ORDERING_METRIC, *wanted]))
    window = tlc_window(tlc, model.train_crop_px)
    if batch is not None and batch < 1:
        raise UserError(f"--batch={batch}: must be at least 1.")
    require_writable(output)
    mesh = data_mesh(devices)
    items = _items(find_pairs(folder), batch or mesh.size, mesh.size)

    def score(item, images, restored):
        degraded, target = images
        path = restored_path(output, item.pair.name)
        try:
            write_png(path, restored)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error
        return ImageScores(
            pair=item.pair,
            height=item.height,
            width=item.width,
            window_covers=window is not None and window >= max(item.padded),
            restored={name: function(restored, target) for name, function in functions.items()},
            input={name: function(degraded, target) for name, function in functions.items()},
        )

    scores = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=len(items), unit="image", desc="evaluating", dynamic_ncols=True) as bar,
        out_of_memory_explained("give a smaller --batch."),
    ):
        loaded = _ahead(pool, _load, ((item,) for item in items), _THREADS)
        restored = _restored(model, window, loaded, mesh, log)
        for result in _ahead(pool, score, restored, 2 * _THREADS):
            scores.append(result)
            bar.set_postfix_str(_running(scores))
            bar.update()
    return Evaluation(
        checkpoint=model.name,
        data=str(folder),
        tlc=tlc,
        tlc_window=window,
        metrics=wanted,
        images=tuple(sorted(scores, key=lambda image: image.name)),
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        seconds=time.perf_counter() - start,
    )


def _items(pairs, batch, devices):
    """Sort pairs by padded size. A step takes `batch` pictures, or all of a size that has fewer."""
    sizes = image_sizes([pair.input for pair in pairs])
    padded = [tuple(padded_size(length, _PADDING_MULTIPLE) for length in size) for size in sizes]
    count = collections.Counter(padded)
    items = [
        _Item(pair, *size, padding, padded_size(min(batch, count[padding]), devices))
        for pair, size, padding in zip(pairs, sizes, padded, strict=True)
    ]
    return sorted(items, key=lambda item: item.padded)


def _load(item):
    images = read_rgb(item.pair.input), read_rgb(item.pair.target)
    if any(image.shape[:2] != (item.height, item.width) for image in images):
        raise UserError(
            f"{item.pair.input}: was changed during the evaluation, or {item.pair.target} was; start again."
        )
    return item, images


def _restored(model, window, loaded, mesh, log):
    """Yield (item, (input, target), restored), all pictures uint8 [H, W, 3], while the device works on the next step.

    loaded: (item, (input, target)), those of one padded size together. The last step of a size is filled up by
    repeating its last picture; what comes out for these is left out.
    """
    whole, split = replicated(mesh), batch_sharding(mesh)
    module = model.module.clone(tlc_window=window)
    restore = CompiledBySize(restore_bytes(module), log, in_shardings=(whole, split), out_shardings=(split, split))
    params = jax.device_put(model.params, whole)
    computing = None
    for (_, step), same_size in itertools.groupby(loaded, key=lambda entry: (entry[0].padded, entry[0].step)):
        while entries := list(itertools.islice(same_size, step)):
            images = [_padded(images[0], item.padded) for item, images in entries]
            images += [images[-1]] * (step - len(images))
            results = restore(params, jax.device_put(np.stack(images), split))
            if computing is not None:
                yield from _cropped(*computing)
            computing = entries, results
    yield from _cropped(*computing)


def _padded(image, size):
    """Reflect uint8 [H, W, 3] at the bottom and the right; the network does the same with a size that does not fit."""
    return np.pad(image, ((0, size[0] - image.shape[0]), (0, size[1] - image.shape[1]), (0, 0)), mode="reflect")


def _cropped(entries, results):
    restored, finite = jax.device_get(results)
    for (item, images), picture, good in zip(entries, restored, finite, strict=False):
        if not good:
            raise UserError(
                f"{item.pair.input}: the network's output is not finite; its weights are damaged or diverged."
            )
        yield item, images, picture[: item.height, : item.width]


def _ahead(pool, function, arguments, count):
    """Yield function(*a) for every a of `arguments` in order, computed in `pool` up to `count` ahead."""
    waiting = collections.deque()
    for values in arguments:
        waiting.append(pool.submit(function, *values))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _running(scores):
    means = [
        math.fsum(getattr(s, which)[ORDERING_METRIC] for s in scores) / len(scores) for which in ("restored", "input")
    ]
    return f"PSNR {means[0]:.2f} dB, input {means[1]:.2f} dB"
