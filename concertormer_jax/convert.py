"""Weights of the published PyTorch models, Concertormer and Restormer, to ours and back.

    python -m concertormer_jax.convert WEIGHTS.pth OUT_DIR          a directory for `evaluate.py --ckpt`
    python -m concertormer_jax.convert CHECKPOINT_DIR OUT.pth       and back (or OUT.safetensors)

The names of the weights say which network they are of. Our parameter tree differs from the published names in four
ways: the equal blocks of a stage are stacked on a first axis, arrays are laid out for NHWC, and in Concertormer the
projection of the queries belongs to the attention and is apart from that of u and z, and the channels of queries, keys
and values are in the order (group, head, channel) in place of (head, group, channel), so that the four groups are
contiguous.
"""

from concertormer_jax import interrupts  # noqa: F401  (first: it takes Ctrl-C while the rest is imported)

# isort: split

import argparse
import functools
import operator
from collections.abc import Iterable

import jax
import numpy as np

from concertormer_jax import checkpoints, errors, published, restormer_names, torch_files
from concertormer_jax.errors import UserError
from concertormer_jax.models import (
    VARIANTS,
    Concertormer,
    Design,
    Network,
    Restormer,
    create,
    parameter_shapes,
    variant_name,
)
from concertormer_jax.paths import local_path, user_path
from concertormer_jax.published import Mapping, convolution

# The train size to which Concertormer's published grid factors of the local converter refer, and Restormer's crops.
PUBLISHED_TRAIN_CROP_PX = {Concertormer: 256, Restormer: 384}
GROUPS = 4


def _regroup(weight: np.ndarray, count: int, heads: int, swap_to_ours: bool) -> np.ndarray:
    """Reorder the first axis of the first `count` of `weight`'s equal parts between (head, group) and (group, head)."""
    hidden = weight.shape[1]  # the projections are handed over as [parts, hidden, C]
    outer, inner = (heads, GROUPS) if swap_to_ours else (GROUPS, heads)
    parts = weight.reshape(weight.shape[0], outer, inner, hidden // (outer * inner), -1)
    swapped = parts.swapaxes(1, 2).reshape(weight.shape)
    return np.concatenate([swapped[:count], weight[count:]])


def _projection(torch_name: str, paths, index, parts: int, grouped: int, heads: int) -> Mapping:
    def to_ours(a):
        return _regroup(a.reshape(parts, -1, a.shape[1]), grouped, heads, True).reshape(a.shape[:2]).T

    def to_torch(a):
        a = _regroup(a.T.reshape(parts, -1, a.shape[0]), grouped, heads, False)
        return a.reshape(-1, a.shape[-1], 1, 1)

    return Mapping(torch_name, paths, index, to_ours, to_torch)


def _block(name: str, stage: str, index: int, heads: int, cross: bool) -> list[Mapping]:
    block = (stage, "blocks")
    attention = (*block, "attention")

    def same(torch_name, *path):
        return published.same(f"{name}.{torch_name}", path, index)

    def pointwise(torch_name, *path):
        return published.pointwise(f"{name}.m.{torch_name}", path, index)

    def over_blocks(torch_name):
        return Mapping(
            f"{name}.m.{torch_name}.weight",
            ((*attention, torch_name),),
            index,
            lambda a: a[..., 0].transpose(2, 3, 1, 0),
            lambda a: a.transpose(3, 2, 0, 1)[..., None],
        )

    norm = "norm1" if cross else "norm"
    mappings = [same(f"{norm}.weight", *block, "norm", "scale"), same(f"{norm}.bias", *block, "norm", "bias")]
    if cross:
        for torch_name, ours in (("weight", "scale"), ("bias", "bias")):
            mappings.append(published.same(f"{name}.norm2.{torch_name}", (stage, "norm2", ours), None))
    temperature = Mapping(
        f"{name}.m.temperature",
        ((*attention, "temperature"),),
        index,
        lambda a: a[:, :, 0, 0, 0],
        lambda a: a[:, :, None, None, None],
    )
    return [
        *mappings,
        temperature,
        same("m.r_talking", *attention, "r_talking"),
        same("m.g_talking", *attention, "g_talking"),
        over_blocks("b_talking"),
        over_blocks("l_talking"),
        _projection(f"{name}.m.to_quz.weight", ((*attention, "to_q"), (*block, "to_uz")), index, 3, 1, heads),
        _projection(f"{name}.m.to_kv.weight", ((*attention, "to_kv"),), index, parts=2, grouped=2, heads=heads),
        published.depthwise(f"{name}.m.dw_u.weight", (*block, "dw_u"), index),
        pointwise("project.weight", *block, "project"),
        pointwise("project_out.weight", *block, "project_out"),
        pointwise("sca.1.weight", *attention, "sca_kernel"),
        same("m.sca.1.bias", *attention, "sca_bias"),
    ]


def _stage(name: str, path: str, blocks: int, heads: int, cross: bool) -> list[Mapping]:
    return [
        mapping
        for index in range(blocks)
        for mapping in _block(f"{name}.{index}", path, index, heads, cross=cross and index == 0)
    ]


def _concertormer(module: Concertormer) -> list[Mapping]:
    found = [*convolution("intro", "intro"), *convolution("ending", "ending")]
    for i in range(module.levels):
        found += convolution(f"intros.{i}", f"intros_{i}") + convolution(f"downs.{i}", f"downs_{i}")
        found += convolution(f"endings.{i}", f"endings_{i}") + convolution(f"ups.{i}.0", f"ups_{i}", bias=False)
        found += _stage(f"encoders.{i}", f"encoders_{i}", module.encoder_blocks[i], module.encoder_heads[i], i > 0)
        found += _stage(f"decoders.{i}", f"decoders_{i}", module.decoder_blocks[i], module.decoder_heads[i], True)
    return found + _stage("middle_blks", "middle", module.middle_blocks, module.middle_heads, True)


def is_published(module: Network) -> bool:
    """Whether there are published weights of the form, if not the size, of `module`."""
    return module.attention == "transposed" if isinstance(module, Restormer) else module.design == Design()


PUBLISHED = [variant for variant in VARIANTS if is_published(create(variant))]


def mappings(module: Network) -> list[Mapping]:
    """Every array of `module` under its published name. Raises UserError for a form that was not published."""
    if not is_published(module):
        raise UserError(
            f"the {variant_name(module)} network is a form that was never published, so there are no names to convert "
            "it to"
        )
    return restormer_names.mappings(module) if isinstance(module, Restormer) else _concertormer(module)


def read(params: dict, mapping: Mapping) -> np.ndarray:
    """The array of `mapping` in our parameters, under its published layout."""
    parts = [np.asarray(leaf if mapping.index is None else leaf[mapping.index]) for leaf in _leaves(params, mapping)]
    return np.ascontiguousarray(mapping.to_torch(np.concatenate(parts, axis=-1)))


def write(params: dict, mapping: Mapping, array: np.ndarray) -> None:
    """The inverse of `read`, in place, into a tree of NumPy arrays."""
    leaves = _leaves(params, mapping)
    ends = np.cumsum([leaf.shape[-1] for leaf in leaves])[:-1]
    for leaf, part in zip(leaves, np.split(mapping.to_ours(array), ends, axis=-1), strict=True):
        leaf[... if mapping.index is None else mapping.index] = part


def _leaves(params, mapping):
    return [functools.reduce(operator.getitem, path, params) for path in mapping.paths]


def _require_same_shapes(found: dict[str, tuple], expected: dict[str, tuple]) -> None:
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"surplus {name}" for name in found if name not in expected]
    problems += [
        f"misshapen {name} {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise UserError(
            f"the weights are not those of this network, {len(problems)} names differ; "
            f"choose the variant that they belong to: {'; '.join(problems)}"
        )


def _shapes(tree) -> dict[str, tuple]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}


def _state_dict(params: dict, module: Network) -> dict[str, np.ndarray]:
    return {mapping.torch_name: read(params, mapping) for mapping in mappings(module)}


def torch_from_params(params: dict, module: Network) -> dict[str, np.ndarray]:
    """The state dictionary of the published model: our parameters (or their gradients) under its names and shapes.

    Raises UserError that lists every missing, surplus and misshapen name.
    """
    _require_same_shapes(_shapes(params), _shapes(parameter_shapes(module)))
    return _state_dict(params, module)


def params_from_torch(state_dict: dict[str, np.ndarray], module: Network) -> dict:
    """The parameter tree of `module`, as float32 NumPy arrays, from a published state dictionary.

    Raises UserError that lists every missing, surplus and misshapen name.
    """
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(module))
    expected = {name: array.shape for name, array in _state_dict(params, module).items()}
    _require_same_shapes({name: tuple(array.shape) for name, array in state_dict.items()}, expected)
    for mapping in mappings(module):
        write(params, mapping, np.asarray(state_dict[mapping.torch_name], np.float32))
    return params


def variant_named(names: Iterable[str]) -> str:
    """The variant whose published names are `names`, or those that differ in the fewest."""
    names = set(names)
    return min(PUBLISHED, key=lambda variant: len(names ^ {m.torch_name for m in mappings(create(variant))}))


def main(arguments=None) -> None:
    """The command described at the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m concertormer_jax.convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="a .pth or .safetensors file, or a checkpoint directory")
    parser.add_argument("destination", help="a directory that does not exist yet, or a .pth or .safetensors file")
    parser.add_argument("--variant", choices=PUBLISHED, help="the network of a weights file, if not by its names")
    flags = parser.parse_args(arguments)
    with errors.reported():
        if flags.destination.endswith((".pth", ".safetensors")):
            destination = local_path(flags.destination, "DESTINATION")
            loaded = checkpoints.load_model(user_path(flags.source, "SOURCE"))
            torch_files.write_state_dict(destination, torch_from_params(loaded.params, loaded.module))
        else:
            state_dict = torch_files.read_state_dict(local_path(flags.source, "SOURCE"))
            module = create(flags.variant or variant_named(state_dict))
            params = params_from_torch(state_dict, module)
            checkpoints.save_converted(flags.destination, module, params, PUBLISHED_TRAIN_CROP_PX[type(module)])
        print(f"{flags.source} -> {flags.destination}")


if __name__ == "__main__":
    main()
