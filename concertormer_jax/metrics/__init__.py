"""PSNR and SSIM as the field's benchmarks compute them, and RealBlur's alignment."""

from concertormer_jax.metrics.psnr_ssim import (
    METRICS,
    psnr_rgb,
    psnr_y,
    require_known,
    ssim_rgb_2d,
    ssim_rgb_3d,
    ssim_y,
)

__all__ = ["METRICS", "psnr_rgb", "psnr_y", "require_known", "ssim_rgb_2d", "ssim_rgb_3d", "ssim_y"]
