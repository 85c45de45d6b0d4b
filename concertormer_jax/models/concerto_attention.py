"""Concerto self-attention as a module of its own, for this network and any other."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from concertormer_jax.models.architecture import (
    groups_with_cdc,
    require_block,
    require_communication,
    require_groups,
)
from concertormer_jax.models.initial_values import ONES, torch_kaiming_normal, torch_uniform
from concertormer_jax.ops import concerto, reference
from concertormer_jax.ops.dispatch import require_implementation
from concertormer_jax.ops.layers import on_windows

# The collection for every group's logits before and after CDC: `apply(..., mutable=[LOGITS])` gives the pairs by the
# group's name, as `ops.reference` computes them: [b, n, m, p, q] or [b, n, m, c, d] inside blocks, [b, p, m, c, d] for
# `concertino_channel`, [b, m c, p, q] for `concertino_spatial`. Otherwise it costs nothing.
LOGITS = "logits"

# The parameters of each group's CDC, as the published model calls them.
CDC_PARAMETERS = {
    "ripieno_spatial": "b_talking",
    "ripieno_channel": "l_talking",
    "concertino_channel": "g_talking",
    "concertino_spatial": "r_talking",
}


@partial(jax.jit, static_argnames=("heads", "groups", "block", "implementation"))
def _attend(x, keys, weights, shifted, **settings):
    """`concerto_attention`, traced only once for all attentions with the same shapes, as tracing is slow.

    keys: None for those of `x`; shifted: None for never.
    """
    keys, shifted = x if keys is None else keys, False if shifted is None else shifted
    return concerto.concerto_attention(x, keys, weights, shifted, **settings)


class ConcertoSelfAttention(nn.Module):
    """Attention inside and across blocks, between positions and between channels (paper, section 3).

    It takes the place of another network's attention: `x + Dense(C)(ConcertoSelfAttention(hidden, heads)(norm(x)))`.
    Its cost grows linearly in the number of pixels, and its parameters do not depend on the size of the map.

    features: channels h of the result, in which the groups have equal parts; a multiple of len(groups) * heads.
    heads: in each group.
    groups: any of `ops.concerto.GROUPS`, where they are explained; the default is the paper's attention.
    communication: which groups have CDC: "both" kinds, "spatial", "channel" or "none". `window` and `transposed`
        attention have none.
    sca: whether the simplified channel attention scales the result by a projection of its mean over the map.
    block_px: side of a block in pixels, even.
    tlc_window: side in pixels of the windows on which the attention is computed at test time (the test-time local
        converter), a multiple of block_px; None for the whole map. Where windows overlap their results are averaged.
    dtype: of the computation; parameters, logits and softmax stay float32.
    implementation: "reference", "cpu", "gpu" or "tpu", which compute the same; None for that of the platform.
    """

    features: int
    heads: int = 1
    groups: tuple[str, ...] = concerto.CONCERTO
    communication: str = "both"
    sca: bool = True
    block_px: int = 8
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    implementation: str | None = None

    def validate(self) -> None:
        """Raise ValueError, naming the field, for an attention that cannot be built."""
        require_groups(self.groups)
        if not self.groups:
            raise ValueError("groups=() must name at least one group")
        if self.heads < 1 or self.features < 1 or self.features % (len(self.groups) * self.heads):
            raise ValueError(
                f"features={self.features} must be a multiple of the {len(self.groups)} groups times heads={self.heads}"
            )
        require_communication(self.communication)
        require_block(self.block_px)
        require_implementation(self.implementation)
        if self.tlc_window is not None and (self.tlc_window < 1 or self.tlc_window % self.block_px):
            raise ValueError(f"tlc_window={self.tlc_window} must be a positive multiple of block_px={self.block_px}")

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "..."],
        keys: Float[Array | np.ndarray, "..."] | None = None,
        *,
        shifted: Bool[Array, ""] | bool = False,
    ) -> Float[Array, "b H W features"]:
        """Attend from `x` to itself, or from `x` to `keys` (cross-attention).

        x: [B, H, W, C], normalised features (as a layer norm gives them), H and W multiples of block_px. keys:
        [B, H, W, C'], likewise, which give keys and values; None for x. shifted: move the blocks by half their size,
        circularly; may be traced. Returns [B, H, W, features], the channels in the order (group, head, channel), not
        projected back.

        Raises ValueError for H or W that are no multiples of block_px, for keys of another size, and for fields that do
        not fit together.
        """
        self.validate()
        if x.ndim != 4 or x.shape[1] % self.block_px or x.shape[2] % self.block_px:
            raise ValueError(
                f"x of shape {x.shape} must be [B, H, W, C] with H and W multiples of block_px={self.block_px}"
            )
        if keys is not None and keys.shape[:3] != x.shape[:3]:
            raise ValueError(f"keys of shape {keys.shape} must have the batch, height and width of x, {x.shape[:3]}")
        weights = self._weights(x.shape[-1], (x if keys is None else keys).shape[-1])
        settings = {"heads": self.heads, "groups": self.groups, "block": self.block_px}

        def attend(x, keys):
            if self.is_mutable_collection(LOGITS) and not self.is_initializing():
                self._sow(x, keys, weights, shifted)
            moved = None if shifted is False else shifted
            return _attend(
                x, None if keys is x else keys, weights, moved, implementation=self.implementation, **settings
            )

        x = jnp.asarray(x, self.dtype)
        keys = x if keys is None else jnp.asarray(keys, self.dtype)
        if self.tlc_window is None:
            return attend(x, keys)
        return on_windows(attend, (x, keys), self.tlc_window, implementation=self.implementation)

    def _weights(self, query_inputs: int, key_inputs: int) -> reference.AttentionWeights:
        heads, hidden = self.heads, self.features
        tempered = sum(group != concerto.WINDOW for group in self.groups)

        def pointwise(name, inputs, outputs):
            return self.param(name, torch_uniform(inputs), (inputs, outputs))

        return reference.AttentionWeights(
            to_q=pointwise("to_q", query_inputs, hidden),
            to_kv=pointwise("to_kv", key_inputs, 2 * hidden),
            temperature=self.param("temperature", ONES, (tempered, heads)) if tempered else None,
            cdc={group: self._cdc(group) for group in groups_with_cdc(self.groups, self.communication)},
            sca_kernel=pointwise("sca_kernel", hidden, hidden) if self.sca else None,
            sca_bias=self.param("sca_bias", torch_uniform(hidden), (hidden,)) if self.sca else None,
        )

    def _sow(self, x, keys, weights, shifted):
        settings = (shifted, self.heads, self.groups, self.block_px)
        for group, q, k, _, temperature in reference.projected(x, keys, weights, *settings):
            columns = x.shape[2] // self.block_px
            both = reference.group_logits(group, q, k, temperature, weights, shifted, self.groups, columns)
            if group == "concertino_spatial":
                both = tuple(logits.reshape(len(x), -1, *logits.shape[3:]) for logits in both)
            self.sow(LOGITS, group, both, init_fn=tuple, reduce_fn=lambda _, pair: pair)

    def _cdc(self, group):
        name = CDC_PARAMETERS[group]
        if group.startswith("ripieno"):
            return self.param(name, torch_uniform(9 * self.heads), (3, 3, self.heads, self.heads))
        channels = self.features // (len(self.groups) * self.heads)
        size = self.block_px**2 if group == "concertino_channel" else channels
        fan_in = size * size * self.heads  # PyTorch's for the shape (heads, size, size, heads)
        return self.param(name, torch_kaiming_normal(fan_in), (self.heads, size, size, self.heads))


def weights_alone(call: Callable, arguments: tuple, keywords: dict, context: nn.module.InterceptorContext) -> Any:
    """A method interceptor of Flax under which an attention makes its parameters and returns zeros.

    No parameter's initial value depends on its result, and to trace it is most of what tracing a network takes.
    """
    attention = context.module
    if not isinstance(attention, ConcertoSelfAttention) or context.method_name != "__call__":
        return call(*arguments, **keywords)

    def attend(x, keys=None, *, shifted=False):
        attention._weights(x.shape[-1], (x if keys is None else keys).shape[-1])
        return jnp.zeros((*x.shape[:-1], attention.features), attention.dtype)

    return attend(*arguments, **keywords)
