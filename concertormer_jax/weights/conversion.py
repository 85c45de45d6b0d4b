"""Conversion of the published PyTorch weights, of Concertormer and Restormer, to our parameter tree and back.

`mappings` says how the two differ.
"""

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.models import (
    VARIANTS,
    Architecture,
    Concertormer,
    Network,
    Restormer,
    create,
    parameter_shapes,
    variant_name,
)
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath
from concertormer_jax.weights.mappings import Mapping, concertormer_fields, mappings_of, restormer_fields
from concertormer_jax.weights.state_dict import read_selected, train_crop_of
from concertormer_jax.weights.torch_pickle import shown

# Cached, since tracing a network takes seconds. Linen makes modules hashable, which ty does not know.
_our_shapes: Callable[[Network], dict] = functools.lru_cache(4)(parameter_shapes)  # ty: ignore[invalid-assignment]

# The training size that the published TLC windows of Concertormer refer to, and the largest crop of Restormer.
PUBLISHED_TRAIN_CROP_PX: dict[type[Network], int] = {Concertormer: 256, Restormer: 384}
NAMES_IN_A_MESSAGE = 3


def is_published(module: Network) -> bool:
    """Whether weights of the architecture of `module`, if not of its size, were published."""
    return module.attention == "transposed" if isinstance(module, Restormer) else module.architecture == Architecture()


PUBLISHED = [variant for variant in VARIANTS if is_published(create(variant))]


def mappings(module: Network) -> list[Mapping]:
    """Return `mappings_of(module)`. Raises UserError for an architecture that was not published."""
    if not is_published(module):
        raise UserError(
            f"the {variant_name(module)} network is a form that was never published, so there are no names to convert "
            "it to"
        )
    return mappings_of(module)


@functools.cache
def published_names() -> dict[str, frozenset[str]]:
    """Return the names of the weights of every published variant."""
    return {variant: frozenset(m.torch_name for m in mappings(create(variant))) for variant in PUBLISHED}


def read(params: dict, mapping: Mapping) -> np.ndarray:
    """Return the array of `mapping` from our parameters, in its published layout."""
    parts = [np.asarray(leaf if mapping.index is None else leaf[mapping.index]) for leaf in _leaves(params, mapping)]
    return np.ascontiguousarray(mapping.to_torch(np.concatenate(parts, axis=-1)))


def write(params: dict, mapping: Mapping, array: np.ndarray) -> None:
    """Write an array in published layout into our parameters, a tree of NumPy arrays, in place."""
    leaves = _leaves(params, mapping)
    ends = np.cumsum([leaf.shape[-1] for leaf in leaves])[:-1]
    for leaf, part in zip(leaves, np.split(mapping.to_ours(array), ends, axis=-1), strict=True):
        leaf[... if mapping.index is None else mapping.index] = part


def _leaves(params: dict, mapping: Mapping) -> list[Any]:
    return [functools.reduce(operator.getitem, path, params) for path in mapping.paths]


def _require_same_shapes(found: dict[str, tuple], expected: dict[str, tuple], hint: Callable[[], str]) -> None:
    missing = [name for name in expected if name not in found]
    surplus = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {found[name]} in place of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    kinds = {"missing": missing, "surplus": surplus, "of another shape": misshapen}
    problems = [f"{len(names):,} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if problems:
        raise UserError(f"the weights are not those of this network: {', '.join(problems)}{hint()}")


def _first(names: list[str]) -> str:
    more = ["..."] if len(names) > NAMES_IN_A_MESSAGE else []
    return ", ".join([*map(shown, names[:NAMES_IN_A_MESSAGE]), *more])


def _shapes(tree: Any) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def published_shapes(module: Network) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of `module` under its published name."""
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), _our_shapes(module))
    return {mapping.torch_name: read(zeros, mapping).shape for mapping in mappings(module)}


def torch_from_params(params: dict, module: Network) -> dict[str, np.ndarray]:
    """Return the state dictionary of the published model from our parameters, or from their gradients.

    Raises UserError that counts the missing, surplus and misshapen names and gives the first of each.
    """
    _require_same_shapes(_shapes(params), _shapes(_our_shapes(module)), lambda: "")
    return {mapping.torch_name: read(params, mapping) for mapping in mappings(module)}


def params_from_torch(state_dict: dict[str, np.ndarray], module: Network) -> dict:
    """Return the parameter tree of `module`, as float32 NumPy arrays, from a published state dictionary.

    Raises UserError that counts the missing, surplus and misshapen names and gives the first of each, and for numbers
    that are not finite, or not floating point ones.
    """
    expected = published_shapes(module)
    found = {name: tuple(array.shape) for name, array in state_dict.items()}
    _require_same_shapes(found, expected, lambda: _nearest_variant(found.keys(), expected.keys()))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), _our_shapes(module))
    for mapping in mappings(module):
        array = state_dict[mapping.torch_name]
        if not jnp.issubdtype(array.dtype, np.floating):
            raise UserError(f"{mapping.torch_name} is of the type {array.dtype}; weights must be of a floating one")
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, which is refused below
            array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{mapping.torch_name} is not finite; the weights are damaged or diverged")
        write(params, mapping, array)
    return params


def _nearest_variant(found: Collection[str], expected: Collection[str]) -> str:
    nearest = variant_named(found)
    names = published_names()[nearest]
    if names == set(expected):
        return ""
    return f"; the names are {'those' if names == set(found) else 'nearest to those'} of the variant {nearest}"


def variant_named(names: Collection[str]) -> str:
    """Return the variant whose published names differ from `names` in the fewest."""
    return min(PUBLISHED, key=lambda variant: len(published_names()[variant].symmetric_difference(names)))


def network_of(state_dict: dict[str, np.ndarray]) -> Network:
    """Return the network whose state dictionary has these names and shapes, or else the variant of nearest names."""
    shapes = {name: array.shape for name, array in state_dict.items()}
    if all(map(math.prod, shapes.values())):
        for fields_of in (concertormer_fields, restormer_fields):
            with contextlib.suppress(LookupError, ValueError):
                module = create(None, **fields_of(shapes))
                if shapes.keys() == {mapping.torch_name for mapping in mappings_of(module)}:
                    leaves = jax.tree.leaves(_our_shapes(module))
                    if sum(leaf.size for leaf in leaves) == sum(map(math.prod, shapes.values())):
                        return module
    return create(variant_named(shapes))


class LoadedWeights(NamedTuple):
    """A network with its parameters, NumPy arrays. remark: one line on what was taken from the file."""

    module: Network
    params: dict
    train_crop_px: int
    remark: str


def load_weights_file(path: AnyPath, variant: str | None = None, key: str | None = None) -> LoadedWeights:
    """Load a `.pth` or `.safetensors` file of published names.

    variant: the network; None: by names and shapes. key: the dictionary in the file; None: by `state_dict.select`.
    Raises UserError when the file cannot be read or is not of a known network.
    """
    state_dict, remark = read_selected(path, frozenset().union(*published_names().values()), key)
    module = create(variant) if variant else network_of(state_dict)
    remarks = "; ".join(part for part in (remark, f"the network is {variant_name(module)}") if part)
    try:
        params = params_from_torch(state_dict, module)
    except UserError as error:
        raise UserError(f"{path}: {error}" + (f" ({remark})" if remark else "")) from error
    train_crop_px = train_crop_of(path) or PUBLISHED_TRAIN_CROP_PX[type(module)]
    return LoadedWeights(module, params, train_crop_px, f"{path}: {remarks}")
