"""Whether a checkpoint is damaged: the allowed values of its metadata, and digests of its arrays.

The metadata (JSON) of a checkpoint holds the network's fields ("size"), "train_crop_px", "step", "psnr", the item to be
used ("weights"), and "digests": SHA-256 of the arrays of each item and, as "model", of the rest of the metadata.
Checkpoints of earlier versions have no digests; in them only impossible values are found.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from concertormer_jax.models import Network, create, parameter_shapes, settings_of
from concertormer_jax.runtime.values import shown

_KEYS = {"size", "train_crop_px", "step", "psnr", "weights"}
_EXAMPLES = {"Concertormer": "gopro", "Restormer": "restormer"}  # a variant of each network, for its fields' types
_LARGEST = 2**14  # number in the fields of a network: channels, heads, blocks
_MOST_LEVELS = 16
_LARGEST_STEP = 2**31 - 1


class Damaged(Exception):
    """A checkpoint is damaged; the message says in a few words what is wrong."""


def architecture_dict(module: Network) -> dict[str, Any]:
    """Return the fields that the parameters and the function of `module` depend on, with lists in place of tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings_of(module).items()}


def digest(tree: Any) -> str:
    """Return SHA-256 over path, type, shape and bytes of every array of a tree, whatever containers the tree is of.

    Every array must be whole on the host or on one device.
    """
    arrays = _by_path(jax.device_get(tree))
    with ThreadPoolExecutor() as threads:  # hashing releases Python's lock
        parts = threads.map(_digest_of_array, arrays.keys(), arrays.values())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def with_digests(model: dict, items: dict[str, Any]) -> dict:
    """Return the metadata `model` with the digests of `items` ({name: tree of arrays}) and of itself."""
    digests = {name: digest(tree) for name, tree in items.items()}
    return model | {"digests": digests | {"model": _digest_of_metadata(model, digests)}}


def read_metadata(folder: epath.Path) -> dict:
    """Return the metadata of the checkpoint in `folder`. Raises Damaged unless all its values are possible."""
    try:
        model = json.loads((folder / "model" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise Damaged("its metadata is missing or damaged") from error
    if not isinstance(model, dict) or not _KEYS <= set(model) <= _KEYS | {"digests"}:
        raise Damaged("its metadata is not that of a checkpoint")
    rest, digests = {name: value for name, value in model.items() if name != "digests"}, model.get("digests")
    if digests is not None and (
        not isinstance(digests, dict) or digests.get("model") != _digest_of_metadata(rest, digests)
    ):
        raise Damaged("its metadata differs from its digest")
    _require_possible(rest)
    return model


def module_of(size: dict[str, Any]) -> Network:
    """Return the network with these fields. Raises Damaged when there is none."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in size.items()}
    try:
        return create(None, **fields)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:  # UserError is a ValueError
        raise Damaged(f"its metadata describes no network ({error})") from error


def shapes_of(module: Network) -> dict:
    """Return the shapes of the parameters of `module`. Raises Damaged for a network that cannot be traced."""
    try:
        return parameter_shapes(module)
    except Exception as error:  # JAX and Flax raise many kinds for impossible sizes
        raise Damaged(f"its metadata describes no network ({first_words(error)})") from error


def read_arrays(folder: epath.Path, model: dict, item: str, shapes: Any) -> Any:
    """Return the arrays of an item, as NumPy arrays in a tree like `shapes`. model: the checkpoint's metadata.

    Raises Damaged unless they have these shapes and the digest in the metadata.
    """
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            stored = checkpointer.metadata(folder / item).item_metadata.tree
            _require_same_shapes(item, _by_path(stored), _by_path(shapes))
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
            tree = checkpointer.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Damaged:
        raise
    except Exception as error:  # Orbax, TensorStore and the decompressors raise many kinds
        raise Damaged(f"its {item} cannot be read ({first_words(error)})") from error
    arrays = _by_path(tree)
    _require_same_shapes(item, arrays, _by_path(shapes))
    digests = model.get("digests")
    if digests is not None and digests.get(item) != digest(arrays):
        raise Damaged(f"its {item} differ from their digest")
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], shapes)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by path, sorted. Such a dictionary itself stays as it is."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): leaf for path, leaf in sorted(leaves, key=lambda pair: _name(pair[0]))}


def _digest_of_array(name: str, array: Any) -> bytes:
    array = np.asarray(array)
    found = hashlib.sha256(f"{name}|{array.dtype}|{array.shape}\n".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.digest()


def _digest_of_metadata(model: dict, digests: dict) -> str:
    items = {name: value for name, value in digests.items() if name != "model"}
    return hashlib.sha256(json.dumps([model, items], sort_keys=True).encode()).hexdigest()


def _require_same_shapes(item: str, found: dict, expected: dict) -> None:
    for name in expected.keys() | found.keys():
        one, other = found.get(name), expected.get(name)
        if one is None or other is None:
            raise Damaged(f"its {item} {'lack' if one is None else 'have the unknown'} {name}")
        if tuple(one.shape) != tuple(other.shape) or np.dtype(one.dtype) != np.dtype(other.dtype):
            raise Damaged(f"its {item} have {name} as {one.dtype}{list(one.shape)}")


def _require_possible(model: dict) -> None:
    """Raise Damaged unless the values have the types and ranges that training writes."""
    size, crop, psnr = model["size"], model["train_crop_px"], model["psnr"]
    if model["weights"] not in ("params", "average"):
        raise Damaged(f"its metadata says weights={model['weights']!r}, which can only be params or average")
    if not _is_whole(model["step"], 0, _LARGEST_STEP):
        raise Damaged(f"its metadata says step={model['step']!r}")
    if crop is not None and not _is_whole(crop, 1, 2**20):
        raise Damaged(f"its metadata says train_crop_px={crop!r}")
    if psnr is not None and (isinstance(psnr, bool) or not isinstance(psnr, int | float)):
        raise Damaged(f"its metadata says psnr={psnr!r}")
    network = size.get("network", "Concertormer") if isinstance(size, dict) else None
    if not isinstance(network, str) or network not in _EXAMPLES:
        raise Damaged("its metadata names no known network")
    example = architecture_dict(create(_EXAMPLES[network]))
    for name, value in size.items():
        least = 0 if name.endswith("_blocks") else 1
        if name not in example or not _is_like(value, example[name], least, fraction=name == "expansion"):
            raise Damaged(f"its metadata says {name}={shown(value)} of the network")


def _is_whole(value: object, least: int, largest: int) -> bool:
    return type(value) is int and least <= value <= largest


def _is_like(value: Any, example: object, least: int, fraction: bool) -> bool:
    """Whether `value` has the type of `example`, and numbers from `least` to `_LARGEST`.

    fraction: whether numbers may have a fraction.
    """
    if isinstance(example, list):
        fits = isinstance(value, list) and len(value) <= _MOST_LEVELS
        return fits and all(_is_like(entry, example[0], least, fraction) for entry in value)
    if isinstance(example, bool | str):
        return type(value) is type(example)
    return (type(value) is int or (fraction and type(value) is float)) and least <= value <= _LARGEST


def first_words(error: Exception) -> str:
    """Return the first line of an error's text, without the source locations that TensorStore adds."""
    return str(error).partition(" [source locations")[0].partition("\n")[0][:200] or type(error).__name__
