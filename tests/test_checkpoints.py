"""What is kept, what is loaded, and how a directory that cannot be used is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_network import tiny_network

from concertormer_jax.models import create, parameter_shapes
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.step import TrainState
from concertormer_jax.weights.checkpoints import (
    Checkpoints,
    architecture_dict,
    load_model,
    require_same_architecture,
    save_converted,
)

MODULE = tiny_network(width=4, middle_heads=1)
MODEL = {"size": architecture_dict(MODULE), "train_crop_px": 64, "weights": "params"}


def params(value):
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), parameter_shapes(MODULE))


def state(step):
    return TrainState(jnp.int32(step), params(float(step)), {"count": jnp.int32(step)}, None)


def value_of(loaded):
    (value,) = {float(leaf.ravel()[0]) for leaf in jax.tree.leaves(loaded.params)}
    return value


@pytest.fixture
def saved(tmp_path):
    """Steps 1 to 4, the best being 2 and the last not validated."""
    store = Checkpoints(tmp_path)
    for step, psnr in ((1, 20.0), (2, 25.0), (3, 24.0), (4, None)):
        store.save(state(step), MODEL, psnr)
    store.close()
    return tmp_path


def test_the_latest_two_and_the_best_are_kept(saved):
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3", "4"]


def test_best_is_loaded_by_default_and_any_by_its_folder(saved):
    best = load_model(saved)
    assert (best.step, best.train_crop_px, value_of(best)) == (2, 64, 2.0)
    assert "best" in best.name
    assert architecture_dict(best.module) == architecture_dict(MODULE)
    assert load_model(saved / "checkpoints").step == 2
    latest = load_model(saved / "checkpoints" / "4")
    assert (latest.step, value_of(latest)) == (4, 4.0)


def test_a_step_that_is_not_complete_yet_is_passed_over(saved, monkeypatch):
    """In a bucket a step has its name while it is being written."""
    monkeypatch.setattr(ocp.path.step, "is_path_finalized", lambda folder, **_: folder.name != "2")
    assert load_model(saved).step == 3
    monkeypatch.setattr(ocp.path.step, "is_path_finalized", lambda folder: False)
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(saved)


def test_latest_is_restored_on_the_given_devices(saved):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0))
    restored = Checkpoints(saved).restore(abstract, MODULE)
    assert int(restored.step) == 4
    for leaf in jax.tree.leaves(restored.params):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, 4.0)


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Checkpoints("run")
    for step in (1, 2):
        store.save(state(step), MODEL, None)
    store.close()
    assert value_of(load_model("run")) == 2.0
    save_converted("weights", MODULE, params(3.0), 256)
    assert value_of(load_model("weights")) == 3.0


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="another architecture: network is Restormer there and Concertormer in"):
        require_same_architecture("runs/other", architecture_dict(create("restormer")), MODULE)


def test_converted_weights_need_an_empty_directory(tmp_path):
    save_converted(tmp_path / "new", MODULE, params(3.0), 256)
    assert value_of(load_model(tmp_path / "new")) == 3.0
    with pytest.raises(UserError, match="is not empty; choose a new directory"):
        save_converted(tmp_path / "new", MODULE, params(3.0), 256)


def test_missing_empty_and_foreign_directories_are_refused(tmp_path, saved):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_model(tmp_path / "empty")
    (saved / "checkpoints" / "2" / "model" / "metadata").write_text("{")
    with pytest.raises(UserError, match=r"2 is damaged: its metadata is missing or damaged; choose .*3, .*4"):
        load_model(saved)


def test_damaged_weights_are_refused(saved):
    for path in (saved / "checkpoints" / "2" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(saved)


def test_another_architecture_is_named():
    stored = architecture_dict(MODULE) | {"middle_blocks": 3}
    with pytest.raises(UserError, match="somewhere holds another architecture: middle_blocks is 3 there and 1"):
        require_same_architecture("somewhere", stored, MODULE)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match="no space is left for the checkpoint"):
        Checkpoints(tmp_path).save(state(1), MODEL, None)


def test_a_folder_of_converted_weights_is_no_run_to_go_on_with(tmp_path):
    save_converted(tmp_path, MODULE, params(1.0), 64)
    with pytest.raises(UserError, match=rf"holds weights alone, .* --workdir=NEW --config\.init_from={tmp_path}$"):
        Checkpoints(tmp_path)
    assert load_model(tmp_path).step == 0
