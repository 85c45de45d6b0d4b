"""Damage to the files of a checkpoint: noticed and named, and the checkpoint before it used or offered."""

import json
import shutil
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_network import tiny_network

from concertormer_jax.models import parameter_shapes
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.step import TrainState
from concertormer_jax.weights.checkpoints import Checkpoints, architecture_dict, load_model, save_converted
from concertormer_jax.weights.integrity import digest

MODULE = tiny_network(width=4, middle_heads=1)
MODEL = {"size": architecture_dict(MODULE), "train_crop_px": 64, "weights": "params"}


def random_params(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), parameter_shapes(MODULE))


def state(step):
    params = jax.tree.map(jnp.asarray, random_params(step))
    return TrainState(jnp.int32(step), params, {"mean": params, "count": jnp.int32(step)}, None)


def abstract():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state(0))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Steps 1 to 3, the last of which is the best."""
    folder = tmp_path_factory.mktemp("original")
    store = Checkpoints(folder)
    for step in (1, 2, 3):
        store.save(state(step), MODEL, 20.0 + step)
        store.wait()
    store.close()
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(original, tmp_path / "run")


def restored(folder):
    """(state, what was said) of a start in `folder`."""
    said = []
    store = Checkpoints(folder, said.append)
    return store.restore(abstract(), MODULE), said


def assert_is(restored_state, step):
    assert int(restored_state.step) == step
    jax.tree.map(np.testing.assert_array_equal, restored_state.params, random_params(step))
    jax.tree.map(np.testing.assert_array_equal, restored_state.optimizer["mean"], random_params(step))


def rewrite_params(folder, change) -> None:
    """Damage that no reader but a digest can notice: other arrays, written in the usual way."""
    other = folder.parent.parent / "other"
    save_converted(other, MODULE, change(random_params(3)), 64)
    shutil.rmtree(folder / "params")
    shutil.move(other / "checkpoints" / "0" / "params", folder / "params")


def with_one_bit_flipped(params):
    leaves, tree = jax.tree.flatten(params)
    leaves[-1].view(np.uint32).ravel()[0] ^= 1
    return jax.tree.unflatten(tree, leaves)


def test_one_bit_of_an_array_is_noticed_and_the_step_before_used(saved):
    rewrite_params(saved / "checkpoints" / "3", with_one_bit_flipped)
    found, said = restored(saved)
    assert_is(found, 2)
    (sentence,) = said
    assert "3 is damaged (its params differ from their digest); put aside, going on from step 2" in sentence
    assert sorted(path.name for path in (saved / "checkpoints").iterdir()) == ["2", "3.damaged"]
    found, said = restored(saved)
    assert_is(found, 2)
    assert said == []


def test_saving_goes_on_at_the_step_that_was_damaged(saved):
    rewrite_params(saved / "checkpoints" / "3", with_one_bit_flipped)
    store = Checkpoints(saved, lambda _: None)
    store.restore(abstract(), MODULE)
    store.save(state(3), MODEL, None)
    store.close()
    assert_is(restored(saved)[0], 3)


def test_evaluation_names_the_damaged_one_and_offers_the_others(saved):
    rewrite_params(saved / "checkpoints" / "3", with_one_bit_flipped)
    for folder in (saved, saved / "checkpoints" / "3"):
        with pytest.raises(UserError, match=r"3 is damaged: its params differ .*; choose a whole one: \S*/2$"):
            load_model(folder)


def test_an_array_of_another_shape_is_noticed_without_a_digest_too(saved):
    rewrite_params(saved / "checkpoints" / "3", lambda params: params | {"intro": {"kernel": np.zeros((1, 2))}})
    drop_digests(saved / "checkpoints" / "3")
    found, said = restored(saved)
    assert_is(found, 2)
    assert "3 is damaged (its params" in said[0]


def drop_digests(folder) -> None:
    """Make a checkpoint one of an earlier version."""
    path = folder / "model" / "metadata"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "digests"}))


def test_checkpoints_of_earlier_versions_are_loaded(saved):
    drop_digests(saved / "checkpoints" / "3")
    assert_is(restored(saved)[0], 3)
    assert load_model(saved).step == 3


@pytest.mark.parametrize("what", ["empty", "incomplete", "file"])
def test_what_is_no_checkpoint_is_not_the_latest(saved, what):
    impostor = saved / "checkpoints" / "99"
    if what == "file":
        impostor.write_text("")
    else:
        impostor.mkdir()
    if what == "incomplete":
        shutil.copytree(saved / "checkpoints" / "3" / "params", impostor / "params")
    found, said = restored(saved)
    assert_is(found, 3)
    if what == "file":
        assert said == []  # no more than a file among folders
    else:
        assert "99 is damaged" in said[0]
        assert (saved / "checkpoints" / "99.damaged").exists()


def test_an_empty_folder_is_passed_over_by_evaluation(saved):
    (saved / "checkpoints" / "99").mkdir()
    assert load_model(saved).step == 3


def test_a_step_under_another_number_is_not_taken_for_it(saved):
    shutil.copytree(saved / "checkpoints" / "2", saved / "checkpoints" / "9")
    found, said = restored(saved)
    assert_is(found, 3)
    assert "9 is damaged (its metadata is that of step 2)" in said[0]


def test_where_none_is_whole_nothing_is_begun_anew(saved):
    for step in (2, 3):
        (saved / "checkpoints" / str(step) / "model" / "metadata").write_text("")
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 is damaged .*; 3 is damaged .*none is whole: remove them to start"):
            restored(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "/elsewhere"}, "can only be params or average"),
        ({"weights": "optimizer"}, "can only be params or average"),
        ({"step": -1}, "step=-1"),
        ({"step": 2.5}, "step=2.5"),
        ({"step": True}, "step=True"),
        ({"psnr": "high"}, "psnr='high'"),
        ({"train_crop_px": 0}, "train_crop_px=0"),
        ({"train_crop_px": "64"}, "train_crop_px='64'"),
        ({"size": []}, "no known network"),
        ({"size": MODEL["size"] | {"network": "os"}}, "no known network"),
        ({"size": MODEL["size"] | {"network": ["os"]}}, "no known network"),
        ({"size": MODEL["size"] | {"width": 10**9}}, "width=1000000000 of the network"),
        ({"size": MODEL["size"] | {"width": "4"}}, "width='4' of the network"),
        ({"size": MODEL["size"] | {"width": 4.0}}, "width=4.0 of the network"),
        ({"size": MODEL["size"] | {"width": 0}}, "width=0 of the network"),
        ({"size": MODEL["size"] | {"encoder_blocks": 1}}, "encoder_blocks=1 of the network"),
        ({"size": MODEL["size"] | {"encoder_blocks": [1] * 99}}, "encoder_blocks="),
        ({"size": MODEL["size"] | {"encoder_blocks": [[1]]}}, "encoder_blocks="),
        ({"size": MODEL["size"] | {"expansion": float("nan")}}, "expansion=nan"),
        ({"size": MODEL["size"] | {"middle_heads": 3}}, "describes no network"),
        ({"size": MODEL["size"] | {"dtype": "float16"}}, "dtype='float16' of the network"),
        ({"size": {"network": "Concertormer"}}, "describes no network"),
        ({"surprise": 1}, "not that of a checkpoint"),
        ({"digests": 3}, "differs from its digest"),
        ({"digests": {}}, "differs from its digest"),
    ],
)
def test_metadata_that_cannot_be_is_refused_in_one_sentence(saved, change, message):
    folder = saved / "checkpoints" / "3"
    drop_digests(folder)
    path = folder / "model" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"3 is damaged: .*{message}"):
        load_model(saved)
    assert Checkpoints(saved).latest_step() == 2


def test_every_value_of_the_metadata_is_covered_by_the_digest(saved):
    path = saved / "checkpoints" / "3" / "model" / "metadata"
    content = json.loads(path.read_text())
    for key, value in (("psnr", 99.0), ("train_crop_px", 65), ("size", content["size"] | {"shift": False})):
        path.write_text(json.dumps(content | {key: value}))
        with pytest.raises(UserError, match="its metadata differs from its digest"):
            load_model(saved)


def test_another_network_than_the_config_is_no_damage(saved):
    other = MODULE.clone(width=8)
    with pytest.raises(UserError, match="another architecture: width is 4 there and 8"):
        Checkpoints(saved).restore(abstract(), other)
    assert (saved / "checkpoints" / "3").exists()


def test_a_digest_depends_on_values_types_shapes_and_names_and_not_on_where_arrays_are():
    value = np.arange(4, dtype=np.float32)
    same = digest({"a": {"b": value}})
    assert same == digest({"a": {"b": jax.device_put(value, jax.devices()[5])}})
    mesh = jax.make_mesh((8,), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert same == digest({"a": {"b": jax.device_put(value, whole)}})
    others = [value + 1, value.astype(np.float16), value.reshape(2, 2), value.view(np.int32)]
    different = [digest({"a": {"b": other}}) for other in others] + [digest({"a": {"c": value}})]
    assert len({same, *different}) == 6
    assert digest({"a": jnp.ones(3, jnp.bfloat16)}) != digest({"a": jnp.zeros(3, jnp.bfloat16)})


def test_only_the_first_host_computes_digests(tmp_path, monkeypatch):
    store = Checkpoints(tmp_path)
    written = {}
    store._manager = MagicMock(save=lambda step, args: written.update(args))
    store.save(state(1), MODEL, None)
    assert set(written["model"].item["digests"]) == {"params", "optimizer", "model"}
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    store.save(state(2), MODEL, None)
    assert "digests" not in written["model"].item


DAMAGES = {
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"\1"


@pytest.mark.long
def test_every_file_and_damage(original, tmp_path):
    """What is loaded is what was saved, from the damaged step (harmless) or the one before; else it is a sentence."""
    files = [
        path.relative_to(original) for path in sorted((original / "checkpoints" / "3").rglob("*")) if path.is_file()
    ]
    counts = {"harmless": 0, "step before": 0, "refused": 0, "loaded": 0}
    for file in files:
        for name, damage in DAMAGES.items():
            folder = shutil.copytree(original, tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}")
            damage(folder / file)
            try:
                loaded = load_model(folder)
                jax.tree.map(np.testing.assert_array_equal, loaded.params, random_params(loaded.step))
                counts["loaded"] += 1
            except UserError:
                counts["refused"] += 1
            found, said = restored(folder)
            assert_is(found, 2 if said else 3)
            counts["step before" if said else "harmless"] += 1
    print(f"{len(files)} files", counts)
    for one, other in (("harmless", "step before"), ("loaded", "refused")):
        assert counts[one] + counts[other] == len(files) * len(DAMAGES)
        assert min(counts[one], counts[other]) > 0
