"""Transposed attention: between the channels of a whole picture (Restormer, arXiv 2111.09881, section 3.1)."""

import jax
import jax.numpy as jnp

from concertormer_jax.ops.attention import Communication, spatial_attention


def transposed_attention(q: jax.Array, k: jax.Array, v: jax.Array, temperature: jax.Array) -> jax.Array:
    """Every channel of a head becomes a mean of all, weighted by how alike queries and keys are over the pixels.

    Queries and keys are normalised over the pixels; logits and softmax are computed in float32 at least.
    q, k, v: [B, H, W, m c], head after head; temperature: [m], what the logits are multiplied by. Returns q's shape.
    """
    batch, height, width, _ = q.shape
    heads = temperature.shape[0]

    def channels_first(features):  # [B, m, c, pixels]
        return features.reshape(batch, height * width, heads, -1).transpose(0, 2, 3, 1)

    # The attention between the rows of any matrices; here the rows are channels.
    communication = Communication(lambda logits: logits, bound=jnp.abs(temperature).max())
    attended = spatial_attention(*map(channels_first, (q, k, v)), temperature[:, None], communication)
    return attended.transpose(0, 3, 1, 2).reshape(q.shape)
