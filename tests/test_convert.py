"""Published weights to ours and back: lossless, strict, and the command. (Their values: see test_golden.py.)"""

import jax
import numpy as np
import pytest
from tiny_network import random_params, tiny_network
from tiny_restormer import tiny_restormer

from concertormer_jax import checkpoints, convert
from concertormer_jax.errors import UserError
from concertormer_jax.models import create
from concertormer_jax.weights import params_from_torch, read_state_dict, torch_from_params, write_state_dict
from concertormer_jax.weights.conversion import PUBLISHED, mappings, variant_named


@pytest.fixture(scope="module")
def module():
    """Several heads and several blocks in a stage."""
    return tiny_network(
        width=16, encoder_blocks=(2,), decoder_blocks=(3,), encoder_heads=(2,), middle_heads=4, decoder_heads=(2,)
    )


@pytest.fixture(scope="module")
def params(module):
    return random_params(module)


@pytest.fixture
def state(params, module):
    return torch_from_params(params, module)


def assert_same_tree(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_there_and_back_is_the_identity(state, params, module):
    ours = params_from_torch(state, module)
    assert_same_tree(ours, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype(np.float32)}
    assert_same_tree(torch_from_params(ours, module), state)


def test_published_names_and_shapes(state):
    def shapes(prefix):
        return {name.removeprefix(prefix): array.shape for name, array in state.items() if name.startswith(prefix)}

    of_any_block = {
        "m.temperature": (4, 2, 1, 1, 1),
        "m.r_talking": (2, 4, 4, 2),
        "m.g_talking": (2, 64, 64, 2),
        "m.b_talking.weight": (2, 2, 3, 3, 1),
        "m.l_talking.weight": (2, 2, 3, 3, 1),
        "m.to_quz.weight": (96, 16, 1, 1),
        "m.to_kv.weight": (64, 16, 1, 1),
        "m.dw_u.weight": (32, 1, 3, 3),
        "m.project.weight": (32, 32, 1, 1),
        "m.project_out.weight": (16, 32, 1, 1),
        "m.sca.1.weight": (32, 32, 1, 1),
        "m.sca.1.bias": (32,),
    }
    norm = {"norm.weight": (16,), "norm.bias": (16,)}
    two_norms = {f"norm{number}.{name}": (16,) for number in (1, 2) for name in ("weight", "bias")}
    assert shapes("encoders.0.0.") == shapes("encoders.0.1.") == of_any_block | norm
    assert shapes("decoders.0.0.") == of_any_block | two_norms
    assert shapes("decoders.0.1.") == shapes("decoders.0.2.") == of_any_block | norm
    stages = ("encoders.", "middle_blks.0.", "decoders.")
    assert {name: array.shape for name, array in state.items() if not name.startswith(stages)} == {
        "intro.weight": (16, 3, 3, 3),
        "intro.bias": (16,),
        "downs.0.weight": (32, 16, 2, 2),
        "downs.0.bias": (32,),
        "intros.0.weight": (32, 3, 3, 3),
        "intros.0.bias": (32,),
        "endings.0.weight": (3, 32, 3, 3),
        "endings.0.bias": (3,),
        "ups.0.0.weight": (64, 32, 1, 1),
        "ending.weight": (3, 16, 3, 3),
        "ending.bias": (3,),
    }


def test_query_key_and_value_channels_are_regrouped_and_u_and_z_are_not(params, module):
    """Published: (head, group, channel). Ours: (group, head, channel). Every column of ours holds its own number."""
    numbers = np.arange(96, dtype=np.float32)
    params = jax.tree.map(np.copy, params)
    block = params["encoders_0"]["blocks"]
    block["attention"]["to_q"][1], block["to_uz"][1] = np.split(numbers, [32])
    published = torch_from_params(params, module)["encoders.0.1.m.to_quz.weight"][:, 0, 0, 0]
    expected = [group * 8 + head * 4 + channel for head in range(2) for group in range(4) for channel in range(4)]
    np.testing.assert_array_equal(published, [*expected, *numbers[32:]])


def test_all_names_that_differ_are_listed_in_one_error(state, module):
    del state["intro.bias"], state["middle_blks.0.norm2.weight"]
    state["intro.scale"] = np.zeros(16)
    state["ending.bias"] = np.zeros(4)
    with pytest.raises(UserError, match="4 names differ") as error:
        params_from_torch(state, module)
    for problem in (
        "missing intro.bias",
        "missing middle_blks.0.norm2.weight",
        "surplus intro.scale",
        "misshapen ending.bias (4,) instead of (3,)",
    ):
        assert problem in str(error.value)


def test_the_way_back_is_as_strict(params, module):
    params = {name: dict(stage) for name, stage in params.items()}
    del params["intro"]["bias"]
    params["intro"]["scale"] = np.zeros(16)
    params["ending"]["bias"] = np.zeros(4)
    with pytest.raises(UserError, match="3 names differ") as error:
        torch_from_params(params, module)
    for problem in ("missing intro/bias", "surplus intro/scale", "misshapen ending/bias (4,) instead of (3,)"):
        assert problem in str(error.value)


def test_the_command_converts_to_a_checkpoint_and_back(tmp_path, capsys):
    module = create("demo")
    state = torch_from_params(random_params(module), module)
    published, folder = tmp_path / "published.pth", tmp_path / "converted"
    write_state_dict(published, state)
    convert.main([str(published), str(folder)])
    assert f"{published} -> {folder}" in capsys.readouterr().out
    loaded = checkpoints.load_model(folder)
    assert loaded.module == module
    assert loaded.train_crop_px == 256
    for suffix in (".pth", ".safetensors"):
        back = tmp_path / f"back{suffix}"
        convert.main([str(folder), str(back)])
        assert_same_tree(read_state_dict(back), state)


def test_a_form_that_was_never_published_has_no_names():
    module = tiny_network(sca=False)
    with pytest.raises(UserError, match="the custom network is a form that was never published"):
        torch_from_params(random_params(module), module)


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_names_say_which_network_they_are_of(variant):
    names = [mapping.torch_name for mapping in mappings(create(variant))]
    assert len(names) == len(set(names))
    assert variant_named(names) == variant
    assert variant_named(names[1:]) == variant, "one is missing, which the error about it should say"


@pytest.mark.parametrize("norm_bias", [True, False])
def test_restormer_there_and_back_is_the_identity(norm_bias):
    """(Its published names and shapes: see test_golden.py.)"""
    module = tiny_restormer(norm_bias=norm_bias)
    params = random_params(module)
    state = torch_from_params(params, module)
    assert ("latent.0.norm1.body.bias" in state) == norm_bias
    assert_same_tree(params_from_torch(state, module), params)
    state["patch_embed.proj.bias"] = state.pop("output.weight")
    with pytest.raises(UserError, match=r"2 names differ.*missing output\.weight; surplus patch_embed\.proj\.bias"):
        params_from_torch(state, module)


def fails(capsys, *arguments):
    """Run the command, which must fail with one line; returns it."""
    with pytest.raises(SystemExit) as exit_status:
        convert.main([str(argument) for argument in arguments])
    assert exit_status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_command_refuses_weights_of_another_variant(tmp_path, capsys, state):
    write_state_dict(tmp_path / "small.pth", state)
    line = fails(capsys, tmp_path / "small.pth", tmp_path / "out", "--variant=demo")
    assert "choose the variant that they belong to" in line
    assert not (tmp_path / "out").exists()


def test_the_command_does_not_overwrite_a_folder(tmp_path, capsys):
    module = create("demo")
    write_state_dict(tmp_path / "demo.safetensors", torch_from_params(random_params(module), module))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.txt").write_text("kept")
    line = fails(capsys, tmp_path / "demo.safetensors", tmp_path / "out", "--variant=demo")
    assert "out is not empty; choose a new directory" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("arguments", [("weights.pth", "out"), ("checkpoint", "out.pth")])
def test_the_command_names_a_missing_source(tmp_path, capsys, arguments):
    source, destination = (tmp_path / argument for argument in arguments)
    assert f"{source} does not exist" in fails(capsys, source, destination)
    assert not destination.exists()
