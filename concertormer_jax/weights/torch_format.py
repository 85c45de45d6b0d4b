"""PyTorch's `.pth` files, read and written without PyTorch: a zip archive of raw arrays and a pickle on the tensors."""

import errno
import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.weights.torch_pickle import RefusedError, Tensor, read_pickle

MAX_PICKLE_BYTES = 2**26
ZIP_SIGNATURE = b"PK"
PICKLE_SIGNATURE = b"\x80\x02"  # files of PyTorch before 1.6 begin with it
ZIP_ERRORS = (  # that zipfile raises for damaged archives
    zipfile.BadZipFile,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    OverflowError,
    RuntimeError,
    struct.error,
)


class TorchFile:
    """An open `.pth` file.

    content: dictionaries, lists and values, with a `Tensor` for each tensor; `arrays` reads the numbers of these.
    Raises UserError when the file is damaged or holds anything but tensors, values and containers.
    """

    def __init__(self, file: IO[bytes], path: AnyPath):
        """file: open for reading; path: its name in messages."""
        self.path = path
        try:
            self.archive = zipfile.ZipFile(file)
            members = self.archive.infolist()
        except ZIP_ERRORS as error:
            raise self._damaged(error) from error
        self.size = file.seek(0, io.SEEK_END)
        self.sizes = {member.filename: member.file_size for member in members}
        self._check_members(members)
        pickles = [name for name in self.sizes if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is no PyTorch weights file: it must hold one data.pkl, not {len(pickles)}")
        self.root = pickles[0].removesuffix("data.pkl")
        if f"{self.root}byteorder" in self.sizes and self._member("byteorder") != b"little":
            raise UserError(f"{path} was saved in big-endian byte order; save it again on a little-endian machine")
        if self.sizes[pickles[0]] > MAX_PICKLE_BYTES:
            raise self._refused(f"a pickle of {self.sizes[pickles[0]]:,} bytes")
        prefix = f"{self.root}data/"
        storages = {name.removeprefix(prefix): size for name, size in self.sizes.items() if name.startswith(prefix)}
        try:
            self.content = read_pickle(self._member("data.pkl"), storages)
        except RefusedError as error:
            raise self._refused(error) from error

    def arrays(self, tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """Read the numbers of some tensors. Raises UserError for damaged ones, and for more than the file can hold."""
        if sum(tensor.nbytes for tensor in tensors.values()) > self.size:
            raise self._refused("tensors that repeat each other's numbers")
        storages = {}
        for tensor in tensors.values():
            key = tensor.storage.key
            if key not in storages:
                storages[key] = self._member(f"data/{key}")
        return {name: tensor.array(storages[tensor.storage.key]) for name, tensor in tensors.items()}

    def _check_members(self, members: list[zipfile.ZipInfo]) -> None:
        if len(self.sizes) != len(members):
            raise self._refused("two members of one name")
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise self._refused("compressed members, which torch.save does not write")
        if any(member.compress_size != member.file_size for member in members):
            raise self._refused("members of two sizes")
        if sum(self.sizes.values()) > self.size:
            raise self._refused("members that overlap")

    def _member(self, name: str) -> bytes:
        try:
            return self.archive.read(f"{self.root}{name}")
        except ZIP_ERRORS as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: a seek before the beginning
            return error
        return UserError(f"{self.path} is damaged or incomplete; download or save it again")

    def _refused(self, reason: object) -> UserError:
        return UserError(
            f"{self.path} is refused, because a weights file must not contain {reason}; save the state dictionary alone"
        )


def write_torch_file(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Write contiguous float32 arrays to `path` as `torch.save` does, under the key `params`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("weights/data.pkl", _pickled(arrays))
        archive.writestr("weights/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"weights/data/{key}", array.tobytes())
        archive.writestr("weights/version", "3\n")


def _pickled(arrays: dict[str, np.ndarray]) -> bytes:
    """The pickle of {"params": {name: tensor}}, written opcode by opcode, since the classes in it are PyTorch's."""
    out = io.BytesIO()

    def text(value: str) -> None:
        data = value.encode()
        out.write(b"X" + struct.pack("<I", len(data)) + data)

    def integer(value: int) -> None:
        out.write(b"\x8a\x08" + struct.pack("<q", value))

    def integers(values: Iterable[int]) -> None:
        out.write(b"(")
        for value in values:
            integer(value)
        out.write(b"t")

    out.write(b"\x80\x02}")
    text("params")
    out.write(b"}")
    for key, (name, array) in enumerate(arrays.items()):
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
