"""The Concertormer block: Concerto self-attention and gated-dconv MLP in a single stage, and a stack of such blocks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from concertormer_jax.ops import attention, tlc
from concertormer_jax.ops.convolution import depthwise_3x3

GROUPS = 4  # Ripieno and Concertino, spatial and channel
NORM_EPSILON = 1e-6


def torch_uniform(fan_in: int):
    """PyTorch's default for convolutions, weights and biases: uniform within 1 / sqrt(fan_in) of zero."""
    bound = fan_in**-0.5
    return partial(jax.random.uniform, minval=-bound, maxval=bound)


def torch_kaiming_normal(fan_in: int):
    """Kaiming normal with a = sqrt(5): the standard deviation is 1 / sqrt(3 fan_in)."""
    return nn.initializers.normal((3 * fan_in) ** -0.5)


class Block(nn.Module):
    """One block: x + CSA-gdMLP(norm(x)), or x + CSA-gdMLP(norm1(x), norm2(y)) for a cross block (paper, section 3.3).

    `tlc_window` is the side in pixels of this level's windows for the attention, None for the whole map.
    """

    features: int
    heads: int
    expansion: int
    cross: bool = False
    tlc_window: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, shifted: jax.Array | bool, y: jax.Array | None = None) -> jax.Array:
        """x, y: [B, H, W, C], H and W multiples of 8; y for a cross block only. Returns [B, H, W, C]."""
        width, hidden = self.features, self.features * self.expansion
        channels = hidden // (GROUPS * self.heads)
        positions = attention.BLOCK**2

        def norm(name):
            return nn.LayerNorm(epsilon=NORM_EPSILON, use_fast_variance=False, dtype=jnp.float32, name=name)

        if self.cross:
            queries = norm("norm1")(x).astype(self.dtype)
            keys = norm("norm2")(y).astype(self.dtype)
        else:
            queries = keys = norm("norm")(x).astype(self.dtype)

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
        project = pointwise("project", hidden, hidden).astype(self.dtype)
        project_out = pointwise("project_out", hidden, width).astype(self.dtype)
        u, z = jnp.split(queries @ to_quz[:, hidden:], 2, axis=-1)
        return x + ((attended @ project + depthwise_3x3(u, dw_u)) * z) @ project_out


class Stage(nn.Module):
    """`blocks` blocks of one level, every other one shifted; the first is a cross block if there are features to take in.

    The equal blocks are scanned: they are compiled once and their parameters are stacked on a first axis.
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
        """x, y: [B, H, W, C]. Returns [B, H, W, C]."""
        block = partial(Block, self.features, self.heads, self.expansion, tlc_window=self.tlc_window, dtype=self.dtype)

        def first(module, x, y):
            return module(x, False, y)

        def following(module, x, shifted):
            return module(x, shifted), None

        if self.remat:
            first, following = nn.remat(first), nn.remat(following, prevent_cse=False)
        shifted = np.arange(self.blocks) % 2 == 1
        if y is not None:
            x = first(block(cross=True, name="cross"), x, y)
            shifted = shifted[1:]
        if shifted.size:
            scan = nn.scan(following, variable_axes={"params": 0}, split_rngs={"params": True})
            x, _ = scan(block(name="blocks"), x, jnp.asarray(shifted))
        return x
