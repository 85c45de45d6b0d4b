"""Whether a checkpoint is whole: what its metadata may say, and digests of its arrays.

The metadata (JSON) of a checkpoint holds the network's fields ("size"), "train_crop_px", "step", "psnr", which item is
to be used ("weights"), and "digests": SHA-256 of the arrays of each item and, as "model", of all the rest of the
metadata. Checkpoints of earlier versions have no digests; of them only what cannot be is noticed.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from concertormer_jax.models import Network, create, parameter_shapes, settings_of

_KEYS = {"size", "train_crop_px", "step", "psnr", "weights"}
_EXAMPLES = {"Concertormer": "gopro", "Restormer": "restormer"}  # a variant of each network, with all its fields
_LARGEST = 2**14  # of any number in the fields of a network: channels, heads, blocks
_LEVELS = 16
_LARGEST_STEP = 2**31 - 1


class Damaged(Exception):
    """What is wrong with a checkpoint, in a few words."""


def architecture_dict(module: Network) -> dict:
    """The fields of `module` that its parameters and its function depend on, as JSON keeps them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings_of(module).items()}


def digest(tree) -> str:
    """SHA-256 over path, type, shape and bytes of every array of a tree; the arrays are whole on the host or a device.

    The kinds of the containers do not matter.
    """
    arrays = _by_path(jax.device_get(tree))
    with ThreadPoolExecutor() as threads:  # hashing lets the other threads run
        parts = threads.map(_digest_of_array, arrays.keys(), arrays.values())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def with_digests(model: dict, items: dict) -> dict:
    """The metadata `model` with the digests of `items` ({name: tree of arrays}) and of itself."""
    digests = {name: digest(tree) for name, tree in items.items()}
    return model | {"digests": digests | {"model": _digest_of_metadata(model, digests)}}


def read_metadata(folder: epath.Path) -> dict:
    """The metadata of the checkpoint in `folder`. Raises Damaged unless all that it says can be."""
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


def module_of(size: dict) -> Network:
    """The network with these fields. Raises Damaged when there is none."""
    try:
        return create(None, **{name: tuple(v) if isinstance(v, list) else v for name, v in size.items()})
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:  # UserError is a ValueError
        raise Damaged(f"its metadata describes no network ({error})") from error


def shapes_of(module: Network) -> dict:
    """The parameters of `module` as shapes. Raises Damaged for a network that cannot be traced."""
    try:
        return parameter_shapes(module)
    except Exception as error:  # of impossible sizes; JAX and Flax raise many kinds
        raise Damaged(f"its metadata describes no network ({first_words(error)})") from error


def read_arrays(folder: epath.Path, model: dict, item: str, shapes):
    """The arrays of an item, as NumPy arrays in a tree like `shapes`. Raises Damaged unless they are what was saved.

    model: the checkpoint's metadata.
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


def _name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree) -> dict:
    """The leaves of a tree by path, in order. What is such a dictionary already stays as it is."""
    return {_name(path): leaf for path, leaf in sorted(_leaves(tree), key=lambda pair: _name(pair[0]))}


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def _digest_of_array(name: str, array) -> bytes:
    array = np.asarray(array)
    found = hashlib.sha256(f"{name}|{array.dtype}|{array.shape}\n".encode())
    found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
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
    """Raise Damaged unless the values have types and ranges that training writes."""
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
            raise Damaged(f"its metadata says {name}={_shortened(value)} of the network")


def _is_whole(value, least: int, largest: int) -> bool:
    return type(value) is int and least <= value <= largest


def _is_like(value, example, least: int, fraction: bool) -> bool:
    """Whether `value` is of the type of `example`, with numbers from `least` to the largest of any network.

    fraction: whether a number need not be whole.
    """
    if isinstance(example, list):
        fits = isinstance(value, list) and len(value) <= _LEVELS
        return fits and all(_is_like(entry, example[0], least, fraction) for entry in value)
    if isinstance(example, bool | str):
        return type(value) is type(example)
    return (type(value) is int or (fraction and type(value) is float)) and least <= value <= _LARGEST


def _shortened(value) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def first_words(error: Exception) -> str:
    """What an error says, without the lists of source lines that TensorStore adds."""
    return str(error).partition(" [source locations")[0].partition("\n")[0][:200] or type(error).__name__
