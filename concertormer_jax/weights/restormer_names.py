"""The names of Restormer's published weights."""

from concertormer_jax.models import Restormer
from concertormer_jax.weights.mappings import Mapping, convolution, depthwise, pointwise, same

MAX_LEVELS = 8  # of a network that is told by its shapes


def mappings_of(module: Restormer) -> list[Mapping]:
    """Every array of `module` under its published name."""
    levels = module.levels
    found = convolution("patch_embed.proj", "intro", bias=False) + convolution("output", "ending", bias=False)
    stages = {"latent": ("middle", module.middle_blocks), "refinement": ("refinement", module.refinement_blocks)}
    for index in range(levels):
        upper, lower = index + 1, index + 2  # the published numbers of the levels on both sides of the convolution
        found += convolution(f"down{upper}_{lower}.body.0", f"downs_{index}", bias=False)
        found += convolution(f"up{lower}_{upper}.body.0", f"ups_{levels - upper}", bias=False)
        if index > 0:
            found += convolution(f"reduce_chan_level{upper}", f"reductions_{levels - upper}", bias=False)
        stages[f"encoder_level{upper}"] = f"encoders_{index}", module.encoder_blocks[index]
        stages[f"decoder_level{upper}"] = f"decoders_{levels - upper}", module.decoder_blocks[levels - upper]
    for name, (path, blocks) in stages.items():
        for index in range(blocks):
            found += _block(f"{name}.{index}", (path, "blocks"), index, module.norm_bias)
    return found


def _block(name: str, path: tuple[str, ...], index: int, norm_bias: bool) -> list[Mapping]:
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


def fields_of(shapes: dict[str, tuple[int, ...]]) -> dict:
    """The fields of the network of which these are the published names and shapes, but for the default expansion.

    Raises LookupError when they are not a Restormer's.
    """

    def count(stage):
        return len({name[len(stage) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{stage}.")})

    def heads(stage):
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
