"""Concertormer (ICCV 2025) in JAX and Flax: image deblurring, deraining and denoising."""
