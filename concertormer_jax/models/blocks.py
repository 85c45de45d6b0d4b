"""The Concertormer block: Concerto self-attention and gated-dconv MLP in a single stage, and a stack of such blocks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from concertormer_jax.ops import attention, tlc
from concertormer_jax.ops.convolution import depthwise_3x3
from concertormer_jax.ops.projection import project

GROUPS = 4  # Ripieno and Concertino, spatial and channel
NORM_EPSILON = 1e-6


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases: uniform within 1 / sqrt(fan_in) of zero."""
    bound = fan_in**-0.5
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


def torch_kaiming_normal(fan_in: int):
    """Kaiming normal with a = sqrt(5): the standard deviation is 1 / sqrt(3 fan_in)."""
    return nn.initializers.normal((3 * fan_in) ** -0.5)


def layer_norm(name: str) -> nn.LayerNorm:
    """Layer norm over the channels of every pixel with scale and bias, in their float32 whatever its input."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, use_fast_variance=False, name=name)


class Block(nn.Module):
    """One block: x + CSA-gdMLP(norm(x), keys), the keys being norm(x) in all but the first block of a cross stage.

    (Paper, section 3.) `tlc_window` is the side in pixels of this level's windows for the attention, None for the
    whole map.
    """

    features: int
    heads: int
    expansion: int
    tlc_window: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shifted: jax.Array | bool, keys: jax.Array | None, first: jax.Array | bool):
        """x: [B, H, W, C], H and W multiples of 8. Returns the same shape.

        shifted: move the attention's blocks by half their size. keys: [B, H, W, C], the normalised features that give
        keys and values where `first` is true. Both booleans may be traced.
        """
        width, hidden = self.features, self.features * self.expansion
        channels = hidden // (GROUPS * self.heads)
        positions = attention.BLOCK**2
        queries = layer_norm("norm")(x).astype(self.dtype)
        keys = queries if keys is None else jnp.where(first, keys, queries)

        def pointwise(name, inputs, outputs):
            return self.param(name, torch_uniform(inputs), (inputs, outputs))

        def talking_over_blocks(name):
            return self.param(name, torch_uniform(9 * self.heads), (3, 3, self.heads, self.heads))

        def talking(name, size):
            fan_in = size * size * self.heads  # PyTorch's for the shape (heads, size, size, heads)
            return self.param(name, torch_kaiming_normal(fan_in), (self.heads, size, size, self.heads))

        to_quz = pointwise("to_quz", width, 3 * hidden).astype(self.dtype)
        weights = attention.Weights(
            to_q=to_quz[:, :hidden],
            to_kv=pointwise("to_kv", width, 2 * hidden),
            temperature=self.param("temperature", nn.initializers.ones, (GROUPS, self.heads)),
            b_talking=talking_over_blocks("b_talking"),
            l_talking=talking_over_blocks("l_talking"),
            g_talking=talking("g_talking", positions),
            r_talking=talking("r_talking", channels),
            sca_kernel=pointwise("sca_kernel", hidden, hidden),
            sca_bias=self.param("sca_bias", torch_uniform(hidden), (hidden,)),
        )
        attend = partial(attention.concerto_attention, weights=weights, shifted=shifted)
        if self.tlc_window is None:
            attended = attend(queries, keys)
        else:
            attended = tlc.on_windows(attend, (queries, keys), self.tlc_window)

        dw_u = self.param("dw_u", torch_uniform(9), (3, 3, hidden)).astype(self.dtype)
        to_hidden = pointwise("project", hidden, hidden).astype(self.dtype)
        to_output = pointwise("project_out", hidden, width).astype(self.dtype)
        with jax.named_scope("gdmlp"):
            u, z = jnp.split(project(queries, to_quz[:, hidden:]), 2, axis=-1)
            return x + project((project(attended, to_hidden) + depthwise_3x3(u, dw_u)) * z, to_output)


class Stage(nn.Module):
    """`blocks` equal blocks of one level, every other one shifted; the first may take in other features `y`.

    The blocks are scanned: they are compiled once and their parameters are stacked on a first axis.
    """

    features: int
    heads: int
    blocks: int
    expansion: int
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """x, y: [B, H, W, C]; y makes the first a cross block, whose keys and values come from it.

        Returns [B, H, W, C].
        """
        keys = None if y is None else layer_norm("norm2")(y).astype(self.dtype)

        def apply(block, x, position):
            return block(x, position % 2 == 1, keys, position == 0), None

        if self.remat:
            apply = nn.remat(apply, prevent_cse=False)
        scan = nn.scan(apply, variable_axes={"params": 0}, split_rngs={"params": True})
        block = Block(self.features, self.heads, self.expansion, self.tlc_window, self.dtype, name="blocks")
        return scan(block, x, jnp.arange(self.blocks))[0]
