"""The names of Concertormer's published weights.

Beyond stacked blocks and the layout NHWC, the projection of the queries belongs to the attention here and is apart from
that of u and z, and the channels of queries, keys and values are in the order (group, head, channel) in place of (head,
group, channel), so that the four groups are contiguous.
"""

import math

import numpy as np

from concertormer_jax.models import Concertormer
from concertormer_jax.weights import mappings
from concertormer_jax.weights.mappings import Mapping, convolution

GROUPS = 4
MAX_LEVELS = 8  # of a network that is told by its shapes


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
        return mappings.same(f"{name}.{torch_name}", path, index)

    def pointwise(torch_name, *path):
        return mappings.pointwise(f"{name}.m.{torch_name}", path, index)

    def over_blocks(torch_name):
        return Mapping(
            f"{name}.m.{torch_name}.weight",
            ((*attention, torch_name),),
            index,
            lambda a: a[..., 0].transpose(2, 3, 1, 0),
            lambda a: a.transpose(3, 2, 0, 1)[..., None],
        )

    norm = "norm1" if cross else "norm"
    found = [same(f"{norm}.weight", *block, "norm", "scale"), same(f"{norm}.bias", *block, "norm", "bias")]
    if cross:
        for torch_name, ours in (("weight", "scale"), ("bias", "bias")):
            found.append(mappings.same(f"{name}.norm2.{torch_name}", (stage, "norm2", ours), None))
    temperature = Mapping(
        f"{name}.m.temperature",
        ((*attention, "temperature"),),
        index,
        lambda a: a[:, :, 0, 0, 0],
        lambda a: a[:, :, None, None, None],
    )
    return [
        *found,
        temperature,
        same("m.r_talking", *attention, "r_talking"),
        same("m.g_talking", *attention, "g_talking"),
        over_blocks("b_talking"),
        over_blocks("l_talking"),
        _projection(f"{name}.m.to_quz.weight", ((*attention, "to_q"), (*block, "to_uz")), index, 3, 1, heads),
        _projection(f"{name}.m.to_kv.weight", ((*attention, "to_kv"),), index, parts=2, grouped=2, heads=heads),
        mappings.depthwise(f"{name}.m.dw_u.weight", (*block, "dw_u"), index),
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


def mappings_of(module: Concertormer) -> list[Mapping]:
    """Every array of `module` under its published name."""
    found = [*convolution("intro", "intro"), *convolution("ending", "ending")]
    for i in range(module.levels):
        found += convolution(f"intros.{i}", f"intros_{i}") + convolution(f"downs.{i}", f"downs_{i}")
        found += convolution(f"endings.{i}", f"endings_{i}") + convolution(f"ups.{i}.0", f"ups_{i}", bias=False)
        found += _stage(f"encoders.{i}", f"encoders_{i}", module.encoder_blocks[i], module.encoder_heads[i], i > 0)
        found += _stage(f"decoders.{i}", f"decoders_{i}", module.decoder_blocks[i], module.decoder_heads[i], True)
    return found + _stage("middle_blks", "middle", module.middle_blocks, module.middle_heads, True)


def fields_of(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The fields of the network of which these are the published names and shapes.

    Raises LookupError when they are not a Concertormer's.
    """

    def count(prefix):
        return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

    def heads(stage):
        return shapes[f"{stage}.0.m.temperature"][1]

    levels = range(min(count("downs."), MAX_LEVELS))
    encoders, decoders = ([f"{name}.{i}" for i in levels] for name in ("encoders", "decoders"))
    width, picture_channels = shapes["intro.weight"][:2]
    return {
        "width": width,
        "encoder_blocks": tuple(count(f"{stage}.") for stage in encoders),
        "middle_blocks": count("middle_blks."),
        "decoder_blocks": tuple(count(f"{stage}.") for stage in decoders),
        "encoder_heads": tuple(map(heads, encoders)),
        "middle_heads": heads("middle_blks"),
        "decoder_heads": tuple(map(heads, decoders)),
        "expansion": shapes["encoders.0.0.m.dw_u.weight"][0] // width,
        "unshuffle": math.isqrt(picture_channels // 3),
    }
