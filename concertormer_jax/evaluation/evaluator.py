"""Restoring and scoring a set of pairs: every picture once, on any number of devices and hosts, in bounded memory.

Three stages work at the same time: pictures are read ahead in threads, the devices restore them in a thread of their
own, and other threads score them. These are threads and no processes, as the metrics compute outside the interpreter's
lock.
"""

import contextlib
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from concertormer_jax.data.images import read_rgb, to_uint8, write_png
from concertormer_jax.evaluation.restoration import Restoration, items_of, share_of
from concertormer_jax.evaluation.scores import PAIRS, Evaluation, EvaluationSet, ImageScores, Protocol
from concertormer_jax.inference.compiled import precision_for
from concertormer_jax.inference.sharding import memory_bytes, needs_sharding, require_setting
from concertormer_jax.metrics.psnr_ssim import UNROUNDED_METRICS, require_known, score
from concertormer_jax.models import variant_name
from concertormer_jax.runtime.devices import Hosts, data_mesh, explain_out_of_memory
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.memory import available_memory_bytes
from concertormer_jax.runtime.outputs import require_separate, require_writable
from concertormer_jax.runtime.paths import AnyPath, checked_name
from concertormer_jax.runtime.threads import as_finished, prefetch

ORDERING_METRIC = "psnr_rgb"  # of the progress bar and the worst ten; computed whatever else is asked for
_SHOWN = ("restored", "input")
_FILE_THREADS = min(8, os.cpu_count() or 1)
_SCORING_THREADS = min(32, os.cpu_count() or 1)
_SCORING_BYTES_PER_PIXEL = 300


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
    precision="highest",
    shard="auto",
    hosts: Hosts | None = None,
    log=tqdm.write,
) -> Evaluation:
    """Restore the inputs of `pairs`, write them to `output`/restored/, and score them.

    model: a `checkpoints.LoadedModel`; tlc: `auto` (the protocol's), `off` or a number of pixels.
    metrics: names, see `psnr_ssim.METRICS`; None: the protocol's. Outputs are clipped, and rounded to uint8 for all but
    the unrounded metrics. batch: images per step over all devices (None: one for each); devices: of this process, None
    for all. precision: see `compiled.PRECISIONS`. shard: see `sharding.needs_sharding`; a picture that is split over
    the devices is a step of its own. hosts: the processes that share the set, each of which returns the scores of all
    pictures; None for this one alone. log: called with a line per compilation, on the first host.
    Raises UserError for bad settings, an output that cannot be written or would overwrite the data (all before anything
    is computed), bad pictures, and what fails on another host.
    """
    start = time.perf_counter()
    require_setting(shard)
    wanted = _wanted(metrics, protocol, pairs)
    window = protocol.tlc_window(tlc, model.train_crop_px, model.module.multiple)
    if batch is not None and batch < 1:
        raise UserError(f"--batch={batch}: must be at least 1.")
    require_separate([worst_ten_path(output), *(restored_path(output, name) for name in pairs.names)], pairs.files)
    require_writable(output)
    hosts = hosts or Hosts()
    settings = (pairs.names, pairs.sizes, model.name, wanted, window, batch, precision, shard)
    if any(others != settings for others in hosts.gather(settings)):
        raise UserError(f"{pairs.name}: the hosts see other pictures or were given other flags; make them the same.")
    mesh = data_mesh(jax.local_devices() if devices is None else devices)
    indices = share_of(pairs.sizes, model.module.multiple, hosts.index, hosts.count)
    together = -(-batch // hosts.count) if batch else mesh.size
    memory = memory_bytes(mesh.devices.flat[0])
    items = items_of(
        indices,
        pairs.sizes,
        model.module.multiple,
        together,
        mesh.size,
        lambda size: needs_sharding(shard, model.module, *size, mesh.size, memory),
    )

    def load(item):
        images = pairs.read(item.index)
        if any(image.shape[:2] != (item.height, item.width) for image in images):
            raise UserError(
                f"{pairs.names[item.index]} of {pairs.name}: was changed during the evaluation; start again."
            )
        return item, images

    def write(result):
        item, _, restored = result
        path = restored_path(output, pairs.names[item.index])
        try:
            write_png(path, to_uint8(restored))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error
        return path, *result

    def scored(result):
        path, item, images, restored = result
        covers = window is not None and window >= max(item.padded)
        return _image_scores(pairs, item.index, path, covers, restored, *images, wanted, protocol.border_px)

    unrounded = bool(UNROUNDED_METRICS.keys() & set(wanted))
    say = log if hosts.first else lambda line: None
    restore = Restoration(model, window, mesh, unrounded=unrounded, precision=precision, log=say)
    with _file_threads() as threads, explain_out_of_memory("give a smaller --batch."):
        loaded = prefetch(threads, load, items, _FILE_THREADS)
        written = prefetch(threads, write, restore(pairs, loaded), _FILE_THREADS)
        scores = _scores(written, scored, pairs, len(items), hosts)
    images = [image for share in hosts.gather(scores) for image in share]
    return Evaluation(
        checkpoint=model.name,
        variant=variant_name(model.module),
        protocol=protocol.name,
        set=pairs,
        tlc=tlc,
        tlc_window=window,
        precision=precision_for(model.module, precision) or jnp.dtype(model.module.dtype).name,
        metrics=wanted,
        images=tuple(sorted(images, key=lambda image: image.name)),
        devices=f"{hosts.count * mesh.size} x {mesh.devices.flat[0].device_kind}",
        seconds=time.perf_counter() - start,
    )


def evaluate_predictions(
    paths, pairs: EvaluationSet, output, *, protocol: Protocol = PAIRS, metrics=None, maker="other software"
) -> Evaluation:
    """Score pictures that other software restored.

    paths: one for each of `pairs`, from `sets.find_predictions`; maker: what to call their origin.
    metrics: as in `evaluate`; the unrounded ones take the pictures as they are. Nothing is written, but `output` must
    be writable.
    Raises UserError for bad settings and pictures that cannot be read.
    """
    start = time.perf_counter()
    wanted = _wanted(metrics, protocol, pairs)
    require_separate([worst_ten_path(output)], [*pairs.files, *paths])
    require_writable(output)

    def scored(index):
        images = read_rgb(paths[index]), *pairs.read(index)
        return _image_scores(pairs, index, paths[index], False, *images, wanted, protocol.border_px)

    images = _scores(range(len(pairs)), scored, pairs, len(pairs), Hosts())
    return Evaluation(
        checkpoint=maker,
        variant=None,
        protocol=protocol.name,
        set=pairs,
        tlc="unknown",
        tlc_window=None,
        precision=None,
        metrics=wanted,
        images=tuple(sorted(images, key=lambda image: image.name)),
        devices="none",
        seconds=time.perf_counter() - start,
    )


def _wanted(metrics, protocol, pairs):
    """The names of the metrics, all of which can be computed for `pairs`."""
    border = 2 * protocol.border_px
    sizes = [(height - border, width - border) for height, width in pairs.sizes]
    return require_known(protocol.metrics if metrics is None else metrics, sizes)


def restored_path(output: AnyPath, name: str) -> Path:
    """Return where the restored picture of a pair goes. Raises UserError like `checked_name`."""
    checked_name(name, output)
    return Path(output) / "restored" / f"{name}.png"


def worst_ten_path(output: AnyPath) -> Path:
    """Return where the sheet of the worst pictures goes."""
    return Path(output) / "worst_ten.png"


@contextlib.contextmanager
def _file_threads():
    """Threads that read and write files. At the end the files at work are finished, and what waits is dropped."""
    threads = ThreadPoolExecutor(_FILE_THREADS)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _image_scores(pairs, index, file, window_covers, restored, degraded, target, wanted, border_px):
    names = tuple(dict.fromkeys([ORDERING_METRIC, *wanted]))
    rows, columns = (slice(border_px, length - border_px) for length in target.shape[:2])
    after, before = (score(names, image[rows, columns], target[rows, columns]) for image in (restored, degraded))
    return ImageScores(
        index=index,
        name=pairs.names[index],
        height=target.shape[0],
        width=target.shape[1],
        file=file,
        window_covers=window_covers,
        restored=after.values,
        input=before.values,
        converged=None if after.converged is None or before.converged is None else (after.converged, before.converged),
    )


def _scores(source, scored, pairs, total, hosts) -> list[ImageScores]:
    """Score every entry of `source`, `total` in number, while a bar shows the mean so far."""
    workers = _scoring_threads(pairs.sizes)
    done = []
    name = pairs.name if hosts.count == 1 else f"{pairs.name}, the share of host {hosts.index} of {hosts.count}"
    title = printable(f"evaluating {name}")
    with (
        tqdm(total=total, unit="image", desc=title, dynamic_ncols=True, disable=not hosts.first) as bar,
        contextlib.closing(as_finished(source, scored, workers=workers, waiting=2 * workers)) as scores,
    ):
        for image in scores:
            hosts.require_none_failed()
            done.append(image)
            means = [math.fsum(getattr(i, part)[ORDERING_METRIC] for i in done) / len(done) for part in _SHOWN]
            bar.set_postfix_str(f"PSNR {means[0]:.2f} dB, input {means[1]:.2f} dB")
            bar.update()
    return done


def _scoring_threads(sizes) -> int:
    """As many threads as there are cores, or as few as can score the largest pictures in half of the free memory."""
    largest = max(height * width for height, width in sizes) * _SCORING_BYTES_PER_PIXEL
    return max(1, min(_SCORING_THREADS, int(available_memory_bytes() / 2 // largest)))
