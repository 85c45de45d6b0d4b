"""A picture whose rows lie on several devices: the result is that of one, also for sizes that do not divide."""

import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_runs as runs
from fake_model import FakeModel, FakeModule, fake_model
from jax.sharding import PartitionSpec
from PIL import Image
from tiny_network import random_images, random_params, tiny_network
from tiny_restormer import tiny_restormer

from concertormer_jax.commands import evaluate, restore
from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation import evaluator
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.inference import restorer, sharding
from concertormer_jax.inference.compiled import restore_floats
from concertormer_jax.inference.sharding import ShardedRestorer, needs_sharding, row_mesh, shards_of
from concertormer_jax.models import ConcertoSelfAttention, costs, create
from concertormer_jax.ops.sharded import RowShards, row_shards
from concertormer_jax.planning import compilation
from concertormer_jax.runtime import trace_cache
from concertormer_jax.runtime.devices import data_mesh
from concertormer_jax.runtime.errors import UserError
from configs import common

PARTS = PartitionSpec(None, "rows")


def on_devices(function, shards, *arrays):
    """`function` of arrays [B, H, W, C] whose rows are split as `shards` says, compiled, and its result."""
    mapped = jax.shard_map(
        function, mesh=row_mesh(jax.devices()[: shards.devices]), in_specs=PARTS, out_specs=PARTS, check_vma=False
    )

    def run(*arrays):
        with row_shards(shards):
            return mapped(*arrays)

    compiled = jax.jit(run).lower(*arrays).compile()
    return compiled, np.asarray(compiled(*arrays))


def padded_rows(maps, shards, unit):
    """Rows of large numbers below the maps: what is there has no meaning."""
    rows = shards.devices * shards.each * unit - maps.shape[1]
    return np.pad(maps, ((0, 0), (0, rows), (0, 0), (0, 0)), constant_values=1e3)


def assert_close(ours, expected):
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("module", "size"),
    [
        pytest.param(tiny_network(encoder_blocks=(2,)), (101, 40), id="whole"),  # 7 units, one device without
        pytest.param(
            tiny_network(encoder_blocks=(2,), groups=("concertino_channel", "window"), tlc_window=32),
            (140, 40),  # 9 units, 2 for each
            id="tlc",
        ),
        pytest.param(tiny_restormer(), (38, 17), id="restormer"),
    ],
)
def test_eight_devices_give_the_result_of_one(module, size):
    params, picture = random_params(module), random_images(*size, 3)
    expected = jax.jit(lambda images: module.apply({"params": params}, images)[-1])(picture[None])[0]
    padded = np.pad(picture, [(0, -side % module.multiple) for side in size] + [(0, 0)], mode="reflect")

    def unclipped(network):
        return lambda params, images: network.apply({"params": params}, images)[-1]

    run = ShardedRestorer(unclipped, module, params, jax.devices(), precision="highest", log=lambda line: None)
    result = run(padded)
    assert {shard.data.shape[1] for shard in result.addressable_shards} == {result.shape[1] // 8}
    assert_close(np.asarray(result)[0, : size[0], : size[1]], expected)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(
    "groups", [("ripieno_spatial", "ripieno_channel", "concertino_spatial"), ("window", "transposed")]
)
def test_groups_without_communication(groups, shifted):
    """The mean over the blocks that a Ripieno subtracts, the mask of window attention, and all pixels of a picture."""
    module = ConcertoSelfAttention(12, groups=groups, communication="none", block_px=4)
    shards = RowShards("rows", devices=4, each=2, total=5)  # the third device is half full, the fourth empty
    maps = np.random.default_rng(0).normal(size=(1, 20, 12, 6)).astype(np.float32)
    params = module.init(jax.random.key(0), maps)
    expected = jax.jit(lambda maps: module.apply(params, maps, shifted=jnp.array(shifted)))(maps)
    _, ours = on_devices(
        lambda maps: module.apply(params, maps, shifted=jnp.array(shifted)), shards, padded_rows(maps, shards, 4)
    )
    assert_close(ours[:, :20], expected)


def test_memory_falls_with_the_devices_and_no_map_is_gathered():
    module = ConcertoSelfAttention(16, block_px=4)
    maps = np.zeros((1, 256, 32, 8), np.float32)
    params = module.init(jax.random.key(0), maps)

    def memory(devices):
        shards = RowShards("rows", devices, each=64 // devices, total=64)
        compiled, _ = on_devices(lambda maps: module.apply(params, maps, shifted=jnp.array(True)), shards, maps)
        exchanged = re.findall(r" = (.*?) (all-gather|all-to-all|all-reduce|collective-permute)\(", compiled.as_text())
        assert not {kind for _, kind in exchanged} & {"all-gather", "all-to-all"}
        assert devices == 1 or {"all-reduce", "collective-permute"} <= {kind for _, kind in exchanged}
        return compiled.memory_analysis().temp_size_in_bytes

    one, two, eight = memory(1), memory(2), memory(8)
    assert two < 0.6 * one and eight < 0.2 * one, (one, two, eight)


def test_which_pictures_are_split():
    module, memory = create("lite"), 16 * 2**30
    assert not needs_sharding("auto", module, 720, 1280, 8, memory)
    assert needs_sharding("auto", module, 4320, 7680, 8, memory)
    assert not needs_sharding("off", module, 4320, 7680, 8, memory)
    assert not needs_sharding("auto", module, 4320, 7680, 1, memory), "there is only one device"
    assert not needs_sharding("auto", module, 4320, 7680, 8, 0), "the memory is not known"
    assert sharding.memory_bytes(jax.devices()[0]) == 0, "a CPU's devices share one memory"


@pytest.mark.parametrize(("height", "each", "total"), [(64, 1, 1), (512, 1, 8), (513, 2, 9), (4320, 9, 68)])
def test_rows_are_split_in_whole_multiples(height, each, total):
    assert shards_of(height, 64, 8) == RowShards("rows", 8, each, total)


class Recording(FakeModule):
    """Notes the shapes that its network is traced for."""

    shapes: ClassVar[list] = []

    def clone(self, tlc_window):
        return Recording(tlc_window)

    def apply(self, variables, images):
        self.shapes.append(images.shape)
        return super().apply(variables, images)


@pytest.fixture
def small_devices(monkeypatch):
    """Devices that hold 128x128 pixels of a fake network."""
    trace_cache.set_cache_dir(None)  # a cached trace does not ask the network, which records the shapes
    for module in (restorer, evaluator):
        monkeypatch.setattr(module, "memory_bytes", lambda device: sharding._ARRAYS * 128 * 128 * 4)
    monkeypatch.setattr(Recording, "shapes", [])


@pytest.mark.parametrize(("shard", "rows"), [("auto", [64, 128]), ("off", [512, 128])])
def test_restoring_splits_what_is_too_large(small_devices, shard, rows):
    model = FakeModel(np.float32(0.9), Recording())
    restored = restorer.Restorer(model, tlc="off", tile="off", shard=shard, log=lambda line: None)
    for size in ((500, 100), (100, 100)):
        rgb = random_images(*size, 3)
        np.testing.assert_allclose(restored(rgb).rgb, 0.9 * rgb, atol=1e-6)
    assert [shape[1] for shape in Recording.shapes] == rows


def test_traces_of_split_pictures_are_cached(tmp_path):
    picture = random_images(576, 64, 3)  # 9 units, 2 for each device
    trace_cache.set_cache_dir(tmp_path)
    try:
        for _ in range(2):
            run = ShardedRestorer(
                restore_floats, FakeModule(), np.float32(0.9), jax.devices(), precision="highest", log=lambda line: None
            )
            restored, finite = run(picture)
            np.testing.assert_allclose(restored[0, :576], 0.9 * picture, atol=1e-6)
            assert finite.all() and {part.data.shape[1] for part in restored.addressable_shards} == {128}
            assert len(list(tmp_path.iterdir())) == 1
    finally:
        trace_cache.set_cache_dir(None)


@pytest.mark.parametrize("always", [False, True])
def test_split_pictures_are_checked_too(small_devices, always):
    class Mosaic(FakeModule):
        def clone(self, tlc_window):
            return Mosaic(tlc_window)

        def apply(self, variables, images):
            return (images * (0.1 if always or self.tlc_window else 0.9),)

    rgb = np.full((600, 100, 3), 0.5, np.float32)
    restored = restorer.Restorer(FakeModel(np.float32(1), Mosaic()), tlc="64", tile="off", log=lambda line: None)
    result = restored(rgb)
    assert (result.without_tlc, result.kept) == ((0, 1) if always else (1, 0))
    np.testing.assert_allclose(result.rgb, rgb if always else 0.9 * rgb, atol=1e-6)


def test_what_comes_of_padding_rows_does_not_count(small_devices):
    class NotFinite(FakeModule):
        def clone(self, tlc_window):
            return NotFinite(tlc_window)

        def apply(self, variables, images):
            return (jnp.where(images == 0, jnp.nan, 0.9 * images),)

    rgb = np.full((600, 100, 3), 0.5, np.float32)  # 10 units, 2 for each device: 6 are padding
    model = FakeModel(np.float32(1), NotFinite())
    restored = restorer.Restorer(model, tlc="off", tile="off", log=lambda line: None)
    np.testing.assert_allclose(restored(rgb).rgb, 0.9 * rgb, atol=1e-6)


def test_a_split_picture_of_numbers_that_are_not_finite_is_refused(small_devices):
    restored = restorer.Restorer(fake_model(np.nan), tlc="off", tile="off", log=lambda line: None)
    with pytest.raises(UserError, match="not finite"):
        restored(np.ones((600, 100, 3), np.float32))


def test_evaluation_splits_what_is_too_large(small_devices, tmp_path):
    rng = np.random.default_rng(0)
    for part in ("input", "target"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for index, size in enumerate(((600, 100), (64, 64), (600, 90), (60, 50))):
            picture = rng.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / part / f"{index}.png")
    pairs = EvaluationSet("data", open_source(tmp_path / "data"))
    model = FakeModel(np.float32(0.5), Recording())
    results = {
        shard: evaluator.evaluate(model, pairs, tmp_path / shard, tlc="off", shard=shard, log=lambda line: None)
        for shard in ("auto", "off")
    }
    values = {shard: [image.restored for image in result.images] for shard, result in results.items()}
    assert values["auto"] == values["off"] and len(values["auto"]) == 4
    assert sorted(Recording.shapes) == [(1, 128, 128, 3), (8, 64, 64, 3), (8, 64, 64, 3), (8, 640, 128, 3)]


@pytest.mark.parametrize("command", [restore, evaluate])
def test_an_unknown_setting_is_one_sentence(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--ckpt=x", "--shard=on", *(["a", "b"] if command is restore else [])])
    (line,) = capsys.readouterr().err.splitlines()
    assert "--shard" in line and "auto" in line and "off" in line


def test_an_unknown_setting_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="--shard=on: must be auto or off"):
        restorer.Restorer(fake_model(), shard="on")
    with pytest.raises(UserError, match="--shard=on"):
        evaluator.evaluate(fake_model(), None, tmp_path, shard="on")


def test_a_plan_splits_what_is_too_large():
    config = runs.override(common.get_config(), runs.TINY_NETWORK | runs.WITHOUT_ATTENTION)
    mesh = data_mesh(jax.devices())
    whole = compilation.forward_task(config, mesh, 32, 128)
    split = compilation.forward_task(config, mesh, 32, 128, "auto", memory_bytes=1)
    assert (whole.devices, split.devices, split.images) == (1, 8, 1)
    assert split.name == "forward (32x128, split over 8 devices)"
    ratio = costs.flops(split.traced.jaxpr) / costs.flops(whole.traced.jaxpr)
    assert 1 <= ratio < 1.2, "the convolutions of the neighbours' rows come to it"
    evaluation = compilation.evaluation_task(config, mesh, 32, 128, "off", "auto", memory_bytes=1)
    assert (evaluation.devices, evaluation.images) == (8, 1) and "split over 8 devices" in evaluation.name
