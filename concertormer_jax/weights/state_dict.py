"""Weights files: `.safetensors`, and PyTorch's `.pth` (`.pt`, `.ckpt`, `.bin`); the content says which of the two.

Trainers save the weights under many keys, several times (with a moving average), with prefixes before their names, and
with counters between them. One rule serves all: every dictionary of tensors in the file, with every prefix before names
of a known network, is a candidate. Candidates with at least half as many such names as the best one are considered. Of
these the moving average is taken, since papers evaluate that, and else the only one.
"""

import hashlib
import json
import os
import re
from collections import Counter, deque
from collections.abc import Collection
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.weights.torch_format import PICKLE_SIGNATURE, ZIP_SIGNATURE, TorchFile, write_torch_file
from concertormer_jax.weights.torch_pickle import DTYPES as TORCH_DTYPES
from concertormer_jax.weights.torch_pickle import Tensor, shown

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
# Keys in the metadata of safetensors files that we write.
DIGEST = "sha256"  # the format has no checksum of its own
TRAIN_CROP = "train_crop_px"  # the largest crop of the training, from which the window of TLC follows
MAX_DEPTH = 4  # of dictionaries in dictionaries
MAX_KEY = 100  # characters in the key of a dictionary
MAX_PREFIXES = 8  # candidates in one dictionary
COUNTERS = ("total_ops", "total_params")  # buffers that the package thop leaves in every layer
OPTIMIZER = re.compile(r"optimizer|optim_|(?:^|\.)optim(?:\.|$)", re.IGNORECASE)
AVERAGE = re.compile(r"(?:^|[^A-Za-z])ema(?:[^A-Za-z]|$)|EMA|Ema|averaged")


def read_state_dict(path: AnyPath) -> dict[str, np.ndarray]:
    """Read the tensors of a weights file, which must hold one dictionary of them, like `read_selected`."""
    return read_selected(path)[0]


def read_selected(
    path: AnyPath, known: Collection[str] = frozenset(), key: str | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Read the dictionary of tensors in a weights file that `select` takes.

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


def write_state_dict(
    path: AnyPath, state_dict: dict[str, np.ndarray], *, half: bool = False, train_crop_px: int | None = None
) -> None:
    """Write float32 tensors to a `.safetensors` file, or under the key `params` to a `.pth` or `.pt` file for PyTorch.

    half: write float16, in a `.safetensors` file only. train_crop_px: the largest crop of the training, which a
    `.safetensors` file keeps. Raises UserError for another suffix, and for numbers beyond float16.
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
    with written_atomically(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            crop = {} if train_crop_px is None else {TRAIN_CROP: str(train_crop_px)}
            write_safetensors(arrays, temporary, crop)
        else:
            write_torch_file(arrays, temporary)


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
    digest = _metadata(data).get(DIGEST)
    if digest is not None and digest != _digest(arrays):
        raise UserError(f"{path} is damaged: its arrays are not those that were written; download it or save it again")
    return arrays


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in `data`, the content of a whole `.safetensors` file."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header.get("__metadata__", {})


def train_crop_of(path: AnyPath) -> int | None:
    """Return the largest crop of the training in pixels, if `path` is a `.safetensors` file that says it.

    The file must be one that `read_selected` has read. Raises UserError for what is no size of a crop.
    """
    data = epath.Path(path).read_bytes()
    if not looks_like_safetensors(data[:9]) or (crop := _metadata(data).get(TRAIN_CROP)) is None:
        return None
    if not re.fullmatch("[1-9][0-9]{0,4}", crop):
        raise UserError(f"{path}: {TRAIN_CROP} in its metadata is {shown(repr(crop))}; write pixels, or leave it out")
    return int(crop)


def write_safetensors(arrays: dict[str, np.ndarray], path: AnyPath, metadata: dict[str, str] | None = None) -> None:
    """Write contiguous arrays to `path`, with `metadata` and a digest of their names, shapes and numbers."""
    save_file(arrays, path, {DIGEST: _digest(arrays), **(metadata or {})})


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Selection(NamedTuple):
    """The chosen tensors (`Tensor` or NumPy arrays, as in the file) by the network's names, and a remark on the choice.

    remark: "" for a file with one dictionary and no prefix.
    """

    tensors: dict[str, Any]
    remark: str


class _Candidate(NamedTuple):
    """A dictionary with one prefix. key: the keys that lead to it, joined by dots, "" for the file itself; hits: how
    many of its names are a known network's.
    """

    key: str
    prefix: str
    tensors: dict[str, Any]
    hits: int

    @property
    def label(self) -> str:
        return ".".join(part for part in (self.key, self.prefix.rstrip(".")) if part)


def select(content: Any, path: AnyPath, known: Collection[str], key: str | None = None) -> Selection:
    """Choose among the dictionaries of tensors in a file's `content`; `path` is its name in messages.

    known: the names of the weights of all known networks; if empty, every dictionary is considered. key: the keys that
    lead to a dictionary, joined by dots. Raises UserError when there is no such dictionary, or when the rule leaves
    several.
    """
    dictionaries = _dictionaries(content)
    if not dictionaries:
        raise UserError(f"{path} holds no dictionary of tensors")
    candidates = [candidate for way, tensors in dictionaries.items() for candidate in _candidates(way, tensors, known)]
    most = max(candidate.hits for candidate in candidates)
    considered = [candidate for candidate in candidates if 2 * candidate.hits >= most]
    if key is not None:
        named = [c for c in candidates if c.label == key] or [c for c in candidates if c.key == key]
        if not named:
            raise UserError(f"{path} holds no dictionary of tensors {key!r}; choose from {_listed(candidates)}")
        chosen = max(named, key=lambda candidate: candidate.hits)
    else:
        meant = [candidate for candidate in considered if AVERAGE.search(candidate.label)] or considered
        if len(meant) > 1:
            raise UserError(f"{path} holds several networks, {_listed(meant)}; convert one with --key=NAME")
        (chosen,) = meant
    return _selection(chosen, [candidate for candidate in considered if candidate is not chosen])


def _dictionaries(content: Any) -> dict[str, dict[str, Any]]:
    """The tensors of every dictionary in `content` that holds any, by the keys that lead to it."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    queue = deque([("", content, 0)] if type(content) is dict else [])
    while queue:
        way, value, depth = queue.popleft()
        if id(value) in seen or OPTIMIZER.search(way):
            continue
        seen.add(id(value))
        tensors = {name: tensor for name, tensor in value.items() if isinstance(tensor, Tensor | np.ndarray)}
        if tensors:
            found.setdefault(way, tensors)
        if depth < MAX_DEPTH:
            inner = [(name, child) for name, child in value.items() if type(child) is dict and len(name) <= MAX_KEY]
            queue.extend((f"{way}.{name}" if way else name, child, depth + 1) for name, child in inner)
    return found


def _candidates(way: str, tensors: dict[str, Any], known: Collection[str]) -> list[_Candidate]:
    parts = max((name.count(".") for name in known), default=0)
    hits: Counter[str] = Counter()
    for name in tensors:
        pieces = name.rsplit(".", parts + 1)[-parts - 1 :]
        for start in range(len(pieces)):
            ours = ".".join(pieces[start:])
            if ours in known:
                hits[name.removesuffix(ours)] += 1
                break
    if not hits:
        return [_Candidate(way, "", tensors, 0)]
    return [_Candidate(way, prefix, tensors, count) for prefix, count in hits.most_common(MAX_PREFIXES)]


def _selection(chosen: _Candidate, others: list[_Candidate]) -> Selection:
    """Take the network's tensors out of the chosen dictionary, and say what else is in the file."""
    prefixes = {chosen.prefix, *(other.prefix for other in others if other.key == chosen.key)}
    kept, counters, surplus = {}, 0, []
    for name, tensor in chosen.tensors.items():
        owner = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if name.rsplit(".", 1)[-1] in COUNTERS:
            counters += 1
        elif owner == chosen.prefix:
            kept[name.removeprefix(owner)] = tensor
        elif owner is None:
            surplus.append(name)
    remarks = []
    if chosen.key or others:
        remarks.append(f"took {_listed([chosen])}" + (f", not {_listed(others)}" if others else ""))
    if chosen.prefix:
        remarks.append(f"without the prefix '{shown(chosen.prefix)}'")
    if counters:
        remarks.append(f"left out {counters:,} counters ({', '.join(COUNTERS)})")
    if surplus:
        more = f" and {len(surplus) - 1:,} more" if len(surplus) > 1 else ""
        remarks.append(f"left out '{shown(surplus[0])}'{more}, not under that prefix")
    return Selection(kept, "; ".join(remarks))


def _listed(candidates: list[_Candidate]) -> str:
    labels = [f"'{shown(candidate.label)}'" if candidate.label else "what has no key" for candidate in candidates]
    return ", ".join(labels[:6]) + (f" and {len(labels) - 6} more" if len(labels) > 6 else "")
