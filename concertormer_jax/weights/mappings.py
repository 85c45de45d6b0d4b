"""The name and layout of every array in the published PyTorch models, Concertormer and Restormer, and in ours.

Our trees stack the equal blocks of a stage on a first axis and lay arrays out for NHWC. Of Concertormer they also hold
the projection of the queries in the attention, apart from that of u and z, and order the channels of queries, keys and
values as (group, head, channel) in place of (head, group, channel), so that each of the four groups is contiguous.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from concertormer_jax.models import Concertormer, Network, Restormer

GROUPS = 4
MAX_LEVELS = 8  # that a file's names may say; an untrusted file must not make a network of any size


class Mapping(NamedTuple):
    """One published array and where it lies in our parameter tree.

    paths: of our arrays, which are joined along their last axis; index: in the stack of equal blocks, None for an array
    that is not stacked; to_ours, to_torch: change the layout.
    """

    torch_name: str
    paths: tuple[tuple[str, ...], ...]
    index: int | None
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]


def convolution(name: str, path: str, bias: bool = True) -> list[Mapping]:
    """The kernel of a convolution, published [O, I, h, w], ours [h, w, I, O]; and its bias."""
    kernel = Mapping(
        f"{name}.weight",
        ((path, "kernel"),),
        None,
        lambda a: a.transpose(2, 3, 1, 0),
        lambda a: a.transpose(3, 2, 0, 1),
    )
    return [kernel, same(f"{name}.bias", (path, "bias"), None)][: 2 if bias else 1]


def same(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """An array of the same layout in both."""
    return Mapping(name, (path,), index, np.asarray, np.asarray)


def pointwise(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """The kernel of a 1x1 convolution: published [O, I, 1, 1], ours [I, O]."""
    return Mapping(name, (path,), index, lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])


def depthwise(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """The kernel of a depthwise convolution: published [C, 1, h, w], ours [h, w, C]."""
    return Mapping(name, (path,), index, lambda a: a[:, 0].transpose(1, 2, 0), lambda a: a.transpose(2, 0, 1)[:, None])


def _regroup(weight: np.ndarray, count: int, heads: int, swap_to_ours: bool) -> np.ndarray:
    """Swap the order of heads and groups in the axis `hidden` of the first `count` parts of [parts, hidden, C].

    swap_to_ours: from (head, group, channel) to (group, head, channel), else back.
    """
    hidden = weight.shape[1]
    outer, inner = (heads, GROUPS) if swap_to_ours else (GROUPS, heads)
    parts = weight.reshape(weight.shape[0], outer, inner, hidden // (outer * inner), -1)
    swapped = parts.swapaxes(1, 2).reshape(weight.shape)
    return np.concatenate([swapped[:count], weight[count:]])


def _projection(
    torch_name: str, paths: tuple[tuple[str, ...], ...], index: int, parts: int, grouped: int, heads: int
) -> Mapping:
    """The projection to `parts` features at once, published [parts * hidden, I, 1, 1], ours [I, parts * hidden].

    grouped: the first of them, which are queries, keys or values and have heads and groups.
    """

    def to_ours(a: np.ndarray) -> np.ndarray:
        return _regroup(a.reshape(parts, -1, a.shape[1]), grouped, heads, True).reshape(a.shape[:2]).T

    def to_torch(a: np.ndarray) -> np.ndarray:
        a = _regroup(a.T.reshape(parts, -1, a.shape[0]), grouped, heads, False)
        return a.reshape(-1, a.shape[-1], 1, 1)

    return Mapping(torch_name, paths, index, to_ours, to_torch)


def _over_blocks(name: str, path: tuple[str, ...], index: int | None) -> Mapping:
    """The kernel of a convolution over the grid of blocks: published [O, I, h, w, 1], ours [h, w, I, O]."""
    return Mapping(
        name, (path,), index, lambda a: a[..., 0].transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)[..., None]
    )


def _concertormer_block(name: str, stage: str, index: int, heads: int, cross: bool) -> list[Mapping]:
    block, attention = (stage, "blocks"), (stage, "blocks", "attention")
    norm = "norm1" if cross else "norm"
    found = [
        same(f"{name}.{norm}.weight", (*block, "norm", "scale"), index),
        same(f"{name}.{norm}.bias", (*block, "norm", "bias"), index),
    ]
    if cross:
        found.append(same(f"{name}.norm2.weight", (stage, "norm2", "scale"), None))
        found.append(same(f"{name}.norm2.bias", (stage, "norm2", "bias"), None))
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
        same(f"{name}.m.r_talking", (*attention, "r_talking"), index),
        same(f"{name}.m.g_talking", (*attention, "g_talking"), index),
        _over_blocks(f"{name}.m.b_talking.weight", (*attention, "b_talking"), index),
        _over_blocks(f"{name}.m.l_talking.weight", (*attention, "l_talking"), index),
        _projection(f"{name}.m.to_quz.weight", ((*attention, "to_q"), (*block, "to_uz")), index, 3, 1, heads),
        _projection(f"{name}.m.to_kv.weight", ((*attention, "to_kv"),), index, parts=2, grouped=2, heads=heads),
        depthwise(f"{name}.m.dw_u.weight", (*block, "dw_u"), index),
        pointwise(f"{name}.m.project.weight", (*block, "project"), index),
        pointwise(f"{name}.m.project_out.weight", (*block, "project_out"), index),
        pointwise(f"{name}.m.sca.1.weight", (*attention, "sca_kernel"), index),
        same(f"{name}.m.sca.1.bias", (*attention, "sca_bias"), index),
    ]


def _concertormer_stage(name: str, path: str, blocks: int, heads: int, cross: bool) -> list[Mapping]:
    return [
        mapping
        for index in range(blocks)
        for mapping in _concertormer_block(f"{name}.{index}", path, index, heads, cross=cross and index == 0)
    ]


def concertormer_mappings(module: Concertormer) -> list[Mapping]:
    """Return a mapping for every array of a published Concertormer."""
    found = [*convolution("intro", "intro"), *convolution("ending", "ending")]
    for i in range(module.levels):
        found += convolution(f"intros.{i}", f"intros_{i}") + convolution(f"downs.{i}", f"downs_{i}")
        found += convolution(f"endings.{i}", f"endings_{i}") + convolution(f"ups.{i}.0", f"ups_{i}", bias=False)
        encoder = module.encoder_blocks[i], module.encoder_heads[i]
        decoder = module.decoder_blocks[i], module.decoder_heads[i]
        found += _concertormer_stage(f"encoders.{i}", f"encoders_{i}", *encoder, cross=i > 0)
        found += _concertormer_stage(f"decoders.{i}", f"decoders_{i}", *decoder, cross=True)
    return found + _concertormer_stage("middle_blks", "middle", module.middle_blocks, module.middle_heads, cross=True)


def concertormer_fields(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the fields of the Concertormer whose published weights have these names and shapes.

    Raises LookupError when they are not a Concertormer's.
    """

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})

    def heads(stage: str) -> int:
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


def restormer_mappings(module: Restormer) -> list[Mapping]:
    """Return a mapping for every array of a published Restormer."""
    levels = module.levels
    found = convolution("patch_embed.proj", "intro", bias=False) + convolution("output", "ending", bias=False)
    stages = {"latent": ("middle", module.middle_blocks), "refinement": ("refinement", module.refinement_blocks)}
    for index in range(levels):
        upper, lower = index + 1, index + 2  # levels are numbered from 1 in the published names
        found += convolution(f"down{upper}_{lower}.body.0", f"downs_{index}", bias=False)
        found += convolution(f"up{lower}_{upper}.body.0", f"ups_{levels - upper}", bias=False)
        if index > 0:
            found += convolution(f"reduce_chan_level{upper}", f"reductions_{levels - upper}", bias=False)
        stages[f"encoder_level{upper}"] = f"encoders_{index}", module.encoder_blocks[index]
        stages[f"decoder_level{upper}"] = f"decoders_{levels - upper}", module.decoder_blocks[levels - upper]
    for name, (path, blocks) in stages.items():
        for index in range(blocks):
            found += _restormer_block(f"{name}.{index}", (path, "blocks"), index, module.norm_bias)
    return found


def _restormer_block(name: str, path: tuple[str, ...], index: int, norm_bias: bool) -> list[Mapping]:
    attention, feed_forward = (*path, "attention"), (*path, "feed_forward")
    found = [
        Mapping(
            f"{name}.attn.temperature",
            ((*attention, "temperature"),),
            index,
            lambda a: a[:, 0, 0],
            lambda a: a[:, None, None],
        ),
        pointwise(f"{name}.attn.qkv.weight", (*attention, "to_qkv"), index),
        depthwise(f"{name}.attn.qkv_dwconv.weight", (*attention, "dw_qkv"), index),
        pointwise(f"{name}.attn.project_out.weight", (*path, "attention_out"), index),
        pointwise(f"{name}.ffn.project_in.weight", (*feed_forward, "project_in"), index),
        depthwise(f"{name}.ffn.dwconv.weight", (*feed_forward, "dw"), index),
        pointwise(f"{name}.ffn.project_out.weight", (*feed_forward, "project_out"), index),
    ]
    for norm in ("norm1", "norm2"):
        found.append(same(f"{name}.{norm}.body.weight", (*path, norm, "scale"), index))
        if norm_bias:
            found.append(same(f"{name}.{norm}.body.bias", (*path, norm, "bias"), index))
    return found


def restormer_fields(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the fields, but for the expansion, of the Restormer whose published weights have these names and shapes.

    Raises LookupError when they are not a Restormer's.
    """

    def count(stage: str) -> int:
        return len({name[len(stage) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{stage}.")})

    def heads(stage: str) -> int:
        return shapes[f"{stage}.0.attn.temperature"][0]

    levels = min(sum(name.startswith("down") for name in shapes), MAX_LEVELS)
    encoders = [f"encoder_level{i + 1}" for i in range(levels)]
    decoders = [f"decoder_level{levels - i}" for i in range(levels)]
    return {
        "network": "Restormer",
        "width": shapes["patch_embed.proj.weight"][0],
        "encoder_blocks": tuple(map(count, encoders)),
        "middle_blocks": count("latent"),
        "decoder_blocks": tuple(map(count, decoders)),
        "refinement_blocks": count("refinement"),
        "encoder_heads": tuple(map(heads, encoders)),
        "middle_heads": heads("latent"),
        "decoder_heads": tuple(map(heads, decoders)),
        "norm_bias": "latent.0.norm1.body.bias" in shapes,
    }


def mappings_of(module: Network) -> list[Mapping]:
    """Return a mapping for every array of `module`, which must have the published architecture."""
    return restormer_mappings(module) if isinstance(module, Restormer) else concertormer_mappings(module)
