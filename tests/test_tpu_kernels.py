"""Stages as kernels for a TPU: interpreted, against the reference, and compiled for TPUs that are not there."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_implementations import random_arrays, random_parameters

from concertormer_jax.models.architecture import Architecture
from concertormer_jax.models.blocks import Stage
from concertormer_jax.models.concerto_attention import LOGITS
from concertormer_jax.ops import dispatch
from concertormer_jax.ops.dispatch import own_form, traced_for
from concertormer_jax.ops.platform import single_device_kind
from concertormer_jax.ops.tpu.kernels.ripieno import ripieno
from concertormer_jax.ops.tpu.kernels.ripieno_layout import cdc_matrix
from concertormer_jax.ops.tpu.kernels.tiles import Tiles
from concertormer_jax.planning import compilation
from concertormer_jax.planning.compilation import Task
from concertormer_jax.runtime.devices import data_mesh, kind_of_single, replicated

V5E = "TPU v5 lite"
STAGE = Stage(32, 2, 2, 2)


def result_of(stage, params, features):
    return jax.jit(stage.apply)({"params": params}, *features).astype(jnp.float32)


# Stage, shape of its maps, whether the first block is a cross block, and the scale of its weights: with small ones the
# softmax needs no maximum. Every second block is shifted, so that the last of two leaves its tiles moved.
STAGES = {
    "half_blocks": (Stage(64, 4, 2, 2), (2, 64, 64), True, 0.5),
    "one_head": (Stage(16, 1, 3, 2), (1, 128, 128), False, 0.1),
    "bands_of_blocks": (STAGE, (1, 128, 128), False, 0.5),
    "bfloat16": (STAGE.clone(dtype=jnp.bfloat16), (1, 64, 64), True, 0.3),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("one_head", "bfloat16") else pytest.mark.long) for name in STAGES]
)
def test_a_stage_as_kernels(name):
    stage, shape, cross, scale = STAGES[name]
    features = random_arrays(*[(*shape, stage.features)] * (1 + cross))
    params = random_parameters(stage, *features, scale=scale)
    given = [maps.astype(stage.dtype) for maps in features]
    with single_device_kind(V5E):
        ours = result_of(stage.clone(implementation="tpu"), params, given)
    expected = result_of(stage.clone(implementation="reference", dtype=jnp.float32), params, features)
    change = np.abs(expected - features[0]).max()
    tolerance = 1e-4 if stage.dtype == jnp.float32 else 0.03
    assert np.abs(ours - expected).max() < tolerance * change


def test_the_maximum_of_few_channels_is_that_of_their_logits():
    """Of eight in a head, which leave places of keys empty. Queries and keys are equal, so that all logits are -200."""
    tiles, heads, group, off = Tiles(8, 16, 8), 2, 16, jnp.zeros(2, jnp.int32)
    x, direction, to_v = random_arrays((tiles.pixels, 8, tiles.count), (8, 1), (8, 4 * group))
    to_q = np.repeat(direction, 4 * group, axis=1)
    cdc = np.zeros((3, 3, heads, heads), np.float32)
    cdc[1, 1] = -200 * np.eye(heads)
    matrices = [cdc_matrix((tiles.rows, tiles.columns), heads, jnp.asarray(cdc))] * 2
    run = jax.jit(lambda x, to_q, to_kv: ripieno(tiles, x, x, to_q, to_kv, *matrices, heads, off[:1], off)[0])
    values = np.einsum("pcn,cg->pgn", x, to_v[:, group : 2 * group])
    means = values.reshape(len(x), heads, -1, tiles.count).mean(axis=2, keepdims=True)
    expected = np.broadcast_to(means, (len(x), heads, group // heads, tiles.count)).reshape(values.shape)
    found = run(x, to_q, np.concatenate([to_q, to_v], axis=1))[:, group:]
    np.testing.assert_allclose(found, expected, atol=1e-4)


# Where they run.


def asked(monkeypatch, stage, **settings):
    """Whether the stage asks for a form of its own."""
    calls = []
    monkeypatch.setitem(dispatch.OWN_FORMS["tiled_stage"], "tpu", lambda *arguments: calls.append(arguments))
    x = jax.ShapeDtypeStruct((1, 16, 16, stage.features), jnp.float32)
    stage = stage.clone(implementation="tpu")
    params = jax.eval_shape(stage.init, jax.random.key(0), x)["params"]
    assert not calls, "initial values need no kernels"
    jax.eval_shape(lambda params, x: stage.apply({"params": params}, x, **settings), params, x)
    return bool(calls)


def test_published_stages_ask_for_kernels(monkeypatch):
    assert asked(monkeypatch, STAGE)
    assert asked(monkeypatch, STAGE.clone(architecture=Architecture(shift=False, skip="sum", multiscale_input=False)))


@pytest.mark.parametrize(
    "field",
    [{"tlc_window": 8}, {"architecture": Architecture(sca=False)}, {"architecture": Architecture(two_stage=True)}],
)
def test_other_stages_do_not(monkeypatch, field):
    assert not asked(monkeypatch, STAGE.clone(**field))


def test_a_stage_whose_logits_are_asked_for_does_not(monkeypatch):
    assert not asked(monkeypatch, STAGE, mutable=[LOGITS])


GIVEN = ((64, 64, 32), 64, 2, jnp.bfloat16)


@pytest.mark.parametrize("kind", [V5E, "TPU v6 lite"])
def test_kernels_run_on_one_device_with_enough_memory(kind):
    with traced_for("tpu"), single_device_kind(kind):
        assert own_form("tiled_stage", None)(*GIVEN)


@pytest.mark.parametrize("kind", [None, "TPU v4", "TPU v5"])
def test_kernels_do_not_run_on_several_or_smaller_devices(kind):
    with traced_for("tpu"), single_device_kind(kind):
        assert own_form("tiled_stage", None)(*GIVEN) is None


@pytest.mark.parametrize(
    "given",
    [
        ((60, 64, 32), 64, 2, jnp.bfloat16),  # no whole blocks
        ((64, 56, 32), 64, 2, jnp.bfloat16),  # a row of blocks does not divide the lanes
        ((32, 64, 32), 64, 2, jnp.bfloat16),  # too few blocks for the lanes
        ((192, 64, 32), 64, 2, jnp.bfloat16),
        ((128, 64, 32), 64, 1, jnp.bfloat16),
        ((1024, 1024, 48), 96, 1, jnp.bfloat16),  # beyond VMEM
        ((512, 512, 16), 32, 1, jnp.bfloat16),  # likewise, as a head takes the same lanes with fewer channels
        ((64, 64, 32), 96, 3, jnp.bfloat16),  # heads without pairs
        ((64, 64, 24), 48, 2, jnp.bfloat16),  # half a register of channels
        ((64, 64, 32), 64, 2, jnp.float32),
    ],
)
def test_maps_that_kernels_cannot_take(given):
    with traced_for("tpu"), single_device_kind(V5E):
        assert own_form("tiled_stage", None)(*given) is None


def test_a_mesh_of_several_devices_has_no_single_one():
    assert kind_of_single(data_mesh(jax.devices()[:1])) == jax.devices()[0].device_kind
    assert kind_of_single(data_mesh(jax.devices()[:2])) is None


# By the compiler.


def stage_task(_, mesh):
    """Two blocks on 64x64 positions in bfloat16: as kernels, unless `mesh` has several devices."""
    stage = STAGE.clone(dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((1, 64, 64, stage.features), jnp.bfloat16, sharding=replicated(mesh))
    params = jax.eval_shape(stage.init, jax.random.key(0), x)
    with single_device_kind(kind_of_single(mesh)):
        return Task("test", "stage", 1, mesh.size, jax.jit(stage.apply).trace(params, x))


def compiled(target, folder=None):
    pytest.importorskip("libtpu", reason="needs libtpu: pip install '.[plan]'")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compilation._compile_for, stage_task, None, target, 0, folder).result()


def test_kernels_take_fewer_cycles_than_operations_on_maps(tmp_path):
    plans = []
    for size in ("1x1", "2x2"):
        folder = tmp_path / size
        folder.mkdir()
        plans.append(compiled(f"v5e:{size}", folder))
    kernels, maps = plans
    names = {row.name.split(".")[0] for row in kernels.schedule.tables["operation"]}
    assert {"ripieno", "concertino", "gated_mlp", "move_and_normalise"} <= names
    assert kernels.schedule.missing == kernels.schedule.uncertain == ()
    assert kernels.schedule.total.cycles < 0.5 * maps.schedule.total.cycles


def test_kernels_are_compiled_for_a_v6e():
    assert compiled("v6e:1x1").fits
