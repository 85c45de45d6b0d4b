"""PyTorch's weights files, written without PyTorch and with any content."""

import io
import pickle
import sys
import types
import zipfile
from unittest import mock

import numpy as np

TORCH, TORCH_UTILS, TORCH_STORAGE, PATHLIB_OF_3_13 = MODULES = [
    sys.modules.get(name) or types.ModuleType(name)
    for name in ("torch", "torch._utils", "torch.storage", "pathlib._local")
]
NAMES = {
    TORCH: ("FloatStorage", "HalfStorage", "CharStorage", "float32", "float8_e4m3fn", "Size", "load"),
    TORCH_UTILS: ("_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter", "_rebuild_tensor"),
    TORCH_STORAGE: ("UntypedStorage",),
    PATHLIB_OF_3_13: ("PosixPath",),
}
for module, names in NAMES.items():
    for name in names:
        if not hasattr(module, name):
            setattr(module, name, type(name, (), {"__module__": module.__name__}))


class Storage:
    """Stands for a storage of a file, of `size` numbers."""

    def __init__(self, size, kind="storage", key="0", name=TORCH.FloatStorage):
        self.identifier = (kind, name, key, "cpu", size)


class Call:
    """Stands for what a name in the file returns for some arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def tensor(storage, offset, shape, stride, *more):
    """Stands for a tensor; more: further arguments of the function that rebuilds it."""
    return Call(TORCH_UTILS._rebuild_tensor_v2, storage, offset, shape, stride, False, {}, *more)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Storage) else None


def pickled(content) -> bytes:
    """The pickle of an object."""
    data = io.BytesIO()
    # Names of PyTorch, which is not installed, and of another Python can be written while they can be imported.
    with mock.patch.dict(sys.modules, {module.__name__: module for module in MODULES}):
        _Pickler(data, protocol=2).dump(content)
    return data.getvalue()


def write_pth(path, content, storages=None):
    """Write a file like PyTorch's, of any `content`, an object or a pickle.

    storages: bytes by key; by default the numbers 0 to 5 under `0`.
    """
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickled(content))
        for key, data in (storages or {"0": np.arange(6, dtype=np.float32).tobytes()}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path
