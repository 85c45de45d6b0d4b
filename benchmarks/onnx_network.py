"""The network of a race as an ONNX file, as `concertormer export` writes it.

python -m benchmarks.onnx_network VARIANT FOLDER HEIGHT WIDTH reads FOLDER/params.npz and writes FOLDER/network.onnx.
"""

import argparse
from pathlib import Path

from benchmarks.params import read_params
from concertormer_jax.exporting.onnx_file import onnx_file
from concertormer_jax.exporting.program import Program
from concertormer_jax.models import VARIANTS, create
from concertormer_jax.weights.checkpoints import LoadedModel

FILE = "network.onnx"


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_network", description=__doc__.split("\n")[0])
    parser.add_argument("variant", choices=list(VARIANTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("height", type=int)
    parser.add_argument("width", type=int)
    flags = parser.parse_args(arguments)
    model = LoadedModel(create(flags.variant), read_params(flags.folder / "params.npz"), None, 0, flags.variant)
    content, _ = onnx_file(Program(model, flags.height, flags.width, None))
    (flags.folder / FILE).write_bytes(content)


if __name__ == "__main__":
    main()
