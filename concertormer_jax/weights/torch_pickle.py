"""The pickle inside a PyTorch file, read without calling anything that it names.

A pickle is a program for a stack machine. Python's machine imports whatever the program names and calls it. This one
runs only the opcodes that `torch.save` writes and makes an inert token of each name, if it is in a short list. It
builds dictionaries, lists, tuples, numbers and text, and for each tensor says where its numbers lie in the file.
"""

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

MAX_OPCODES = 1_000_000  # several times those of a large network and its optimizer
MAX_COUNT = 2**48  # in a shape, a stride or an offset
MAX_DIMENSIONS = 32

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint64": np.dtype(np.uint64),
    "uint32": np.dtype(np.uint32),
    "uint16": np.dtype(np.uint16),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}
STORAGE_DTYPES = {
    ("torch", "DoubleStorage"): DTYPES["float64"],
    ("torch", "FloatStorage"): DTYPES["float32"],
    ("torch", "HalfStorage"): DTYPES["float16"],
    ("torch", "BFloat16Storage"): DTYPES["bfloat16"],
    ("torch", "LongStorage"): DTYPES["int64"],
    ("torch", "IntStorage"): DTYPES["int32"],
    ("torch", "ShortStorage"): DTYPES["int16"],
    ("torch", "CharStorage"): DTYPES["int8"],
    ("torch", "ByteStorage"): DTYPES["uint8"],
    ("torch", "BoolStorage"): DTYPES["bool"],
    ("torch", "ComplexFloatStorage"): DTYPES["complex64"],
    ("torch", "ComplexDoubleStorage"): DTYPES["complex128"],
    ("torch.storage", "UntypedStorage"): DTYPES["uint8"],
}
PATHLIB = ("pathlib", "pathlib._local")  # the second in Python 3.13
# Classes of objects that trainers save beside the weights; these objects are left out.
IGNORED_NAMES = {
    ("argparse", "Namespace"),
    ("builtins", "list"),
    ("__builtin__", "list"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    *((module, name) for module in PATHLIB for name in ("Path", "PosixPath", "WindowsPath")),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("torch", "Size"),
    ("torch", "device"),
    *(("torch", name) for name in DTYPES),
}


class RefusedError(Exception):
    """The file contains what a weights file must not contain; the message is a noun phrase for that."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name in the pickle, in place of the object that Python would import."""

    module: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        return self.module, self.name


class _Ignored:
    """The place of an object that is left out."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """`size` numbers of `dtype`, in the archive's member `key`."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage that lies within it. offset, stride: counted in numbers of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that its array takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: bytes) -> np.ndarray:
        """Return the array, a read-only view of `data`, the bytes of the storage; NumPy checks its bounds."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.dtype)
        strides = [step * self.dtype.itemsize for step in self.stride]
        return np.ndarray(self.shape, self.dtype, data, self.offset * self.dtype.itemsize, strides)


def shown(text: str) -> str:
    """Return a foreign text for a message: on one line, of at most 80 characters, control characters as escapes."""
    return repr(text if len(text) <= 80 else f"{text[:77]}...")[1:-1]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def _tensor(storage: Storage, dtype: np.dtype, offset: Any, shape: Any, stride: Any, metadata: Any) -> Tensor:
    if metadata:
        raise RefusedError("a tensor that is stored negated or conjugated")
    counts = [offset, *shape, *stride] if type(shape) is type(stride) is tuple else [None]
    if not all(map(_is_count, counts)) or len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise RefusedError("a tensor of an impossible shape")
    if math.prod(max(n, 1) for n in shape) > MAX_COUNT:
        raise RefusedError("a tensor of an impossible shape")
    available = storage.size * storage.dtype.itemsize // dtype.itemsize
    if all(shape) and offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= available:
        raise RefusedError("a tensor that reaches outside its storage")
    if math.prod(shape) > available:  # strides of 0 repeat elements, so a small file could fill the memory
        raise RefusedError("a tensor with more elements than its storage")
    return Tensor(storage, dtype, offset, shape, stride)


def _rebuild_tensor_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    if type(storage) is not Storage:
        raise RefusedError("a tensor without a storage")
    return _tensor(storage, storage.dtype, offset, shape, stride, metadata)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Tensor:
    if type(storage) is not Storage:
        raise RefusedError("a tensor without a storage")
    if type(dtype) is not _Name or dtype.module != "torch" or dtype.name not in DTYPES:
        raise RefusedError("a tensor of an unknown type")
    return _tensor(storage, DTYPES[dtype.name], offset, shape, stride, metadata)


def _rebuild_parameter(tensor: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Tensor:
    if type(tensor) is not Tensor:
        raise RefusedError("a parameter without a tensor")
    return tensor


CALLS = {
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
}
KNOWN_NAMES = CALLS.keys() | STORAGE_DTYPES.keys() | IGNORED_NAMES


class _Machine:
    """Runs one pickle. `storage_bytes` says how many bytes the file holds of each storage."""

    def __init__(self, storage_bytes: Mapping[str, int]):
        self.storage_bytes = storage_bytes
        self.stack: list = []
        self.outer_stacks: list[list] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Return the object that the pickle describes."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count == MAX_OPCODES:
                raise RefusedError(f"a pickle of more than {MAX_OPCODES:,} opcodes")
            if opcode.name in LITERALS:
                self.stack.append(argument)
            elif opcode.name in ACTIONS:
                ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise RefusedError(f"the pickle opcode {opcode.name}")
        return self.stack.pop()

    def mark(self, _: object) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def items(self) -> list:
        """Remove and return what lies above the last mark."""
        items, self.stack = self.stack, self.outer_stacks.pop()
        return items

    def tuple_of(self, items: list) -> None:
        self.stack.append(tuple(items))

    def last(self, count: int) -> list:
        return [self.stack.pop() for _ in range(count)][::-1]

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not _Ignored:
            raise RefusedError("items of what is no list")

    def update(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            # Entries with numbers for keys are an optimizer's. They are left out: numbers can be made to collide.
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((name, value) for name, value in pairs if type(name) is str)
        elif type(target) is not _Ignored:
            raise RefusedError("entries of what is no dictionary")

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def name(self, module: str, name: str) -> None:
        if (module, name) not in KNOWN_NAMES:
            raise RefusedError(f"the name {shown(module)}.{shown(name)}")
        self.stack.append(_Name(module, name))

    def name_on_stack(self, _: object) -> None:
        module, name = self.last(2)
        if type(module) is not str or type(name) is not str:
            raise RefusedError("a name that is no text")
        self.name(module, name)

    def call(self, _: object) -> None:
        function, arguments = self.last(2)
        if type(function) is not _Name or type(arguments) is not tuple:
            raise RefusedError("a call of what is no function")
        if function.key in STORAGE_DTYPES:
            raise RefusedError(f"a call of {function.module}.{function.name}")
        self.stack.append(CALLS[function.key](*arguments) if function.key in CALLS else _Ignored())

    def set_state(self, _: object) -> None:
        target, _state = self.last(2)
        if type(target) not in (dict, _Ignored):  # PyTorch attaches a version to state dictionaries
            raise RefusedError("a state of what has none")
        self.stack.append(target)

    def storage(self, _: object) -> None:
        identifier = self.stack.pop()
        if type(identifier) is not tuple or len(identifier) != 5:
            raise RefusedError("an object that is no storage")
        kind, name, key, _device, size = identifier
        if kind != "storage" or type(name) is not _Name or name.key not in STORAGE_DTYPES:
            raise RefusedError("an object that is no storage")
        if type(key) is not str or key not in self.storage_bytes:
            raise RefusedError("a storage that is not in the file")
        if not _is_count(size):
            raise RefusedError("a storage of an impossible size")
        dtype = STORAGE_DTYPES[name.key]
        held = self.storage_bytes[key]
        if held != size * dtype.itemsize:
            raise RefusedError(f"a storage of {held} bytes where {size * dtype.itemsize} are announced")
        self.stack.append(Storage(key, dtype, size))


LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append(_Ignored()),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE": lambda machine, _: machine.tuple_of(machine.items()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.last(3)),
    "APPEND": lambda machine, _: machine.extend(machine.last(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.items()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.items()),
    "SETITEM": lambda machine, _: machine.update(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.items()),
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": _Machine.name_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.storage,
}


def read_pickle(data: bytes, storage_bytes: Mapping[str, int]) -> Any:
    """Return the content of a PyTorch file: dictionaries, lists, tuples, numbers and text, and `Tensor`s.

    data: the pickle; storage_bytes: the bytes of each storage in the file. Dictionaries keep the entries whose key is a
    text. Raises RefusedError for everything that a file of tensors does not need.
    """
    try:
        return _Machine(storage_bytes).run(data)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise RefusedError("a malformed pickle") from error
