"""Weights files of PyTorch models: `.pth` (or `.pt`, `.ckpt`, `.bin`) and `.safetensors`, told by their content."""

import os
from collections.abc import Collection

import numpy as np
from etils import epath

from concertormer_jax.errors import UserError
from concertormer_jax.files import written_atomically
from concertormer_jax.weights.safetensors_format import looks_like_safetensors, read_safetensors, write_safetensors
from concertormer_jax.weights.selection import select
from concertormer_jax.weights.torch_format import PICKLE_SIGNATURE, ZIP_SIGNATURE, TorchFile, write_torch_file
from concertormer_jax.weights.torch_pickle import DTYPES, shown

WRITTEN_SUFFIXES = (".pth", ".pt", ".safetensors")
NARROW_TYPES = {dtype for name, dtype in DTYPES.items() if "float" in name and dtype.itemsize < 4}


def read_state_dict(path) -> dict[str, np.ndarray]:
    """Read the tensors of a weights file: `read_selected` without known names."""
    return read_selected(path)[0]


def read_selected(
    path, known: Collection[str] = frozenset(), key: str | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Read the dictionary of tensors in a weights file that `selection.select` takes.

    known: the names of the weights of all known networks; key: the dictionary to take, if not the one that `select`
    would. Returns the arrays, with floating point numbers narrower than float32 as float32, and the remark of the
    choice. Raises UserError for a file that is missing, damaged, or holds anything but tensors.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"the weights file {path} does not exist")
    if path.is_dir() or (os.path.exists(path) and not os.path.isfile(path)):  # a named pipe would be waited for
        raise UserError(f"{path} is no file")
    with path.open("rb") as file:
        head = file.read(64)
        file.seek(0)
        if head.startswith(ZIP_SIGNATURE):
            torch_file = TorchFile(file, path)
            selection = select(torch_file.content, path, known, key)
            arrays = torch_file.arrays(selection.tensors)
        elif looks_like_safetensors(head):
            selection = select(read_safetensors(file.read(), path), path, known, key)
            arrays = selection.tensors
        elif head.startswith(PICKLE_SIGNATURE):
            raise UserError(
                f"{path} is of a format older than PyTorch 1.6; load it with PyTorch and save it again with torch.save"
            )
        elif not head:
            raise UserError(f"{path} is empty; download or save it again")
        else:
            begins = shown(head[:20].decode("latin-1"))
            raise UserError(
                f"{path} is neither a PyTorch weights file nor safetensors, or is damaged (it begins with '{begins}'); "
                "download or save it again"
            )
    return {name: _widened(array) for name, array in arrays.items()}, selection.remark


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype in NARROW_TYPES else array


def write_state_dict(path, state_dict: dict[str, np.ndarray], *, half: bool = False) -> None:
    """Write float32 tensors to a `.safetensors` file, or to a `.pth` or `.pt` file that `torch.load` reads, under
    `params`. half: float16, in a `.safetensors` file only.

    Raises UserError for another suffix, and for numbers that float16 does not hold.
    """
    path = epath.Path(path)
    require_written_suffix(path)
    if half and path.suffix.lower() != ".safetensors":
        raise UserError(f"{path}: float16 is for .safetensors files; choose that suffix, or leave --half out")
    with np.errstate(over="ignore"):
        arrays = {
            name: np.ascontiguousarray(array, np.float16 if half else np.float32) for name, array in state_dict.items()
        }
    if too_large := [name for name, array in arrays.items() if half and not np.isfinite(array).all()]:
        raise UserError(f"{too_large[0]} has numbers that float16 does not hold; leave --half out")
    write = write_safetensors if path.suffix.lower() == ".safetensors" else write_torch_file
    with written_atomically(path) as temporary:
        write(arrays, temporary)


def require_written_suffix(path) -> None:
    """Raise UserError when no weights file is written under this name."""
    if epath.Path(path).suffix.lower() not in WRITTEN_SUFFIXES:
        raise UserError(f"{path} must end in .pth, .pt or .safetensors")
