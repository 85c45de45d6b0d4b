"""The Concertormer U-Net: a picture in, the restored picture at four scales out."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from concertormer_jax.models.architecture import Architecture
from concertormer_jax.models.blocks import Stage
from concertormer_jax.models.initial_values import torch_uniform
from concertormer_jax.ops import image
from concertormer_jax.ops.dispatch import own_form, require_implementation
from concertormer_jax.ops.layers import convolve_to_few


def convolution(
    name: str,
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    bias: bool = True,
    dtype: Any = jnp.float32,
    implementation: str | None = None,
) -> nn.Conv:
    """A convolution with PyTorch's initial values; zero padding that keeps the size for stride 1, none otherwise."""

    def to_picture(features, kernel, *_, **__):
        return convolve_to_few(features, kernel, implementation=implementation)

    convolve = None  # Flax's own
    if kernel == 3 and outputs == 3:
        convolve = to_picture
    elif (own := own_form("convolve", implementation)) is not None:
        convolve = partial(_by_own_form, own)

    init = torch_uniform(kernel**2 * inputs)
    return nn.Conv(
        outputs,
        (kernel, kernel),
        strides=stride,
        padding="SAME" if stride == 1 else "VALID",
        use_bias=bias,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


def _by_own_form(own, features, kernel, strides, *_, **__):
    return own(features, kernel, strides[0])


def require_stages(network, counts: tuple[str, ...]) -> None:
    """Raise ValueError, naming the field, unless every level has its stages and all `counts` are positive."""
    for field in ("decoder_blocks", "encoder_heads", "decoder_heads"):
        if len(getattr(network, field)) != network.levels:
            raise ValueError(
                f"{field}={getattr(network, field)} must have one entry for each of the {network.levels} levels "
                f"of encoder_blocks={network.encoder_blocks}"
            )
    for field in counts:
        values = getattr(network, field)
        if min(values if isinstance(values, tuple) else (values,), default=0) < 1:
            raise ValueError(f"{field}={values} must be at least 1")


class Concertormer(nn.Module):
    """Multi-scale U-Net of Concertormer blocks (paper, section 3).

    Encoder fields have an entry for each level from the finest down, decoder fields from the deepest up. The parameters
    do not depend on the last four fields.

    width: channels of the features at the finest level; each level below has twice as many.
    encoder_blocks, middle_blocks, decoder_blocks: of each stage.
    encoder_heads, middle_heads, decoder_heads: in each group of the attention.
    expansion: hidden channels of a block for each channel of its features.
    unshuffle: each square of unshuffle x unshuffle pixels of a picture is one position of the finest level, with its
        pixels as channels (pixel unshuffle; 1 in the paper). So level i has 1 / (unshuffle 2**i) of the picture's
        resolution.
    architecture: what else the blocks are made of.
    tlc_window: side in pixels of the picture of the test-time local converter's windows, None for none. On level i they
        have tlc_window // (unshuffle 2**i) positions.
    dtype: of the computation; parameters, norms and softmax stay float32.
    remat: compute each block's inside again in the backward pass.
    implementation: "reference", "cpu", "gpu" or "tpu", which compute the same; None for that of the platform.
    """

    width: int
    encoder_blocks: tuple[int, ...]
    middle_blocks: int
    decoder_blocks: tuple[int, ...]
    encoder_heads: tuple[int, ...]
    middle_heads: int
    decoder_heads: tuple[int, ...]
    expansion: int | float = 2  # a whole number
    unshuffle: int = 1
    architecture: Architecture = Architecture()
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
        return self.architecture.block_px * self.unshuffle * 2**self.levels

    @property
    def hidden_channels_per_pixel(self) -> float:
        """Numbers for each pixel of a picture in an array of the finest level's hidden channels."""
        return self.width * self.expansion / self.unshuffle**2

    def validate(self) -> None:
        """Raise ValueError, naming the field, for a network that cannot be built."""
        if self.expansion % 1:
            raise ValueError(f"expansion={self.expansion} must be a whole number; only Restormer's may be any")
        require_stages(self, ("width", "expansion", "unshuffle", "encoder_blocks", "decoder_blocks", "middle_blocks"))
        require_implementation(self.implementation)
        stages = [("encoder_heads", level, heads) for level, heads in enumerate(self.encoder_heads)]
        stages += [("decoder_heads", level, heads) for level, heads in enumerate(self.decoder_heads[::-1])]
        for field, level, heads in [*stages, ("middle_heads", self.levels, self.middle_heads)]:
            hidden = self.width * self.expansion * 2**level
            groups = max(1, len(self.architecture.groups))
            if heads < 1 or hidden % (groups * heads):
                raise ValueError(
                    f"{field}={getattr(self, field)}: {heads} heads do not divide the {hidden} hidden channels "
                    f"of their level into {groups} groups"
                )
        if self.tlc_window is not None and (self.tlc_window < 1 or self.tlc_window % self.multiple):
            raise ValueError(
                f"tlc_window={self.tlc_window} must be a positive multiple of {self.multiple} pixels, "
                f"so that blocks of {self.architecture.block_px}x{self.architecture.block_px} fit at every level"
            )

    @nn.compact
    def __call__(self, images: Float[image.Image, "..."]) -> tuple[Float[Array, "b _ _ 3"], ...]:
        """Restore images [B, H, W, 3] in [0, 1], any H and W from 1.

        Returns the outputs of all scales in float32, coarsest first: [B, H' / 2**i, W' / 2**i, 3] for i = levels .. 1,
        with H' and W' the size padded to `multiple`, and the restored images [B, H, W, 3]. Values are not clipped.
        """
        self.validate()
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images of shape {images.shape} must be [B, H, W, 3]")
        image_height, image_width = images.shape[1:3]
        wide = jnp.promote_types(self.dtype, jnp.float32)
        padded = image.pad_to_multiple(images.astype(wide), self.multiple)
        pyramid = [padded, *(image.downsample(padded, 2**i) for i in range(1, self.levels + 1))]
        pyramid = [image.pixel_unshuffle(picture, self.unshuffle) for picture in pyramid]
        picture_channels = pyramid[0].shape[-1]

        conv = partial(convolution, dtype=self.dtype, implementation=self.implementation)

        def width(level):
            return self.width * 2**level

        def stage(name, level, blocks, heads):
            window = None if self.tlc_window is None else self.tlc_window // (self.unshuffle * 2**level)
            return Stage(
                width(level),
                heads,
                blocks,
                int(self.expansion),
                self.architecture,
                tlc_window=window,
                dtype=self.dtype,
                remat=self.remat,
                implementation=self.implementation,
                name=name,
            )

        def entered(x, y, name, how):
            """x and y for a stage that `y` enters: as its keys, or merged with x before it."""
            if how == "cross_attention":
                return x, y
            if how == "sum":
                return x + y, None
            both = jnp.concatenate([x, y], axis=-1)
            return conv(name, both.shape[-1], x.shape[-1], kernel=1, bias=False)(both), None

        def output(name, level, x):
            """The picture of a level: the restored difference and the picture that came in, float32 [B, H, W, 3]."""
            difference = conv(name, width(level), picture_channels)(x).astype(wide)
            return image.pixel_shuffle(difference + pyramid[level], self.unshuffle)

        picture_enters = "cross_attention" if self.architecture.groups else "sum"
        x, y = conv("intro", picture_channels, self.width)(pyramid[0]), None
        skips = []
        for level in range(self.levels):
            x = stage(f"encoders_{level}", level, self.encoder_blocks[level], self.encoder_heads[level])(x, y)
            skips.append(x)
            x = conv(f"downs_{level}", width(level), width(level + 1), kernel=2, stride=2)(x)
            if self.architecture.multiscale_input:
                y = conv(f"intros_{level}", picture_channels, width(level + 1))(pyramid[level + 1])
                x, y = entered(x, y, None, picture_enters)
        x = stage("middle", self.levels, self.middle_blocks, self.middle_heads)(x, y)

        outputs = []
        for index, level in enumerate(reversed(range(self.levels))):
            outputs.append(output(f"endings_{index}", level + 1, x))
            x = conv(f"ups_{index}", width(level + 1), width(level + 2), kernel=1, bias=False)(x)
            x, y = entered(image.pixel_shuffle(x, 2), skips[level], f"merges_{index}", self.architecture.skip)
            x = stage(f"decoders_{index}", level, self.decoder_blocks[index], self.decoder_heads[index])(x, y)
        restored = output("ending", 0, x)
        return (*outputs, restored[:, :image_height, :image_width])
