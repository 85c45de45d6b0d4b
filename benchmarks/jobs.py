"""What worker processes are given: weights, images and a description of the task in files, and their environment."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.sides import ROOT
from concertormer_jax.models import VARIANTS

SCHEDULE_STEPS = 100_000  # of the learning rate's cosine


def write_weights(variant: str, folder: Path) -> None:
    """Have weights.pth and params.npz written to `folder`, by another process: this one needs no device."""
    _run("benchmarks.weights", variant, folder)


def write_onnx(variant: str, folder: Path, height: int, width: int) -> None:
    """Have network.onnx written to `folder`, which holds the weights, for one picture of height x width pixels."""
    _run("benchmarks.onnx_network", variant, folder, height, width)


def _run(module: str, *arguments) -> None:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)


def make_job(folder: Path, *, variant, dtype, device, batch, height, width, tlc_window=None, train=False) -> dict:
    """Write random images to `folder`, which holds the weights, and describe one task of both kinds of workers."""
    images = folder / f"images-{batch}-{height}-{width}.npz"
    rng = np.random.default_rng(0)
    shape = (batch, height, width, 3)
    np.savez(images, **{part: rng.integers(0, 256, shape, np.uint8) for part in ("input", "target")})
    return {
        "train": train,
        "variant": variant,
        "size": VARIANTS[variant].fields,
        "tlc_window": tlc_window,
        "dtype": dtype,
        "device": device,
        "images": str(images),
        "weights": str(folder / "weights.pth"),
        "params": str(folder / "params.npz"),
        "onnx": str(folder / "network.onnx"),
        "schedule_steps": SCHEDULE_STEPS,
        "compile": False,
    }


def environment(device: str, cores: int, cache: Path) -> dict[str, str]:
    """The workers' variables; compiled programs are kept in the folder `cache`, which is to be empty at first."""
    return {
        "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[device],
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        # Both sides hold the GPU at once; without this JAX would take most of its memory.
        "XLA_PYTHON_CLIENT_MEM_FRACTION": os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45"),
        "OMP_NUM_THREADS": str(cores),
    }
