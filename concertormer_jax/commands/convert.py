"""Convert weights files of the published PyTorch models, Concertormer and Restormer, to our checkpoints and back.

    python -m concertormer_jax convert WEIGHTS.pth OUT_DIR          a directory for `evaluate.py --ckpt`
    python -m concertormer_jax convert CHECKPOINT_DIR OUT.pth       and back (or OUT.pt, OUT.safetensors)

The names and shapes of the weights decide which network they are of, and which dictionary in the file is taken.
"""

import os
from collections.abc import Iterable

from etils import epath

from concertormer_jax.commands.flags import make_parser, parse_arguments, running
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import local_path, user_path
from concertormer_jax.weights import checkpoints, load_weights_file, torch_from_params, write_state_dict
from concertormer_jax.weights.conversion import PUBLISHED
from concertormer_jax.weights.state_dict import WRITTEN_SUFFIXES, require_written_suffix

OTHER_FILE_SUFFIXES = (".bin", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx", ".pkl", ".th", ".zip")


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("source", help="a .pth or .safetensors file, or a checkpoint directory")
    parser.add_argument("destination", help="a directory that does not exist yet, or a .pth, .pt or .safetensors file")
    parser.add_argument("--variant", choices=PUBLISHED, help="the network of a weights file, if not by its names")
    parser.add_argument(
        "--key", metavar="NAME", help="the dictionary in a weights file; default: a moving average such as params_ema"
    )
    parser.add_argument("--half", action="store_true", help="write a .safetensors file of float16, half as large")
    flags = parse_arguments(parser, arguments)
    with running():
        source, destination = user_path(flags.source, "SOURCE"), user_path(flags.destination, "DESTINATION")
        _convert(source, destination, flags.variant, flags.key, flags.half)
        print(f"{flags.source} -> {flags.destination}")


def _convert(source: epath.Path, destination: epath.Path, variant: str | None, key: str | None, half: bool) -> None:
    suffix = destination.suffix.lower()
    if suffix in WRITTEN_SUFFIXES:
        local_path(destination, "DESTINATION")  # refuses a bucket
    if source.suffix.lower() in (*WRITTEN_SUFFIXES, *OTHER_FILE_SUFFIXES):
        local_path(source, "SOURCE")
    if not source.exists():
        raise UserError(f"{source} does not exist; give a weights file or a checkpoint directory")
    if source.is_dir() and (variant or key):
        raise UserError(f"--variant and --key are for a weights file, and {source} is a checkpoint directory")
    to_file = source.is_dir() or suffix in (*WRITTEN_SUFFIXES, *OTHER_FILE_SUFFIXES)
    if half and not to_file:
        raise UserError(f"--half is for a weights file, and {destination} would be a checkpoint directory")
    if to_file:
        require_written_suffix(destination)
        if destination.is_dir() or os.path.realpath(destination) == os.path.realpath(source):
            raise UserError(f"{destination} exists; choose another name")
    elif destination.exists() and not destination.is_dir():
        raise UserError(f"{destination} exists and is no directory; choose another name")
    if source.is_dir():
        loaded = checkpoints.load_model(source)
    else:
        loaded = load_weights_file(source, variant, key)
        print(loaded.remark)
    if to_file:
        state_dict = torch_from_params(loaded.params, loaded.module)
        write_state_dict(destination, state_dict, half=half, train_crop_px=loaded.train_crop_px)
    else:
        checkpoints.save_converted(destination, loaded.module, loaded.params, loaded.train_crop_px)
