"""Attention maps: what the attention tells when it is observed, and the command that shows it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_network import random_images, random_params, tiny_network
from tiny_restormer import tiny_restormer

from concertormer_jax.analysis.attention_maps import Maps, attention_maps, attention_sheet, stages
from concertormer_jax.commands import attention_maps as command
from concertormer_jax.models import LOGITS, ConcertoSelfAttention, parameter_shapes
from concertormer_jax.ops.blocks import partition
from concertormer_jax.runtime.errors import UserError

# Logits of q and k, and the result of a map and v; n blocks, positions i, j, p, heads m, channels a, b, c.
BY_HAND = {
    "ripieno_spatial": (-1, "nimc,njmc->nmij", "nmij,njmc->nimc"),
    "ripieno_channel": (1, "npma,npmb->nmab", "nmab,npmb->npma"),
    "concertino_channel": (0, "npma,npmb->pmab", "pmab,npmb->npma"),
    "concertino_spatial": (0, "nimc,njmc->mcij", "mcij,njmc->nimc"),
}


@pytest.fixture(scope="module")
def attention():
    """A module, its parameters (random, so that all matter), normalised features and a jitted observing apply."""
    module = ConcertoSelfAttention(16, heads=2, sca=False)
    features = jnp.asarray(random_images(1, 16, 24, 6) - 0.5)
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), features)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"])
    apply = jax.jit(lambda params, x: module.apply({"params": params}, x, mutable=[LOGITS]))
    return SimpleNamespace(module=module, shapes=shapes, params=params, features=features, apply=apply)


def test_an_observed_attention_tells_its_logits(attention):
    output, told = attention.apply(attention.params, attention.features)
    blocks = np.asarray(partition(attention.features, 8))[0].swapaxes(0, 1)  # [n, positions, C]
    results = []
    for number, (group, (contracted, product, weighted)) in enumerate(BY_HAND.items()):
        part = slice(4 * number, 4 * number + 4)
        kernels = [attention.params["to_q"][:, part]]
        kernels += [kernel[:, part] for kernel in np.split(attention.params["to_kv"], 2, axis=1)]
        q, k, v = ((blocks @ kernel).reshape(6, 64, 2, 2) for kernel in kernels)
        q, k = (values / np.linalg.norm(values, axis=contracted, keepdims=True) for values in (q, k))
        logits = np.einsum(product, q, k)
        heads = logits.ndim - 3 if group != "concertino_spatial" else 0
        temperature = attention.params["temperature"][number]
        expected = logits * temperature.reshape([-1 if axis == heads else 1 for axis in range(logits.ndim)])
        before, after = (np.asarray(values[0]) for values in told[LOGITS][group])
        np.testing.assert_allclose(before.reshape(expected.shape), expected, atol=1e-5)
        weights = jax.nn.softmax(after.reshape(expected.shape))
        results.append(np.einsum(weighted, weights, v).reshape(6, 64, 4))
    expected = np.concatenate(results, axis=-1).swapaxes(0, 1)[None]
    np.testing.assert_allclose(partition(output, 8), expected, atol=1e-4)


def test_an_attention_that_is_not_observed_tells_nothing(attention):
    assert set(attention.shapes) == {"params"}  # nor while it is initialised
    output = attention.module.apply({"params": attention.params}, attention.features)
    np.testing.assert_allclose(output, attention.apply(attention.params, attention.features)[0], atol=1e-5)


def test_the_maps_of_any_block_of_the_network():
    image = random_images(20, 40, 3)  # padded to 32x48
    two, one = tiny_network(encoder_blocks=(2,), encoder_heads=(2,)), tiny_network(encoder_heads=(2,))
    params = random_params(two)
    params["encoders_0"]["blocks"]["attention"]["temperature"][:, :, 1] = 0  # the second head attends to all alike
    first = jax.tree.map(lambda leaf: leaf[:1], params["encoders_0"]["blocks"])
    alone = attention_maps(one, {**params, "encoders_0": {"blocks": first}}, image, "encoders_0", 0)
    maps = [attention_maps(two, params, image, "encoders_0", block) for block in (0, 1)]
    shapes = {group: pair.after.shape for group, pair in maps[0].items()}
    assert list(shapes.items()) == [
        ("ripieno_spatial", (24, 2, 64, 64)),
        ("ripieno_channel", (24, 2, 2, 2)),
        ("concertino_channel", (64, 2, 2, 2)),
        ("concertino_spatial", (2, 2, 64, 64)),
    ]
    for group, pair in maps[0].items():
        np.testing.assert_allclose(pair.after.sum(axis=-1), 1, atol=1e-5)
        np.testing.assert_allclose(pair.before, alone[group].before, atol=1e-6)
        np.testing.assert_allclose(pair.after, alone[group].after, atol=1e-6)
        np.testing.assert_allclose(pair.before[:, 1], 1 / pair.before.shape[-1], atol=1e-6)
        assert np.ptp(pair.before[:, 0]) > 1e-3
        assert np.abs(pair.before / pair.after - 1).max() > 0.01  # the communication
        assert np.abs(pair.after - maps[1][group].after).max() > 1e-4  # the other block
    # The second block is shifted: the mask cuts its last blocks in two, and takes nothing from the first.
    spatial = maps[1]["ripieno_spatial"].after
    assert spatial[0].min() > 0
    assert (spatial[-1] < 1e-30).mean() > 0.5


def test_restormer_with_concerto_attention_has_maps():
    network = tiny_restormer(attention="concerto")
    params = parameter_shapes(network)
    images = jax.ShapeDtypeStruct((1, network.multiple, network.multiple, 3), np.float32)
    _, told = jax.eval_shape(lambda p, x: network.apply({"params": p}, x, mutable=[LOGITS]), params, images)
    for name, blocks in stages(params).items():
        (before, after) = told[LOGITS][name]["blocks"]["attention"]["concertino_spatial"]
        assert before.shape == after.shape
        assert (before.shape[0], before.shape[1], before.shape[-2:]) == (blocks, 1, (64, 64))
    assert stages(params).keys() == told[LOGITS].keys() >= {"encoders_0", "middle"}


def test_what_the_network_does_not_have_is_refused():
    network = tiny_network()
    params = parameter_shapes(network)
    assert stages(params) == {"encoders_0": 1, "middle": 1, "decoders_0": 1}
    image = random_images(16, 16, 3)
    with pytest.raises(UserError, match=r"--stage=encoders_1: is no stage .* choose decoders_0, encoders_0, middle"):
        attention_maps(network, params, image, "encoders_1", 0)
    with pytest.raises(UserError, match="--block=2: middle has 1 blocks"):
        attention_maps(network, params, image, "middle", 1)
    bare = tiny_network(groups=(), skip="sum")
    with pytest.raises(UserError, match="no Concerto self-attention"):
        attention_maps(bare, parameter_shapes(bare), image, "middle", 0)


def test_the_sheet_shows_the_middle_maps():
    spatial, channel = np.full((6, 2, 64, 64), 0.1), np.full((64, 2, 4, 4), 0.1)
    spatial[4, 1, :, 0] = 0.2  # 2 rows and 3 columns of blocks, so that 4 is the one below the middle
    channel[36, 0, 3] = 0.2
    maps = {"ripieno_spatial": Maps(spatial, spatial), "concertino_channel": Maps(channel, channel)}
    sheet = np.asarray(attention_sheet(maps, 50, 70, 32))  # padded to 64x96
    lightest, darkest = [252, 250, 190], [8, 8, 32]
    head, cell = 192 + 30 + 8, 192 + 8
    top = 56 + 30
    np.testing.assert_array_equal(sheet[top : top + 192, :192], np.full((192, 192, 3), darkest))
    np.testing.assert_array_equal(sheet[top + head : top + head + 192, :3], np.full((192, 3, 3), lightest))
    np.testing.assert_array_equal(sheet[top + 191, 2 * cell], lightest)
    np.testing.assert_array_equal(sheet[top + head + 191, 2 * cell], darkest)


@pytest.fixture
def loaded(monkeypatch):
    """Let the command find a network's maps without computing any, and leave the settings of the process alone."""
    seen = []

    def maps(module, params, image, stage, block):
        seen.append((image.shape, stage, block))
        return {"ripieno_spatial": Maps(*np.random.default_rng(0).random((2, 4, 1, 64, 64)))}

    model = SimpleNamespace(module=SimpleNamespace(multiple=16), params={})
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: model)
    monkeypatch.setattr(command, "attention_maps", maps)
    return seen


def test_the_command_writes_a_picture(tmp_path, loaded, capsys):
    Image.new("RGB", (50, 40)).save(tmp_path / "one.png")
    command.main([f"--ckpt={tmp_path}", str(tmp_path / "one.png"), "--stage=middle", "--block=2", "--crop=32"])
    assert loaded == [((32, 32, 3), "middle", 1)]
    output = tmp_path / "attention_maps" / "one_middle_2.png"
    assert str(output) in capsys.readouterr().out
    with Image.open(output) as sheet:
        assert sheet.width == 2 * 192 + 8


def test_the_command_fails_with_one_sentence(tmp_path, loaded, capsys):
    Image.new("RGB", (50, 40)).save(tmp_path / "one.png")
    for arguments, message in [
        (["missing.png"], "missing.png: no such file"),
        ([str(tmp_path / "one.png"), "--output=maps.jpg"], "maps.jpg: must end in .png"),
        ([str(tmp_path / "one.png"), "--crop=-1"], "--crop: '-1' must be a whole number from 0"),
    ]:
        with pytest.raises(SystemExit) as exit_status:
            command.main([f"--ckpt={tmp_path}", *arguments])
        assert exit_status.value.code == 2
        assert message in capsys.readouterr().err
