"""Weights files: `.safetensors`, and PyTorch's `.pth` (`.pt`, `.ckpt`, `.bin`); the content says which of the two."""

import hashlib
import json
import os
from collections.abc import Collection

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.weights.selection import select
from concertormer_jax.weights.torch_format import PICKLE_SIGNATURE, ZIP_SIGNATURE, TorchFile, write_torch_file
from concertormer_jax.weights.torch_pickle import DTYPES as TORCH_DTYPES
from concertormer_jax.weights.torch_pickle import shown

WRITTEN_SUFFIXES = (".pth", ".pt", ".safetensors")
NARROW_TYPES = {dtype for name, dtype in TORCH_DTYPES.items() if "float" in name and dtype.itemsize < 4}
DTYPES = {  # of safetensors
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "C64": np.complex64,
}
DIGEST = "sha256"  # key in the metadata of safetensors files that we write, since the format has no checksum


def read_state_dict(path: AnyPath) -> dict[str, np.ndarray]:
    """Read the tensors of a weights file, which must hold one dictionary of them, like `read_selected`."""
    return read_selected(path)[0]


def read_selected(
    path: AnyPath, known: Collection[str] = frozenset(), key: str | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Read the dictionary of tensors in a weights file that `selection.select` takes.

    known: the names of the weights of all known networks; key: the dictionary; None: the choice of `select`. Returns
    the arrays, with floating-point types narrower than float32 as float32, and the remark on the choice. Raises
    UserError for a file that is missing, damaged, or holds anything but tensors.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"the weights file {path} does not exist")
    if path.is_dir() or (os.path.exists(path) and not os.path.isfile(path)):  # reading a named pipe could block
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


def write_state_dict(path: AnyPath, state_dict: dict[str, np.ndarray], *, half: bool = False) -> None:
    """Write float32 tensors to a `.safetensors` file, or under the key `params` to a `.pth` or `.pt` file for PyTorch.

    half: write float16, in a `.safetensors` file only. Raises UserError for another suffix, and for numbers beyond
    float16.
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


def require_written_suffix(path: AnyPath) -> None:
    """Raise UserError unless the suffix of `path` is that of a weights file."""
    if epath.Path(path).suffix.lower() not in WRITTEN_SUFFIXES:
        raise UserError(f"{path} must end in .pth, .pt or .safetensors")


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head`, at least 9 bytes, is of this format: a length of 8 bytes and JSON."""
    return head[8:9] == b"{"


def read_safetensors(data: bytes, path: AnyPath) -> dict[str, np.ndarray]:
    """Return the arrays of the content of a `.safetensors` file; `path` is its name in messages.

    Raises UserError when it is damaged or holds a type that NumPy and ml_dtypes lack.
    """
    try:
        tensors = dict(deserialize(data))
    except (SafetensorError, ValueError) as error:
        raise UserError(
            f"{path} is no readable safetensors file ({shown(str(error))}); download it or save it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: '{shown(name)}' is of the type {tensor['dtype']}, which cannot be read; save it as F32"
            )
    try:
        arrays = {
            name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            for name, tensor in tensors.items()
        }
    except ValueError as error:
        raise UserError(f"{path}: holds a tensor of an impossible shape; download it or save it again") from error
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    digest = header.get("__metadata__", {}).get(DIGEST)
    if digest is not None and digest != _digest(arrays):
        raise UserError(f"{path} is damaged: its arrays are not those that were written; download it or save it again")
    return arrays


def write_safetensors(arrays: dict[str, np.ndarray], path: AnyPath) -> None:
    """Write contiguous arrays to `path`, with a digest of their names, shapes and numbers."""
    save_file(arrays, path, {DIGEST: _digest(arrays)})


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
