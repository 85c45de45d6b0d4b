"""Reading and writing PyTorch weights files without PyTorch.

A `.pth` file is a zip archive of raw arrays and a pickle, and a pickle can run any program. The reader knows only the
few names that a file of tensors needs and refuses every other.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from concertormer_jax.errors import UserError
from concertormer_jax.files import written_atomically

STORAGE_TYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
}


class _RefusedError(Exception):
    """What a weights file must not contain."""


def _rebuild_tensor(storage, offset, shape, stride, requires_grad=False, hooks=None, metadata=None):
    itemsize = storage.dtype.itemsize
    if offset < 0 or len(shape) != len(stride) or any(n < 0 for n in (*shape, *stride)):
        raise _RefusedError("a tensor with an impossible shape")
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else -1
    if last >= storage.size:
        raise _RefusedError("a tensor that reaches outside its storage")
    if math.prod(shape) > storage.size:  # its elements would have to be repeated, to any size
        raise _RefusedError("a tensor with more elements than its storage")
    strides = tuple(s * itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False).copy()


def _rebuild_parameter(tensor, requires_grad=False, hooks=None):
    return tensor


ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in STORAGE_TYPES.items()},
}


class _WeightsUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(data))
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise _RefusedError(f"the name {module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, identifier):
        kind, dtype, key, _, size = identifier
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise _RefusedError(f"an object of kind {kind!r}")
        if key not in self.storages:
            data = np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), dtype)
            if data.size != size:
                raise _RefusedError(f"a storage of {data.size} numbers where {size} are announced")
            self.storages[key] = data
        return self.storages[key]


def _read_pth(path: Path):
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path} is no PyTorch weights file: it must hold one data.pkl, not {len(pickles)}")
            root = pickles[0].rsplit("/", 1)[0]
            order = f"{root}/byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise UserError(f"{path} was saved in big-endian byte order; save it again on a little-endian machine")
            return _WeightsUnpickler(archive.read(pickles[0]), archive, root).load()
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{path} is damaged or older than PyTorch 1.6; download it again or save it with a newer PyTorch"
        ) from error
    except (UserError, PermissionError):
        raise
    except _RefusedError as error:
        raise UserError(f"{path} is refused, because a weights file must not contain {error}") from error
    except Exception as error:  # a crafted pickle can fail in any way inside the unpickler
        raise UserError(f"{path} is refused, because its pickle is malformed ({error})") from error


def read_state_dict(path) -> dict[str, np.ndarray]:
    """Read the tensors of a `.safetensors` file, or of a `.pth`, `.pt` or `.ckpt` file saved by PyTorch 1.6 or newer.

    A dictionary under the key `params`, `state_dict` or `params_ema` is taken out; half precision becomes float32.
    Raises UserError for a file that is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist")
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{path} is no readable safetensors file ({error}); download it again") from error
    else:
        content = _read_pth(path)
    for key in ("params", "params_ema", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(array, np.ndarray) for array in content.values()):
        raise UserError(f"{path} holds no dictionary of tensors, alone or under the key 'params'")
    return {name: array.astype(np.float32) if array.dtype.itemsize == 2 else array for name, array in content.items()}


def _pickled(names_and_arrays) -> bytes:
    """The pickle of {"params": {name: tensor}}, written by hand, since the real classes live in PyTorch."""
    out = io.BytesIO()

    def text(value):
        data = value.encode()
        out.write(b"X" + struct.pack("<I", len(data)) + data)

    def integer(value):
        out.write(b"\x8a\x08" + struct.pack("<q", value))

    def integers(values):
        out.write(b"(")
        for value in values:
            integer(value)
        out.write(b"t")

    out.write(b"\x80\x02}")
    text("params")
    out.write(b"}")
    for key, (name, array) in enumerate(names_and_arrays):
        text(name)
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        text("storage")
        out.write(b"ctorch\nFloatStorage\n")
        text(str(key))
        text("cpu")
        integer(array.size)
        out.write(b"tQ")
        integer(0)
        integers(array.shape)
        integers(stride // 4 for stride in array.strides)
        out.write(b"\x89ccollections\nOrderedDict\n)RtRs")
    out.write(b"s.")
    return out.getvalue()


def write_state_dict(path, state_dict: dict[str, np.ndarray]) -> None:
    """Write float32 tensors to a `.safetensors` file, or to a `.pth` file that `torch.load` reads, under `params`.

    Raises UserError for another suffix.
    """
    path = Path(path)
    arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in state_dict.items()}
    if path.suffix not in (".safetensors", ".pth"):
        raise UserError(f"{path} must end in .pth or .safetensors")
    with written_atomically(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(arrays, temporary)
            return
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("weights/data.pkl", _pickled(arrays.items()))
            archive.writestr("weights/byteorder", "little")
            for key, array in enumerate(arrays.values()):
                archive.writestr(f"weights/data/{key}", array.tobytes())
            archive.writestr("weights/version", "3\n")
