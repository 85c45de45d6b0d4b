"""Small kernels in Pallas's simulation of a TPU: it finds races, reads beyond arrays, and uses of what nobody wrote."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as simulation
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from test_implementations import random_arrays

from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.tpu.kernels.concertino import concertino
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp, gated_mlp_backward
from concertormer_jax.ops.tpu.kernels.moves import enter, leave, move_and_normalise, normalise
from concertormer_jax.ops.tpu.kernels.ripieno import ripieno
from concertormer_jax.ops.tpu.kernels.ripieno_backward import ripieno_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward_layout import lane_matrix
from concertormer_jax.ops.tpu.kernels.ripieno_layout import cdc_matrix
from concertormer_jax.ops.tpu.kernels.tiles import LANES, Tiles

TILES = Tiles(8, 16, 8)
OFF, ON = (jnp.full(1, flag, jnp.int32) for flag in (0, 1))
BOUNDED = jnp.asarray([1, 0])  # without a maximum taken first, and with
DETECTING = pltpu.InterpretParams(detect_races=True)


def features(channels):
    return TILES.pixels, channels, LANES


def cut(maps):
    return leave(TILES, enter(TILES, maps), True)


def begin(x, keys, scale, bias):
    return move_and_normalise(TILES, x, scale, bias, OFF, ON, keys, ON), normalise(TILES, x, scale, bias)


def inside_blocks(x, y, to_q, to_kv, *cdc):
    matrices = [cdc_matrix((TILES.rows, TILES.columns), 2, kernel) for kernel in cdc]
    return ripieno(TILES, x, y, to_q, to_kv, *matrices, 2, ON, BOUNDED)


def across_blocks(x, y, *weights):
    return concertino(TILES, x, y, *weights, 1, BOUNDED)


def mlp(x, given, ripieno, concertino, sums, sca_kernel, sca_bias, *weights):
    return gated_mlp(TILES, x, given, ripieno, concertino, sums, ON, MLPWeights(*weights), sca_kernel, sca_bias)


def mlp_backward(x, ripieno, concertino, gradient, *weights):
    return gated_mlp_backward(TILES, x, ripieno, concertino, gradient, ON, MLPWeights(*weights))


def inside_blocks_backward(x, gradient, to_q, to_k, to_v, cdc, *, spatial):
    kernels, matrix = (to_q, to_k, to_v), lane_matrix(TILES, cdc)
    return ripieno_backward(TILES, spatial, x[None], x[None], gradient[None], kernels, matrix, 1, ON)


QUICK = ("cut", "begin", "mlp")
WEIGHTS = [(8, 32), (3, 3, 16), (16, 16), (16, 8)]
OF_BLOCKS = [features(8), features(8), *[(8, 8)] * 3, (3, 3, 1, 1)]
CASES = {
    "cut": (cut, [(64, 128, 8)]),
    "begin": (begin, [features(8), features(8), (8,), (8,)]),
    "ripieno": (inside_blocks, [features(8), features(8), (8, 64), (8, 128), *[(3, 3, 2, 2)] * 2]),
    "concertino": (across_blocks, [features(8), features(8), (8, 32), (8, 64), (64, 64), (8, 8)]),
    "mlp": (mlp, [*[features(8)] * 4, (16, LANES), (16, 16), (16,), *WEIGHTS]),
    "mlp_backward": (mlp_backward, [*[features(8)] * 4, *WEIGHTS]),
    "ripieno_channel_backward": (partial(inside_blocks_backward, spatial=False), OF_BLOCKS),
    "ripieno_spatial_backward": (partial(inside_blocks_backward, spatial=True), OF_BLOCKS),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in CASES]
)
def test_a_kernel_has_no_races(monkeypatch, name):
    function, shapes = CASES[name]
    arrays = [jnp.asarray(array) for array in random_arrays(*shapes)]
    expected = function(*arrays)
    call = pl.pallas_call
    monkeypatch.setattr(pl, "pallas_call", lambda *given, **options: call(*given, **options | {"interpret": DETECTING}))
    found = function(*arrays)
    assert not simulation.races.races_found
    for ours, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(other).max())


def test_races_are_found():
    """A copy that is read before it is awaited."""

    def kernel(x, out, copied, semaphore):
        copy = pltpu.make_async_copy(x, copied, semaphore)
        copy.start()
        out[...] = copied[...]
        copy.wait()

    x = jnp.ones((8, LANES))
    scratch = [pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA]
    try:
        pl.pallas_call(kernel, out_shape=x, scratch_shapes=scratch, interpret=DETECTING)(x).block_until_ready()
    except jax.errors.JaxRuntimeError as error:  # JAX 0.12 and newer end the kernel there
        assert "RACE DETECTED" in str(error)
    else:
        assert simulation.races.races_found
