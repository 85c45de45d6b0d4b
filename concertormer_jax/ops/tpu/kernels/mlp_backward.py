"""The derivatives of the gated-dconv MLP."""

import jax.numpy as jnp
from jax.experimental import pallas as pl

from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.tpu.kernels.mlp import depthwise, lane_taps, neighbourhoods
from concertormer_jax.ops.tpu.kernels.tiles import AT_ONCE, LANES, ROWS, Tiles, call, dot


def gated_mlp_backward(tiles: Tiles, features, ripieno, concertino, gradient, shifted, mlp: MLPWeights):
    """The derivatives of ((attended to_hidden + depthwise3x3(u)) * z) to_output, with u and z from `features`.

    features, gradient: [P, C, N]; ripieno, concertino: [P, h / 2, N]; shifted: int32 [1], as in `mlp.gated_mlp`;
    mlp: in the type of the features. Returns those by features, ripieno and concertino, and in float32 by the weights.
    """
    width, hidden = features.shape[1], mlp.to_output.shape[0]
    parts = tiles.parts
    dtype, wide = features.dtype, jnp.float32
    half = hidden // 2

    def kernel(shifted, features, ripieno, concertino, gradient, to_uz, taps, to_hidden, to_output, *rest):
        by_features, by_ripieno, by_concertino, by_uz, by_taps, by_hidden, by_output, *scratch = rest
        u, mixed, from_features, from_attended = scratch
        from_features[...] = to_uz[...].T
        from_attended[...] = to_hidden[...].T
        for sums in (by_uz, by_taps, by_hidden, by_output):
            sums[...] = jnp.zeros(sums.shape, wide)

        @pl.loop(0, tiles.pixels)
        def _(p):
            for t in range(parts):
                u[p, t] = dot(from_features[:hidden], features[p, :, t * LANES : (t + 1) * LANES])

        def for_channels(function):
            @pl.loop(0, hidden // ROWS)
            def _(chunk):
                function(pl.ds(pl.multiple_of(chunk * ROWS, ROWS), ROWS))

        def convolve(channels):
            @pl.loop(0, parts)
            def _(t):
                depthwise(tiles, u, mixed, [taps[tap, channels] for tap in range(9)], channels, t, shifted[0])

        for_channels(convolve)

        # Back through the products; `mixed` becomes the derivative by what the convolution returned.

        @pl.loop(0, tiles.pixels)
        def _(p):
            for first in range(0, parts, AT_ONCE):
                together = range(first, min(first + AT_ONCE, parts))
                lanes = slice(first * LANES, (together[-1] + 1) * LANES)
                own, given = features[p, :, lanes], gradient[p, :, lanes]
                attended = jnp.concatenate([ripieno[p, :, lanes], concertino[p, :, lanes]], axis=0)
                inner = dot(from_attended[...], attended) + jnp.concatenate([mixed[p, t] for t in together], axis=1)
                z = dot(from_features[hidden:], own)
                by_gated = dot(to_output[...], given)
                by_output[...] += dot((inner * z).astype(dtype), given, (1, 1))
                by_inner, by_z = by_gated * z, (by_gated * inner).astype(dtype)
                for n, t in enumerate(together):
                    mixed[p, t] = by_inner[:, n * LANES : (n + 1) * LANES]
                by_inner = by_inner.astype(dtype)
                by_hidden[...] += dot(attended, by_inner, (1, 1))
                by_uz[hidden:] += dot(by_z, own, (1, 1))
                by_features[p, :, lanes] = dot(to_uz[:, hidden:], by_z).astype(dtype)
                by_attended = dot(to_hidden[...], by_inner).astype(dtype)
                by_ripieno[p, :, lanes], by_concertino[p, :, lanes] = by_attended[:half], by_attended[half:]

        # Back through the convolution; `u` becomes the derivative by itself.

        def convolve_back(channels):
            @pl.loop(0, parts)
            def _(t):
                totals = [jnp.zeros((ROWS, LANES), wide)] * 9
                for position, nearby in neighbourhoods(tiles, u, channels, t, shifted[0]):
                    given = mixed[position, t, channels]
                    totals = [total + given * value for total, value in zip(totals, nearby, strict=True)]
                for tap in range(9):
                    by_taps[tap, channels] += totals[tap]

            @pl.loop(0, parts)
            def _(t):
                depthwise(tiles, mixed, u, [taps[8 - tap, channels] for tap in range(9)], channels, t, shifted[0])

        for_channels(convolve_back)

        @pl.loop(0, tiles.pixels)
        def _(p):
            for first in range(0, parts, AT_ONCE):
                together = range(first, min(first + AT_ONCE, parts))
                lanes = slice(first * LANES, (together[-1] + 1) * LANES)
                by_u = jnp.concatenate([u[p, t] for t in together], axis=1).astype(dtype)
                by_uz[:hidden] += dot(by_u, features[p, :, lanes], (1, 1))
                total = by_features[p, :, lanes].astype(wide) + dot(to_uz[:, :hidden], by_u)
                by_features[p, :, lanes] = total.astype(dtype)

    maps = ((tiles.pixels, parts, hidden, LANES), wide)
    scratch = [maps, maps, ((2 * hidden, width), dtype), ((hidden, hidden), dtype)]
    outputs = [(array.shape, dtype) for array in (features, ripieno, concertino)]
    outputs += [((2 * hidden, width), wide), ((9, hidden, LANES), wide), ((hidden, hidden), wide)]
    outputs += [((hidden, width), wide)]
    weights = (mlp.to_uz, lane_taps(mlp.depthwise), mlp.to_hidden, mlp.to_output)
    inputs = (features, ripieno, concertino, gradient, *weights)
    results = call(kernel, outputs, *inputs, scalars=(shifted,), scratch=scratch, name="gated_mlp_backward")
    *by_maps, by_uz, by_taps, by_hidden, by_output = results
    by_taps = by_taps.sum(axis=-1).reshape(mlp.depthwise.shape)
    return *by_maps, MLPWeights(by_uz.T, by_taps, by_hidden, by_output)
