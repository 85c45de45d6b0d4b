"""Published weights to ours and back: lossless, strict, and the command. (Their values: see test_golden.py.)"""

import jax
import numpy as np
import pytest
from pth_files import Storage, tensor, write_pth
from tiny_network import random_params, tiny_network
from tiny_restormer import tiny_restormer

from concertormer_jax.commands import convert
from concertormer_jax.models import Concertormer, create, variant_name
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import results_path
from concertormer_jax.weights import (
    checkpoints,
    params_from_torch,
    read_state_dict,
    torch_from_params,
    write_state_dict,
)
from concertormer_jax.weights.conversion import (
    PUBLISHED,
    mappings,
    network_of,
    published_names,
    published_shapes,
    variant_named,
)


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


def test_names_that_differ_are_counted_and_the_first_are_named(state, module):
    del state["intro.bias"], state["middle_blks.0.norm2.weight"]
    state["intro.scale"] = np.zeros(16)
    state["ending.bias"] = np.zeros(4)
    with pytest.raises(UserError) as error:
        params_from_torch(state, module)
    assert str(error.value) == (
        "the weights are not those of this network: 2 missing (intro.bias, middle_blks.0.norm2.weight), "
        "1 surplus (intro.scale), 1 of another shape (ending.bias is (4,) in place of (3,)); "
        "the names are nearest to those of the variant demo"
    )


def test_the_message_about_many_names_is_short_and_names_the_nearest_variant(module):
    state = {name: np.zeros(1) for name in published_names()["gopro"]}
    with pytest.raises(UserError, match=r"surplus .*, \.\.\.\), .*the names are those of the variant gopro$") as error:
        params_from_torch(state, module)
    assert len(str(error.value)) < 500
    with pytest.raises(UserError, match=r"surplus \(\\x1b\[31m") as error:
        params_from_torch(
            torch_from_params(random_params(module), module) | {"\x1b[31m" + 999 * "a": np.zeros(1)}, module
        )
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(3, np.int8), "is of the type int8; weights must be of a floating one"),
        (np.zeros(3, np.complex64), "is of the type complex64"),
        (np.array([0, 0, np.nan], np.float32), "is not finite"),
        (np.array([0, 0, 1e300]), "is not finite"),
    ],
)
def test_what_cannot_be_weights_is_refused(state, module, array, reason):
    with pytest.raises(UserError, match=f"ending.bias {reason}"):
        params_from_torch(state | {"ending.bias": array}, module)


def test_the_way_back_is_as_strict(params, module):
    params = {name: dict(stage) for name, stage in params.items()}
    del params["intro"]["bias"]
    params["intro"]["scale"] = np.zeros(16)
    params["ending"]["bias"] = np.zeros(4)
    with pytest.raises(UserError, match=r"1 missing \(intro/bias\), 1 surplus \(intro/scale\), 1 of another shape"):
        torch_from_params(params, module)


def test_the_command_converts_to_a_checkpoint_and_back(tmp_path, capsys):
    module = create("demo")
    state = torch_from_params(random_params(module), module)
    published, folder = tmp_path / "published.pth", tmp_path / "converted"
    write_state_dict(published, state)
    convert.main([str(published), str(folder)])
    said = capsys.readouterr().out
    assert f"{published}: took 'params'; the network is demo\n{published} -> {folder}" in said
    loaded = checkpoints.load_model(folder)
    assert loaded.module == module
    assert loaded.train_crop_px == 256
    for name in ("back.pth", "back.pt", "back.SAFETENSORS"):
        convert.main([str(folder), str(tmp_path / name)])
        assert_same_tree(read_state_dict(tmp_path / name), state)
        convert.main([str(tmp_path / name), str(tmp_path / f"again-{name}")])
        assert_same_tree(read_state_dict(tmp_path / f"again-{name}"), state)


def test_the_moving_average_is_converted_unless_the_other_is_asked_for(tmp_path, capsys, params, module):
    average = jax.tree.map(lambda leaf: leaf + 1, params)
    content = {"params": torch_from_params(params, module), "params_ema": torch_from_params(average, module)}
    content = {key: {f"module.{name}": array for name, array in state.items()} for key, state in content.items()}
    write_as_trainers_do(tmp_path / "both.pth", content)
    for flags, expected, said in (
        ([], average, "took 'params_ema.module', not 'params.module'; without the prefix 'module.'"),
        (["--key=params"], params, "took 'params.module', not 'params_ema.module'; without the prefix 'module.'"),
    ):
        folder = tmp_path / f"converted{len(flags)}"
        convert.main([str(tmp_path / "both.pth"), str(folder), *flags])
        assert f"both.pth: {said}; the network is custom" in capsys.readouterr().out
        loaded = checkpoints.load_model(folder)
        assert loaded.module == module, "its size is told by the shapes"
        assert_same_tree(loaded.params, expected)
    assert "choose from 'params.module', 'params_ema.module'" in fails(
        capsys, tmp_path / "both.pth", tmp_path / "out", "--key=model"
    )


def write_as_trainers_do(path, content):
    """Write a file of several dictionaries of arrays."""
    storages, described = {}, {}
    for key, state in content.items():
        described[key] = {}
        for name, array in state.items():
            storage = Storage(array.size, key=str(len(storages)))
            strides = tuple(stride // 4 for stride in array.strides)
            described[key][name] = tensor(storage, 0, array.shape, strides)
            storages[str(len(storages))] = array.tobytes()
    write_pth(path, described, storages)


def test_the_results_of_a_weights_file_go_beside_it(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    assert results_path(None, tmp_path / "w.pth", "evaluation", "a") == tmp_path / "w-results" / "evaluation" / "a"
    (tmp_path / "w").mkdir()
    assert results_path(None, tmp_path / "w", "evaluation", "a") == tmp_path / "w" / "evaluation" / "a"


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights"])
def test_a_weights_file_is_loaded_as_a_checkpoint_is(tmp_path, capsys, params, state, module, name):
    write_state_dict(tmp_path / "w.pth" if name == "weights" else tmp_path / name, state)
    if name == "weights":
        (tmp_path / "w.pth").rename(tmp_path / name)
    loaded = checkpoints.load_model(tmp_path / name)
    assert (loaded.module, loaded.train_crop_px, loaded.step, loaded.name) == (module, 256, 0, name)
    assert_same_tree(loaded.params, params)
    assert "the network is custom" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    "module",
    [
        *[create(variant) for variant in PUBLISHED],
        tiny_network(),
        tiny_network(
            width=16, encoder_blocks=(2, 1), decoder_blocks=(3, 4), encoder_heads=(2, 1), decoder_heads=(1, 2)
        ),
        tiny_network(expansion=3, width=16),
        tiny_restormer(),
        tiny_restormer(norm_bias=False),
    ],
    ids=lambda module: f"{variant_name(module)}-{module.width}",
)
def test_the_shapes_say_the_network(module):
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in published_shapes(module).items()}
    assert network_of(shapes) == module
    shapes.pop("ending.weight" if isinstance(module, Concertormer) else "output.weight")
    assert network_of(shapes) == create(variant_named(shapes)), (
        "the nearest, about which the error can say what is missing"
    )


@pytest.mark.parametrize("name", ["intro.weight", "encoders.0.0.m.temperature", "encoders.0.0.m.dw_u.weight"])
@pytest.mark.parametrize("shape", [(), (0,), (2**40, 0, 3, 3), (10**6, 3, 3, 3), (1, 10**6, 1, 1, 1)])
def test_hostile_shapes_are_of_no_network(state, name, shape):
    state[name] = np.broadcast_to(np.float32(0), shape)
    assert network_of(state) == create(variant_named(state)), "the nearest by its names"


@pytest.mark.parametrize("norm_bias", [True, False])
def test_restormer_there_and_back_is_the_identity(norm_bias):
    """(Its published names and shapes: see test_golden.py.)"""
    module = tiny_restormer(norm_bias=norm_bias)
    params = random_params(module)
    state = torch_from_params(params, module)
    assert ("latent.0.norm1.body.bias" in state) == norm_bias
    assert_same_tree(params_from_torch(state, module), params)
    state["patch_embed.proj.bias"] = state.pop("output.weight")
    with pytest.raises(UserError, match=r"1 missing \(output\.weight\), 1 surplus \(patch_embed\.proj\.bias\)"):
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
    assert "small.pth: the weights are not those of this network" in line
    assert len(line) < 800
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


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("run", "out.bin", "out.bin must end in .pth, .pt or .safetensors"),
        ("run", "out", "out must end in .pth, .pt or .safetensors"),
        ("run", "out.onnx", "must end in .pth, .pt or .safetensors"),
        ("run", "out.pth --key=params", "--variant and --key are for a weights file"),
        ("run", "out.pth --variant=demo", "--variant and --key are for a weights file"),
        ("w.pth", "out.ckpt", "out.ckpt must end in .pth, .pt or .safetensors"),
        ("w.pth", "out.BIN", "must end in .pth, .pt or .safetensors"),
        ("w.pth", "w.pth", "w.pth exists; choose another name"),
        ("w.pth", "note.txt", "note.txt exists and is no directory; choose another name"),
        ("w.pth", "run", "run is not empty; choose a new directory"),
        ("w.pth", "folder.pth", "folder.pth exists; choose another name"),
        ("run", "folder.pth", "folder.pth exists; choose another name"),
        ("note.txt", "out", "note.txt is neither a PyTorch weights file nor safetensors"),
    ],
)
def test_the_command_tells_files_from_folders(tmp_path, capsys, state, params, module, source, destination, message):
    write_state_dict(tmp_path / "w.pth", state)
    checkpoints.save_converted(tmp_path / "run", module, params, 256)
    (tmp_path / "note.txt").write_text("a note")
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.iterdir())
    destination, *flags = destination.split()
    assert message in fails(capsys, tmp_path / source, tmp_path / destination, *flags)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_weights_file_is_one_sentence(tmp_path, capsys, state, name):
    write_state_dict(tmp_path / name, state)
    whole = (tmp_path / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1  # in the numbers
    for damaged in (b"", whole[:1000], whole[:-1000], bytes(flipped), whole[:-100] + bytes(100), bytes(len(whole))):
        (tmp_path / name).write_bytes(damaged)
        line = fails(capsys, tmp_path / name, tmp_path / "out")
        assert line.startswith(f"error: {tmp_path / name}")
        with pytest.raises(UserError):
            checkpoints.load_model(tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_a_half_file_is_half_as_large_and_holds_the_same_numbers_rounded(tmp_path, module, params):
    checkpoints.save_converted(tmp_path / "run", module, params, train_crop_px=16)
    for name, extra in (("whole", []), ("half", ["--half"])):
        convert.main([str(tmp_path / "run"), str(tmp_path / f"{name}.safetensors"), *extra])
    whole, half = (checkpoints.load_model(tmp_path / f"{name}.safetensors").params for name in ("whole", "half"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(b, a.astype(np.float16).astype(np.float32)), whole, half)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize(
    ("destination", "reason"), [("w.pth", "float16 is for .safetensors"), ("run2", "--half is for")]
)
def test_half_is_refused_where_it_cannot_be(tmp_path, module, params, capsys, destination, reason):
    checkpoints.save_converted(tmp_path / "run", module, params, train_crop_px=16)
    source = tmp_path / "run"
    if destination == "run2":
        source = tmp_path / "w.safetensors"
        convert.main([str(tmp_path / "run"), str(source)])
    with pytest.raises(SystemExit):
        convert.main([str(source), str(tmp_path / destination), "--half"])
    assert reason in capsys.readouterr().err
