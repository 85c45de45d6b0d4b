"""Derivatives of stages that are kernels for a TPU: interpreted, against the reference, and where they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from test_implementations import random_arrays, random_parameters

from concertormer_jax.models.blocks import Stage
from concertormer_jax.ops import reference
from concertormer_jax.ops.dispatch import own_form, traced_for
from concertormer_jax.ops.platform import training_mesh
from concertormer_jax.ops.reference import MLPWeights
from concertormer_jax.ops.tpu.kernels import stage as stages
from concertormer_jax.ops.tpu.kernels.mlp import gated_mlp_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward import ripieno_backward
from concertormer_jax.ops.tpu.kernels.ripieno_backward_layout import lane_matrix
from concertormer_jax.ops.tpu.kernels.tiles import Tiles

BLOCK, HALF = 8, 4
UPRIGHT = Tiles(8, 16, 8)  # 64 x 128 pixels
HALVES = Tiles(16, 8, 4)  # 64 x 64 pixels, whose blocks are two tiles


def size_of(tiles):
    return tiles.rows * tiles.height, tiles.columns * BLOCK


def in_tiles(tiles, maps):
    """[b, H, W, C] to [b, P, C, N] of shifted tiles."""
    maps = reference.shift(maps, -HALF)
    apart = maps.reshape(len(maps), tiles.rows, tiles.height, tiles.columns, BLOCK, -1)
    return apart.transpose(0, 2, 4, 5, 1, 3).reshape(len(maps), tiles.pixels, -1, tiles.count)


def assert_close(found, expected, tolerance=1e-4):
    for ours, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=tolerance * np.abs(other).max())


def attended(group, heads, q, k, v, cdc):
    """The reference's attention of projected maps in shifted blocks."""

    def blocks(maps):
        maps = reference.partition(reference.shift(maps, -HALF), BLOCK)
        return maps.reshape(*maps.shape[:3], heads, -1)

    weights = reference.AttentionWeights(q, k, None, {group: cdc})
    columns = q.shape[2] // BLOCK
    given = blocks(q), blocks(k), jnp.ones(heads), weights, True, reference.CONCERTO, columns
    _, logits = reference.group_logits(group, *given)
    result = jnp.einsum(reference.GROUPS[group].result, reference.softmax(logits), blocks(v))
    merged = reference.merge(result.reshape(*result.shape[:3], -1), BLOCK, *q.shape[1:3])
    return reference.shift(merged, HALF)


RIPIENO = {
    "channel": ("ripieno_channel", HALVES, 2, 2),
    "spatial": ("ripieno_spatial", UPRIGHT, 2, 1),
    "spatial_half_blocks": ("ripieno_spatial", HALVES, 2, 1),
    "several_parts": ("ripieno_channel", Tiles(16, 16, 8), 1, 1),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "channel" else pytest.mark.long) for name in RIPIENO]
)
def test_derivatives_of_the_ripieno(name):
    """Of group, tiles, heads and pictures: by projected queries, keys and values, and by the communication."""
    group, tiles, heads, pictures = RIPIENO[name]
    width, channels = 16, 8 * heads
    maps = (pictures, *size_of(tiles))
    shapes = [(*maps, width), (*maps, width), *[(width, channels)] * 3, (3, 3, heads, heads), (*maps, channels)]
    x, y, *kernels, cdc, gradient = map(jnp.asarray, random_arrays(*shapes))

    def expected(kernels, cdc):
        projected = [features @ kernel for features, kernel in zip((x, y, y), kernels, strict=True)]
        by_maps = jax.vjp(lambda *given: attended(group, heads, *given), *projected, cdc)[1](gradient)
        return [in_tiles(tiles, each) for each in by_maps[:3]], by_maps[3]

    def ours(kernels, cdc):
        matrix, to_cdc = jax.vjp(lambda cdc: lane_matrix(tiles, cdc), cdc)
        given = [in_tiles(tiles, maps) for maps in (x, y, gradient)]
        spatial, shifted = group == "ripieno_spatial", jnp.ones(1, jnp.int32)
        *by_maps, by_matrix = ripieno_backward(tiles, spatial, *given, kernels, matrix, heads, shifted)
        return by_maps, to_cdc(by_matrix)[0]

    assert_close(jax.jit(ours)(kernels, cdc), jax.jit(expected)(kernels, cdc))


def test_derivatives_of_the_mlp():
    tiles, width, hidden = HALVES, 8, 16
    maps = (1, *size_of(tiles))
    shapes = [(*maps, width), (*maps, hidden), (width, 2 * hidden), (3, 3, hidden), (hidden, hidden), (hidden, width)]
    features, attended, *weights, gradient = map(jnp.asarray, random_arrays(*shapes, (*maps, width)))
    weights = MLPWeights(*weights)

    def expected(features, attended, weights):
        def apply(*given):
            return reference.gated_mlp(jnp.zeros_like(features), *given)

        by_features, by_attended, by_weights = jax.vjp(apply, features, attended, weights)[1](gradient)
        by_halves = jnp.split(in_tiles(tiles, by_attended)[0], 2, axis=1)
        return in_tiles(tiles, by_features)[0], *by_halves, by_weights

    def ours(features, attended, weights):
        halves = jnp.split(in_tiles(tiles, attended)[0], 2, axis=1)
        shifted = jnp.ones(1, jnp.int32)
        own, given = (in_tiles(tiles, each)[0] for each in (features, gradient))
        return gated_mlp_backward(tiles, own, *halves, given, shifted, weights)

    given = features, attended, weights
    assert_close(jax.jit(ours)(*given), jax.jit(expected)(*given))


def mesh_of(devices):
    return Mesh(np.array(devices), ("data",))


@pytest.fixture
def on_cpus(monkeypatch):
    """As if these devices had the memory of a TPU."""
    monkeypatch.setattr(stages, "LARGE_VMEM", [jax.devices()[0].device_kind])


@pytest.mark.long
def test_derivatives_of_a_stage(on_cpus):
    stage = Stage(32, 2, 2, 2, implementation="tpu")
    x, y, gradient = random_arrays(*[(2, 64, 64, 32)] * 3)
    params = random_parameters(stage, x, y, scale=0.3)

    def value_and_derivatives(stage, mesh):
        def run(params, x, y):
            with training_mesh(mesh):
                value, back = jax.vjp(lambda params, *maps: stage.apply({"params": params}, *maps), params, x, y)
            return value, back(gradient)

        return jax.jit(run)(params, x, y)

    expected = value_and_derivatives(stage.clone(implementation="reference"), None)
    assert_close(value_and_derivatives(stage, mesh_of(jax.devices()[:1])), expected, 1e-3)


def test_derivatives_by_the_weights_are_added_over_the_devices(on_cpus, monkeypatch):
    monkeypatch.setattr(stages, "_stage", lambda tiles, x, y, norm, weights, shift, heads: x * weights)
    (x,) = random_arrays((8, 64, 64, 32))
    with training_mesh(mesh_of(jax.devices()[:8])), traced_for("cpu"):
        form = stages.tiled_stage(x.shape[1:], 64, 2, jnp.float32)

    def total(weights):
        return (form(x, None, None, weights, True, 2) ** 2).sum()

    text = jax.jit(jax.grad(total)).lower(2.0).compile().as_text()
    assert text.count(" all-reduce(") == 1
    np.testing.assert_allclose(jax.jit(jax.grad(total))(2.0), 4 * np.square(x).sum(), rtol=1e-5)


@pytest.mark.parametrize("kind, served", [("TPU v5 lite", True), ("TPU v6 lite", True), ("TPU v4", False)])
def test_a_training_step_takes_kernels_on_devices_with_enough_memory(kind, served):
    class Device:
        device_kind = kind

    class OfKind:
        devices, axis_names = np.array([Device()] * 4), ("data",)

    with traced_for("tpu"), training_mesh(OfKind()):
        given = (64, 64, 32), 64, 2, jnp.bfloat16
        assert (own_form("tiled_stage", None)(*given) is not None) == served
        assert own_form("tiled_stage", None)((512, 256, 48), 96, 1, jnp.bfloat16) is None  # beyond VMEM
