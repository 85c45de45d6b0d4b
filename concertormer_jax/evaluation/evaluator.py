"""Restoring and scoring a set of pairs: every picture once, on any number of devices, in bounded memory."""

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

from concertormer_jax.data.images import read_rgb, write_png
from concertormer_jax.evaluation.protocols import PAIRS, Protocol
from concertormer_jax.evaluation.scores import Evaluation, EvaluationSet, ImageScores
from concertormer_jax.inference.compiled import CompiledPerShape, restore_bytes, restore_floats
from concertormer_jax.metrics.psnr_ssim import UNROUNDED_METRICS, require_known, score
from concertormer_jax.models import variant_name
from concertormer_jax.ops.image import padded_size
from concertormer_jax.runtime.devices import batch_sharding, data_mesh, explain_out_of_memory, replicated
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.outputs import require_separate, require_writable, restored_path, worst_ten_path
from concertormer_jax.runtime.threads import prefetch

ORDERING_METRIC = "psnr_rgb"  # of the progress bar and the worst ten; computed whatever else is asked for
_SHOWN = ("restored", "input")
_THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class _Item:
    """A pair's index, the size of its pictures, that size padded, and how many of that size go into one step."""

    index: int
    height: int
    width: int
    padded: tuple[int, int]
    step: int


def evaluate(
    model,
    pairs: EvaluationSet,
    output,
    *,
    protocol: Protocol = PAIRS,
    tlc="auto",
    metrics=None,
    batch=None,
    devices=None,
    log=tqdm.write,
) -> Evaluation:
    """Restore the inputs of `pairs`, write them to `output`/restored/, and score them.

    model: a `checkpoints.LoadedModel`; tlc: `auto` (the protocol's), `off` or a number of pixels.
    metrics: names, see `metrics.METRICS`; None: the protocol's. Outputs are clipped, and rounded to uint8 for all but
    the unrounded metrics. batch: images per step over all devices (None: one for each); log: called with a line per
    compilation.
    Raises UserError for bad settings, an output that cannot be written or would overwrite the data (all before anything
    is computed), and bad pictures.
    """
    start = time.perf_counter()
    wanted = require_known(protocol.metrics if metrics is None else metrics)
    window = protocol.tlc_window(tlc, model.train_crop_px, model.module.multiple)
    if batch is not None and batch < 1:
        raise UserError(f"--batch={batch}: must be at least 1.")
    require_separate([worst_ten_path(output), *(restored_path(output, name) for name in pairs.names)], pairs.files)
    require_writable(output)
    mesh = data_mesh(devices)
    items = _items(pairs.sizes, model.module.multiple, batch or mesh.size, mesh.size)

    def load(item):
        images = pairs.read(item.index)
        if any(image.shape[:2] != (item.height, item.width) for image in images):
            raise UserError(
                f"{pairs.names[item.index]} of {pairs.name}: was changed during the evaluation; start again."
            )
        return item, images

    def scored(result):
        item, images, restored = result
        path = restored_path(output, pairs.names[item.index])
        try:
            write_png(path, restored if restored.dtype == np.uint8 else np.rint(restored).astype(np.uint8))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error
        covers = window is not None and window >= max(item.padded)
        return _image_scores(pairs, item.index, path, covers, restored, *images, wanted)

    with ThreadPoolExecutor(_THREADS) as pool, explain_out_of_memory("give a smaller --batch."):
        loaded = prefetch(pool, load, items, _THREADS)
        unrounded = bool(UNROUNDED_METRICS.keys() & set(wanted))
        restored = _restored(model, window, pairs, unrounded, loaded, mesh, log)
        scores = _watched(prefetch(pool, scored, restored, 2 * _THREADS), len(pairs), pairs.name)
    return Evaluation(
        checkpoint=model.name,
        variant=variant_name(model.module),
        protocol=protocol.name,
        set=pairs,
        tlc=tlc,
        tlc_window=window,
        metrics=wanted,
        images=tuple(sorted(scores, key=lambda image: image.name)),
        devices=f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        seconds=time.perf_counter() - start,
    )


def evaluate_predictions(
    paths, pairs: EvaluationSet, output, *, protocol: Protocol = PAIRS, metrics=None, maker="other software"
) -> Evaluation:
    """Score pictures that other software restored.

    paths: one for each of `pairs`, from `predictions.find_predictions`; maker: what to call their origin.
    metrics: as in `evaluate`; the unrounded ones take the pictures as they are. Nothing is written, but `output` must
    be writable.
    Raises UserError for bad settings and pictures that cannot be read.
    """
    start = time.perf_counter()
    wanted = require_known(protocol.metrics if metrics is None else metrics)
    require_separate([worst_ten_path(output)], [*pairs.files, *paths])
    require_writable(output)

    def scored(index):
        return _image_scores(pairs, index, paths[index], False, read_rgb(paths[index]), *pairs.read(index), wanted)

    with ThreadPoolExecutor(_THREADS) as pool:
        scores = _watched(prefetch(pool, scored, range(len(pairs)), 2 * _THREADS), len(pairs), pairs.name)
    return Evaluation(
        checkpoint=maker,
        variant=None,
        protocol=protocol.name,
        set=pairs,
        tlc="unknown",
        tlc_window=None,
        metrics=wanted,
        images=tuple(sorted(scores, key=lambda image: image.name)),
        devices="none",
        seconds=time.perf_counter() - start,
    )


def _image_scores(pairs, index, file, window_covers, restored, degraded, target, wanted):
    names = tuple(dict.fromkeys([ORDERING_METRIC, *wanted]))
    after, before = score(names, restored, target), score(names, degraded, target)
    return ImageScores(
        index=index,
        name=pairs.names[index],
        height=target.shape[0],
        width=target.shape[1],
        file=file,
        window_covers=window_covers,
        restored=after.values,
        input=before.values,
        converged=None if after.converged is None else (after.converged, before.converged),
    )


def _items(sizes, multiple, batch, devices):
    """Sort pairs by size, padded to `multiple` pixels. A step takes `batch`, or all of a size that has fewer."""
    padded = [tuple(padded_size(length, multiple) for length in size) for size in sizes]
    count = collections.Counter(padded)
    items = [
        _Item(index, *size, padding, padded_size(min(batch, count[padding]), devices))
        for index, (size, padding) in enumerate(zip(sizes, padded, strict=True))
    ]
    return sorted(items, key=lambda item: item.padded)


def _restored(model, window, pairs, unrounded, loaded, mesh, log):
    """Yield (item, (input, target), restored) while the device works on the next step; all pictures [H, W, 3].

    Restored pictures are uint8, or float32 in [0, 255] if `unrounded`; the others are uint8.
    loaded: (item, (input, target)), those of one padded size together. The last step of a size is filled up by
    repeating its last picture; what comes out for these is left out.
    """
    whole, split = replicated(mesh), batch_sharding(mesh)
    module = model.module.clone(tlc_window=window)
    function = _restore_unrounded(module) if unrounded else restore_bytes(module)
    shardings = {"in_shardings": (whole, split), "out_shardings": (split, split)}
    restore = CompiledPerShape(function, log, made_from=str(module), **shardings)
    params = jax.device_put(model.params, whole)
    computing = None
    for (_, step), same_size in itertools.groupby(loaded, key=lambda entry: (entry[0].padded, entry[0].step)):
        while entries := list(itertools.islice(same_size, step)):
            images = [_padded(images[0], item.padded) for item, images in entries]
            images += [images[-1]] * (step - len(images))
            results = restore(params, jax.device_put(np.stack(images), split))
            if computing is not None:
                yield from _cropped(pairs, *computing)
            computing = entries, results
    yield from _cropped(pairs, *computing)


def _restore_unrounded(module):
    restore = restore_floats(module)

    def restore_uint8(params, images):
        output, finite = restore(params, images.astype(np.float32) / 255)
        return output * 255, finite

    return restore_uint8


def _padded(image, size):
    """Reflect uint8 [H, W, 3] at the bottom and the right; the network does the same with a size that does not fit."""
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


def _watched(scores, total, name) -> list[ImageScores]:
    """Collect the scores while a bar shows their mean so far."""
    done = []
    with tqdm(total=total, unit="image", desc=printable(f"evaluating {name}"), dynamic_ncols=True) as bar:
        for image in scores:
            done.append(image)
            means = [math.fsum(getattr(i, part)[ORDERING_METRIC] for i in done) / len(done) for part in _SHOWN]
            bar.set_postfix_str(f"PSNR {means[0]:.2f} dB, input {means[1]:.2f} dB")
            bar.update()
    return done
