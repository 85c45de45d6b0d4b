"""The names of Restormer's published weights."""

from concertormer_jax.models import Restormer
from concertormer_jax.published import Mapping, convolution, depthwise, pointwise, same


def mappings(module: Restormer) -> list[Mapping]:
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
