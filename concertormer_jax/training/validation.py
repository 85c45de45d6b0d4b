"""Validation while training: the PSNR of held-out images, and pictures of a few of them."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from concertormer_jax.data.images import to_uint8
from concertormer_jax.data.sources import Mixture, PairSource, PhotoSource
from concertormer_jax.runtime.devices import compile_interruptibly, place_batch
from concertormer_jax.runtime.trace_cache import lower_cached
from concertormer_jax.training.step import batch_psnr, to_unit


def middle_crop(image: np.ndarray, crop_px: int) -> np.ndarray:
    """The middle crop_px x crop_px pixels of [H, W, 3]; smaller pictures are reflected at the bottom and the right."""
    height, width = image.shape[:2]
    top, left = max(0, (height - crop_px) // 2), max(0, (width - crop_px) // 2)
    crop = image[top : top + crop_px, left : left + crop_px]
    return np.pad(crop, ((0, crop_px - crop.shape[0]), (0, crop_px - crop.shape[1]), (0, 0)), mode="reflect")


class Validation:
    """Middle crops of held-out images, restored in batches over all devices; every image counts once.

    apply: `(params, images) -> outputs`; fingerprint: of `apply`, for the trace cache.
    images: at most this many are chosen; crop_px: the side of the crops.
    log: called with lines on the compilation, which the first call does.
    """

    def __init__(
        self,
        apply: Callable,
        source: PairSource | PhotoSource | Mixture,
        mesh: Mesh,
        *,
        images: int,
        crop_px: int,
        fingerprint: str | None,
        log: Callable,
    ):
        # Evenly spaced, so that every part of a mixture is seen.
        self._chosen = np.unique(np.linspace(0, len(source) - 1, min(images, len(source))).round().astype(int))
        crops = [[middle_crop(image, crop_px) for image in source.whole(int(index))] for index in self._chosen]
        dtype = np.result_type(*(degraded.dtype for degraded, _ in crops))  # of the inputs, which one program takes
        self._crops = [(degraded.astype(dtype, copy=False), target) for degraded, target in crops]
        self._mesh = mesh
        self._devices = mesh.size
        self._local = self._devices // jax.process_count()

        def restore(params, batch):
            output = jnp.round(jnp.clip(apply(params, to_unit(batch["input"]))[-1], 0, 1) * 255)
            psnr = batch_psnr(output / 255, to_unit(batch["target"]))
            return output.astype(jnp.uint8), jnp.where(batch["real"], psnr, 0).sum()

        self._restore, self._fingerprint = restore, fingerprint
        self._compiled: jax.stages.Compiled | None = None
        self._log = log

    def __len__(self) -> int:
        return len(self._crops)

    @functools.cached_property
    def input_psnr(self) -> float:
        """The mean PSNR in dB of the inputs themselves."""
        squared = [np.mean((degraded / 255.0 - target / 255.0) ** 2) for degraded, target in self._crops]
        return float(np.mean(-10 * np.log10(np.maximum(squared, 1e-10))))

    def _batch(self, first: int) -> dict:
        start = first + jax.process_index() * self._local
        mine = [min(index, len(self._crops) - 1) for index in range(start, start + self._local)]
        local = {
            "input": np.stack([self._crops[index][0] for index in mine]),
            "target": np.stack([self._crops[index][1] for index in mine]),
            "real": np.arange(start, start + self._local) < len(self._crops),
        }
        return place_batch(self._mesh, local)

    def _compile(self, params) -> jax.stages.Compiled:
        self._log("compiling the validation ...")
        start = time.perf_counter()
        lowered = lower_cached(self._restore, params, self._batch(0), fingerprint=self._fingerprint)
        compiled = compile_interruptibly(lowered)
        self._log(f"compiled in {time.perf_counter() - start:.1f} s")
        return compiled

    def __call__(self, params, pictures: int) -> tuple[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """The mean PSNR in dB of the outputs, clipped and rounded to 8 bits, and examples.

        These are (input, output, target), uint8 [crop_px, crop_px, 3] each, of the first `pictures` images of this
        host.
        """
        if self._compiled is None:
            self._compiled = self._compile(params)
        total, shown = 0.0, []
        for first in range(0, len(self._crops), self._devices):
            output, psnr = self._compiled(params, self._batch(first))
            total += float(jax.device_get(psnr))
            start = first + jax.process_index() * self._local
            for shard in sorted(output.addressable_shards, key=lambda shard: shard.index[0].start or 0):
                if start < len(self._crops) and len(shown) < pictures:
                    degraded, target = self._crops[start]
                    shown.append((to_uint8(degraded), jax.device_get(shard.data)[0], target))
                start += 1
        return total / len(self._crops), shown
