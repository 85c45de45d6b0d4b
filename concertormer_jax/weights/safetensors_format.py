"""`.safetensors` files, of every type that ml_dtypes has."""

import hashlib
import json

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from concertormer_jax.errors import UserError
from concertormer_jax.weights.torch_pickle import shown

DTYPES = {
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
DIGEST = "sha256"  # in the metadata of files that we write: the format has no check of its own


def looks_like_safetensors(head: bytes) -> bool:
    """Whether a file that begins with `head` (9 bytes or more) is of this format: a length and JSON."""
    return head[8:9] == b"{"


def read_safetensors(data: bytes, path) -> dict[str, np.ndarray]:
    """The arrays of a file's content `data`; `path` is its name in messages.

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


def write_safetensors(arrays: dict[str, np.ndarray], path) -> None:
    """Write contiguous arrays to `path`, with a digest of their names, shapes and numbers."""
    save_file(arrays, path, {DIGEST: _digest(arrays)})


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
