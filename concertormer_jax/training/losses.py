"""The training loss, in space and in frequency at every scale (paper, section 3)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from concertormer_jax.ops import image

FFT_WEIGHT = 0.1


def l1_fft(output: jax.Array, target: image.Image, fft_weight: float = FFT_WEIGHT) -> jax.Array:
    """Mean |output - target| plus `fft_weight` times the mean modulus of the difference's spectrum.

    The spectrum is the unnormalised real Fourier transform over H and W, in float32 at least; with the weight 0 it is
    not computed. output, target: [B, H, W, C]. Returns a scalar.
    """
    wide = jnp.promote_types(output.dtype, jnp.float32)
    difference = output.astype(wide) - target.astype(wide)
    loss = jnp.abs(difference).mean()
    if fft_weight:
        loss += fft_weight * jnp.abs(jnp.fft.rfft2(difference, axes=(1, 2))).mean()
    return loss


def multiscale_l1_fft(outputs: Sequence[jax.Array], target: jax.Array, fft_weight: float = FFT_WEIGHT) -> jax.Array:
    """The sum of `l1_fft` over all scales, averaged over the batch.

    outputs: the network's outputs, coarsest first, the last of the target's size; target: [B, H, W, 3] in [0, 1].
    The target is reduced to each coarser output with the bilinear rule of the network's inputs, after it is padded like
    the network pads its input. Returns a scalar. Raises ValueError when the finest output has not the target's shape.
    """
    *coarse, finest = outputs
    if finest.shape != target.shape:
        raise ValueError(f"the finest output has the shape {finest.shape}, the target {target.shape}")
    loss = l1_fft(finest, target, fft_weight)
    if coarse:
        height, width = coarse[-1].shape[1:3]
        padded = image.pad_to_size(target, 2 * height, 2 * width)
        for level, output in zip(range(len(coarse), 0, -1), coarse, strict=True):
            loss += l1_fft(output, image.downsample(padded, 2**level), fft_weight)
    return loss
