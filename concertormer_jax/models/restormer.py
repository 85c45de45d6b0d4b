"""Restormer (arXiv 2111.09881), with its own transposed attention or with Concerto self-attention in its place."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from concertormer_jax.models.concerto_attention import LOGITS, ConcertoSelfAttention
from concertormer_jax.models.concertormer import convolution, require_stages
from concertormer_jax.models.initial_values import ONES, ZEROS, torch_uniform
from concertormer_jax.ops import image
from concertormer_jax.ops.concerto import transposed_attention
from concertormer_jax.ops.dispatch import require_implementation
from concertormer_jax.ops.layers import depthwise_3x3, on_windows, project

NORM_EPSILON = 1e-5
ATTENTIONS = ("transposed", "concerto")


class BiasFreeNorm(nn.Module):
    """Division of every pixel's channels by their standard deviation, the mean being kept, and a scale."""

    @nn.compact
    def __call__(self, x: Float[Array, "*shape C"]) -> Float[Array, "*shape C"]:
        """Returns float32 at least."""
        scale = self.param("scale", ONES, x.shape[-1:])
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return x * jax.lax.rsqrt(x.var(axis=-1, keepdims=True) + NORM_EPSILON) * scale


def layer_norm(name: str, bias: bool) -> nn.Module:
    """Layer norm over the channels of every pixel, in float32 at least; without `bias`, see `BiasFreeNorm`."""
    if bias:
        return nn.LayerNorm(NORM_EPSILON, use_fast_variance=False, scale_init=ONES, bias_init=ZEROS, name=name)
    return BiasFreeNorm(name=name)


class TransposedAttention(nn.Module):
    """Attention between channels; the 1x1 projection to queries, keys and values is followed by a depthwise 3x3.

    (Section 3.1, "multi-Dconv head transposed attention", without the projection of its result.) With `tlc_window`, the
    attention is computed on windows of that side, as in the test-time local converter's paper: by itself it sees the
    whole map.
    """

    features: int
    heads: int
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"]) -> Float[Array, "b H W C"]:
        """x: normalised. Returns the channels head after head, not projected back."""
        width = self.features
        to_qkv = self.param("to_qkv", torch_uniform(width), (width, 3 * width)).astype(self.dtype)
        dw_qkv = self.param("dw_qkv", torch_uniform(9), (3, 3, 3 * width)).astype(self.dtype)
        temperature = self.param("temperature", ONES, (self.heads,))
        form = {"implementation": self.implementation}
        qkv = jnp.split(depthwise_3x3(project(x, to_qkv), dw_qkv, **form), 3, axis=-1)
        attend = partial(transposed_attention, temperature=temperature, **form)
        return attend(*qkv) if self.tlc_window is None else on_windows(attend, qkv, self.tlc_window, **form)


class GatedFeedForward(nn.Module):
    """GELU(a) * b of two halves of int(expansion * C) channels, each after a depthwise 3x3 (section 3.2)."""

    features: int
    expansion: float
    dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"]) -> Float[Array, "b H W C"]:
        """x: normalised."""
        width, hidden = self.features, int(self.features * self.expansion)
        project_in = self.param("project_in", torch_uniform(width), (width, 2 * hidden)).astype(self.dtype)
        dw = self.param("dw", torch_uniform(9), (3, 3, 2 * hidden)).astype(self.dtype)
        project_out = self.param("project_out", torch_uniform(hidden), (hidden, width)).astype(self.dtype)
        hidden = depthwise_3x3(project(x, project_in), dw, implementation=self.implementation)
        a, b = jnp.split(hidden, 2, axis=-1)
        return project(jax.nn.gelu(a, approximate=False) * b, project_out)


class TransformerBlock(nn.Module):
    """x + project(attention(norm(x))), then x + feed-forward(norm(x)).

    Concerto self-attention takes the place of the transposed one and of the depthwise 3x3 before it, since each of its
    four groups has its own projections. It has as many hidden channels as `features`. Concertormer's paper does not say
    how it put its attention into Restormer; this form changes the cost as the paper says.
    """

    features: int
    heads: int
    expansion: float
    attention: str = "transposed"
    norm_bias: bool = True
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"], shifted: Bool[Array, ""] | bool) -> Float[Array, "b H W C"]:
        """shifted: move the blocks of Concerto self-attention by half their size; may be traced."""
        width = self.features
        form: dict[str, Any] = {"dtype": self.dtype, "implementation": self.implementation}
        settings: dict[str, Any] = {"tlc_window": self.tlc_window, "name": "attention", **form}
        attention_out = self.param("attention_out", torch_uniform(width), (width, width)).astype(self.dtype)
        inputs = layer_norm("norm1", self.norm_bias)(x).astype(self.dtype)
        if self.attention == "concerto":
            attended = ConcertoSelfAttention(width, self.heads, **settings)(inputs, shifted=shifted)
        else:
            attended = TransposedAttention(width, self.heads, **settings)(inputs)
        x += project(attended, attention_out)
        feed_forward = GatedFeedForward(self.features, self.expansion, name="feed_forward", **form)
        return x + feed_forward(layer_norm("norm2", self.norm_bias)(x).astype(self.dtype))


class TransformerStage(nn.Module):
    """`blocks` equal blocks of one level; the blocks of Concerto self-attention are shifted in every other one.

    They are scanned: they are compiled once and their parameters are stacked on a first axis.
    """

    features: int
    heads: int
    blocks: int
    expansion: float
    attention: str = "transposed"
    norm_bias: bool = True
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"]) -> Float[Array, "b H W C"]:
        """Apply the blocks."""

        def apply(block, x, position):
            return block(x, position % 2 == 1), None

        if self.remat:
            apply = nn.remat(apply, prevent_cse=False)
        scan = nn.scan(
            apply,
            variable_axes={"params": 0, LOGITS: 0},
            split_rngs={"params": True},
            check_constancy_invariants=False,  # which would trace every block twice
        )
        fields = ("features", "heads", "expansion", "attention", "norm_bias", "tlc_window", "dtype", "implementation")
        block = TransformerBlock(**{field: getattr(self, field) for field in fields}, name="blocks")
        return scan(block, x, jnp.arange(self.blocks))[0]


class Restormer(nn.Module):
    """U-Net of transformer blocks (section 3).

    Encoder fields have an entry for each level from the finest down, decoder fields from the deepest up; the finest
    decoder and the refinement behind it have twice the channels of their level. The parameters do not depend on the
    last four fields.

    width: channels of the features at the finest level; each level below has twice as many.
    encoder_blocks, middle_blocks, decoder_blocks, refinement_blocks: of each stage.
    encoder_heads, middle_heads, decoder_heads: of the attention; the refinement has those of the finest decoder.
    expansion: hidden channels of a feed-forward network for each channel of its features.
    attention: between channels ("transposed", the published network) or Concerto self-attention ("concerto").
    norm_bias: without it the layer norms are those of the paper's denoising networks (see `BiasFreeNorm`).
    tlc_window: side in pixels of the picture of the test-time local converter's windows, None for none. It is for both
        attentions, as both see the whole picture. On level i the windows have tlc_window // 2**i positions.
    dtype: of the computation; parameters, norms and softmax stay float32.
    remat: compute each block's inside again in the backward pass.
    implementation: "reference", "cpu", "gpu" or "tpu", which compute the same; None for that of the platform.
    """

    width: int
    encoder_blocks: tuple[int, ...]
    middle_blocks: int
    decoder_blocks: tuple[int, ...]
    refinement_blocks: int
    encoder_heads: tuple[int, ...]
    middle_heads: int
    decoder_heads: tuple[int, ...]
    expansion: float = 2.66
    attention: str = "transposed"
    norm_bias: bool = True
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    implementation: str | None = None

    @property
    def levels(self) -> int:
        """How often the resolution is halved."""
        return len(self.encoder_blocks)

    @property
    def multiple(self) -> int:
        """The padded height and width are multiples of this number of pixels, and so must `tlc_window` be."""
        return 2**self.levels * (ConcertoSelfAttention.block_px if self.attention == "concerto" else 1)

    @property
    def hidden_channels_per_pixel(self) -> float:
        """Numbers for each pixel of a picture in an array of the finest decoder's hidden channels."""
        return 2 * self.width * self.expansion

    def validate(self) -> None:
        """Raise ValueError, naming the field, for a network that cannot be built."""
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is unknown; choose one of {', '.join(ATTENTIONS)}")
        require_stages(self, ("width", "encoder_blocks", "decoder_blocks", "middle_blocks", "refinement_blocks"))
        require_implementation(self.implementation)
        if self.width % 2 or int(self.width * self.expansion) < 1:
            raise ValueError(
                f"width={self.width} must be even, and expansion={self.expansion} times it at least one channel"
            )
        stages = [("encoder_heads", self.width * 2**level, heads) for level, heads in enumerate(self.encoder_heads)]
        stages += [
            ("decoder_heads", self.width * 2 ** max(level, 1), heads)
            for level, heads in enumerate(self.decoder_heads[::-1])
        ]
        for field, width, heads in [*stages, ("middle_heads", self.width * 2**self.levels, self.middle_heads)]:
            groups = len(ConcertoSelfAttention.groups) if self.attention == "concerto" else 1
            if heads < 1 or width % (groups * heads):
                raise ValueError(
                    f"{field}={getattr(self, field)}: {heads} heads do not divide the {width} channels of their level "
                    f"into {groups} group{'s' * (groups > 1)}"
                )
        if self.tlc_window is not None and (self.tlc_window < 1 or self.tlc_window % self.multiple):
            raise ValueError(
                f"tlc_window={self.tlc_window} must be a positive multiple of {self.multiple} pixels, "
                f"so that it fits at every level"
            )

    @nn.compact
    def __call__(self, images: Float[image.Image, "..."]) -> tuple[Float[Array, "b H W 3"]]:
        """Restore images [B, H, W, 3] in [0, 1], any H and W from 1.

        Returns a tuple of one, the restored images [B, H, W, 3] in float32; values are not clipped.
        """
        self.validate()
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images of shape {images.shape} must be [B, H, W, 3]")
        image_height, image_width = images.shape[1:3]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        padded = image.pad_to_multiple(images.astype(wide), self.multiple)
        conv = partial(convolution, bias=False, dtype=self.dtype, implementation=self.implementation)

        def stage(name, level, width, blocks, heads):
            window = None if self.tlc_window is None else self.tlc_window // 2**level
            return TransformerStage(
                width,
                heads,
                blocks,
                self.expansion,
                self.attention,
                self.norm_bias,
                tlc_window=window,
                dtype=self.dtype,
                remat=self.remat,
                implementation=self.implementation,
                name=name,
            )

        x = conv("intro", 3, self.width)(padded)
        skips = []
        for level in range(self.levels):
            width = self.width * 2**level
            x = stage(f"encoders_{level}", level, width, self.encoder_blocks[level], self.encoder_heads[level])(x)
            skips.append(x)
            x = image.pixel_unshuffle(conv(f"downs_{level}", width, width // 2)(x), 2)
        width = self.width * 2**self.levels
        x = stage("middle", self.levels, width, self.middle_blocks, self.middle_heads)(x)
        for index, level in enumerate(reversed(range(self.levels))):
            x = image.pixel_shuffle(conv(f"ups_{index}", width, 2 * width)(x), 2)
            x = jnp.concatenate([x, skips[level]], axis=-1)
            if level > 0:
                x = conv(f"reductions_{index}", width, width // 2, kernel=1)(x)
                width //= 2
            x = stage(f"decoders_{index}", level, width, self.decoder_blocks[index], self.decoder_heads[index])(x)
        x = stage("refinement", 0, width, self.refinement_blocks, self.decoder_heads[-1])(x)
        restored = conv("ending", width, 3)(x).astype(wide) + padded
        return (restored[:, :image_height, :image_width],)
