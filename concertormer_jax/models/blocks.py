"""The Concertormer block: Concerto self-attention and gated-dconv MLP in a single stage, and a stack of such blocks."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from concertormer_jax.models.architecture import Architecture
from concertormer_jax.models.concerto_attention import CDC_PARAMETERS, LOGITS, ConcertoSelfAttention
from concertormer_jax.models.initial_values import ONES, ZEROS, torch_uniform
from concertormer_jax.ops.dispatch import own_form
from concertormer_jax.ops.layers import gated_mlp, project
from concertormer_jax.ops.reference import AttentionWeights, MLPWeights

NORM_EPSILON = 1e-6


def layer_norm(name: str) -> nn.LayerNorm:
    """Layer norm over the channels of every pixel with scale and bias, in their float32 whatever its input."""
    return nn.LayerNorm(NORM_EPSILON, use_fast_variance=False, scale_init=ONES, bias_init=ZEROS, name=name)


def feed_forward_channels(features: int, expansion: int) -> int:
    """Hidden channels f of a two-stage block's feed-forward network, so that it costs what a block in one stage does.

    With C features and h = r C hidden channels, the projections of attention cost 4 r C^2 per pixel (q, k, v and the
    output), those of the feed-forward network 3 f C (u, z and the output), and those of one stage (6 r + r^2) C^2.
    """
    return features * expansion * (2 + expansion) // 3


class Block(nn.Module):
    """One block: x + CSA-gdMLP(norm(x), keys), the keys being norm(x) in all but the first block of a cross stage.

    (Paper, section 3.)

    features: channels C of x; heads: in each group of the attention; expansion: hidden channels for each channel of x.
    architecture: which parts the block has. tlc_window: side of the attention's windows in positions of this level,
        None for the whole map. dtype: of the computation. implementation: of the attention and the MLP, see
        `ops.dispatch.form`.
    """

    features: int
    heads: int
    expansion: int
    architecture: Architecture = Architecture()
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    implementation: str | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b H W C"],
        shifted: Bool[Array, ""] | bool,
        keys: Float[Array, "b H W C"] | None,
        first: Bool[Array, ""] | bool,
    ) -> Float[Array, "b H W C"]:
        """x: H and W are multiples of the attention's block size.

        shifted: move the attention's blocks by half their size. keys: the normalised features that give keys and values
        where `first` is true. Both booleans may be traced.
        """
        width, hidden = self.features, self.features * self.expansion
        inputs = layer_norm("norm")(x).astype(self.dtype)

        def pointwise(name, inputs, outputs):
            return self.param(name, torch_uniform(inputs), (inputs, outputs)).astype(self.dtype)

        attended = self._attend(inputs, shifted, keys, first) if self.architecture.groups else None
        if self.architecture.two_stage:
            x = x + project(attended, pointwise("attention_out", hidden, width))
            inputs, attended = layer_norm("norm_mlp")(x).astype(self.dtype), None
            hidden = feed_forward_channels(self.features, self.expansion)

        to_uz = pointwise("to_uz", width, 2 * hidden)
        dw_u = self.param("dw_u", torch_uniform(9), (3, 3, hidden)).astype(self.dtype)
        to_hidden = None if attended is None else pointwise("project", hidden, hidden)
        to_output = pointwise("project_out", hidden, width)
        with jax.named_scope("gdmlp"):
            weights = MLPWeights(to_uz, dw_u, to_hidden, to_output)
            return gated_mlp(x, inputs, attended, weights, implementation=self.implementation)

    def _attend(self, inputs, shifted, keys, first):
        attention = ConcertoSelfAttention(
            self.features * self.expansion,
            self.heads,
            self.architecture.groups,
            self.architecture.communication,
            self.architecture.sca,
            self.architecture.block_px,
            self.tlc_window,
            self.dtype,
            self.implementation,
            name="attention",
        )
        if keys is not None and first is not True:
            keys = jnp.where(first, keys, inputs)
        return attention(inputs, keys, shifted=shifted)


class Stage(nn.Module):
    """`blocks` equal blocks of one level; the first may take in other features `y`.

    Every other block is shifted, unless `architecture` has no shift. The blocks are scanned: they are compiled once and
    their parameters are stacked on a first axis. remat: compute each block's inside again in the backward pass. The
    other fields are those of `Block`.
    """

    features: int
    heads: int
    blocks: int
    expansion: int
    architecture: Architecture = Architecture()
    tlc_window: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False
    implementation: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"], y: Float[Array, "b H W C"] | None = None) -> Float[Array, "b H W C"]:
        """y makes the first a cross block, whose keys and values come from it."""
        tiled = self._tiled(x)
        if tiled is not None:
            params = self.variables["params"]
            norm = None if y is None else (params["norm2"]["scale"], params["norm2"]["bias"])
            return tiled(x, y, norm, block_weights(params["blocks"]), self.architecture.shift, self.heads)

        keys = None if y is None else layer_norm("norm2")(y).astype(self.dtype)
        fields = ("features", "heads", "expansion", "architecture", "tlc_window", "dtype", "implementation")
        block = partial(Block, **{field: getattr(self, field) for field in fields}, name="blocks")
        if not self._stores():
            return run_blocks(block(parent=None), self.remat, self.variables["params"]["blocks"], x, keys)

        def apply(block, x, position):
            return block(x, _is_shifted(block, position), keys, position == 0), None

        scan = nn.scan(
            apply,
            variable_axes={"params": 0, LOGITS: 0},
            split_rngs={"params": True},
            check_constancy_invariants=False,  # which would trace every block twice
        )
        return scan(block(), x, jnp.arange(self.blocks))[0]

    def _stores(self):
        """Whether parameters or logits are stored."""
        return self.is_initializing() or self.is_mutable_collection(LOGITS)

    def _tiled(self, x):
        """The form that computes this stage at once; None where its blocks have to run one after another."""
        a = self.architecture
        published = Architecture(shift=a.shift, multiscale_input=a.multiscale_input, skip=a.skip)
        if a != published or self.tlc_window is not None or self._stores():
            return None
        of_shape = own_form("tiled_stage", self.implementation)
        return of_shape and of_shape(x.shape[1:], self.features * self.expansion, self.heads, x.dtype)


def _is_shifted(block, position):
    return position % 2 == 1 if block.architecture.shift else False


@partial(jax.jit, static_argnums=(0, 1))
def run_blocks(
    block: Block, remat: bool, params: Any, x: Float[Array, "b H W C"], keys: Float[Array, "b H W C"] | None
) -> Float[Array, "b H W C"]:
    """The blocks of a stage one after another; JAX traces this once for all equal stages of a network.

    block: each of them, unbound. remat: see `Stage`. params: their parameters, stacked on a first axis. keys: see
    `Block`. One block alone is no loop, whose derivative JAX would trace several times.
    """
    if len(jax.tree.leaves(params)[0]) == 1:
        run = jax.checkpoint(_apply, static_argnums=0) if remat else _apply
        return run(block, jax.tree.map(lambda stacked: stacked[0], params), x, keys, 0)
    return (_run_recomputing if remat else _run)(block, params, x, keys)


def _apply(block, params, x, keys, position):
    return block.apply({"params": params}, x, _is_shifted(block, position), keys, position == 0)


def _run(block, params, x, keys):
    def step(x, numbered):
        position, own = numbered
        return _apply(block, own, x, keys, position), None

    return jax.lax.scan(step, x, (np.arange(len(jax.tree.leaves(params)[0]), dtype=np.int32), params))[0]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_recomputing(block, params, x, keys):
    """`_run`; its derivative keeps the input of each block and computes the rest again. It has no forward-mode one.

    The derivative of a scan of `jax.checkpoint` would count down from the loop's counter in every kernel that takes a
    block's parameters, so that XLA would compile none of them for both loops.
    """
    return _run_keeping_inputs(block, params, x, keys)[0]


def _run_keeping_inputs(block, params, x, keys):
    def step(carry, own):
        position, x = carry
        return (position + 1, _apply(block, own, x, keys, position)), x

    (_, output), inputs = jax.lax.scan(step, (jnp.int32(0), x), params)
    return output, (params, inputs, keys)


def _run_derivative(block, kept, gradient):
    params, inputs, keys = kept

    def step(carry, _):
        position, of_params, of_x, _ = carry
        own, x = jax.tree.map(partial(_at, position), (params, inputs))
        _, derivative = jax.vjp(lambda *given: _apply(block, *given, position), own, x, keys)
        of_own, of_x, of_keys = derivative(of_x)
        of_params = jax.tree.map(partial(_put_at, position), of_params, of_own)
        # Without the maximum, XLA would compute the position from the loop's counter.
        return (jnp.maximum(position - 1, 0), of_params, of_x, of_keys), None

    # The first values of the gradients of parameters and keys are overwritten. Zeros would be kernels of their own, so
    # these are arrays at hand. The first block, which alone takes the keys, comes last.
    start = jnp.int32(len(inputs) - 1), params, gradient, keys
    return jax.lax.scan(step, start, length=len(inputs))[0][1:]


_run_recomputing.defvjp(_run_keeping_inputs, _run_derivative)


def _at(position, stacked):
    return jax.lax.dynamic_index_in_dim(stacked, position, keepdims=False, allow_negative_indices=False)


def _put_at(position, stacked, own):
    return jax.lax.dynamic_update_index_in_dim(stacked, own, position, axis=0, allow_negative_indices=False)


def block_weights(params: Mapping[str, Any]) -> tuple[tuple, AttentionWeights, MLPWeights]:
    """Return what `ops.reference.block` takes (norm, attention, mlp), from the parameters of a published `Block`."""
    attention = params["attention"]
    cdc = {group: attention[name] for group, name in CDC_PARAMETERS.items()}
    projections = attention["to_q"], attention["to_kv"], attention["temperature"]
    weights = AttentionWeights(*projections, cdc, attention["sca_kernel"], attention["sca_bias"])
    mlp = MLPWeights(params["to_uz"], params["dw_u"], params["project"], params["project_out"])
    return (params["norm"]["scale"], params["norm"]["bias"]), weights, mlp
