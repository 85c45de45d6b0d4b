"""The same random weights for both sides, each in the file that it reads fastest.

python -m benchmarks.weights VARIANT FOLDER writes FOLDER/weights.pth (published names) and FOLDER/params.npz (ours).
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from benchmarks.params import write_params
from concertormer_jax.models import VARIANTS, create, parameter_shapes
from concertormer_jax.weights import params_from_torch, torch_from_params, write_state_dict


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Initial values of the array of a published name: norms and temperatures neutral, all else like PyTorch's."""
    if "norm" in name or name.endswith("temperature"):
        return np.full(shape, 0 if name.endswith("bias") else 1, np.float32)
    bound = max(np.prod(shape[1:]), 9) ** -0.5
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.split("\n")[0])
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("folder", type=Path)
    flags = parser.parse_args(arguments)
    module = create(flags.variant)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(module))
    rng = np.random.default_rng(0)
    state = {name: draw(name, array.shape, rng) for name, array in torch_from_params(zeros, module).items()}
    write_params(flags.folder / "params.npz", params_from_torch(state, module))
    write_state_dict(flags.folder / "weights.pth", state)


if __name__ == "__main__":
    main()
