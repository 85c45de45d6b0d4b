"""Exported networks run in other software and restore what this software restores; or one sentence says why not."""

import dataclasses
import json
import sys
import warnings
from types import SimpleNamespace

import command_lines
import jax
import numpy as np
import pytest
import tensorflow as tf
from jax import export
from tiny_network import random_images, random_params, tiny_network
from tiny_restormer import tiny_restormer

from concertormer_jax import __version__
from concertormer_jax.commands import export as command
from concertormer_jax.data.images import read_rgb
from concertormer_jax.exporting import onnx_file
from concertormer_jax.exporting.program import Program
from concertormer_jax.exporting.stablehlo import stablehlo
from concertormer_jax.exporting.tflite import tflite
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import bundled
from concertormer_jax.weights.checkpoints import LoadedModel, load_model, save_converted

SIZE = (32, 48)
NEEDS_ONNX = "pip install onnx onnxruntime to test it (the extra `onnx`)"


def loaded(module) -> LoadedModel:
    """A network with random weights whose output mostly lies inside [0, 1]."""
    params = random_params(module)
    params["ending"] = jax.tree.map(lambda leaf: 0.05 * leaf, params["ending"])
    return LoadedModel(module, params, 96, 7, "tiny")


def restored(model, images, tlc_window=None, changed=0.03):
    """What the network makes of pictures, which it changes, by this platform's own forms of its operations."""
    module = model.module.clone(tlc_window=tlc_window)
    output = np.asarray(jax.jit(lambda params: module.apply({"params": params}, images)[-1])(model.params)).clip(0, 1)
    assert np.abs(output - images).mean() > changed and ((output > 0) & (output < 1)).mean() > 0.1, "proves too little"
    return output


def interpreted(file, images):
    """What TensorFlow Lite's interpreter makes of pictures by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the interpreter is deprecated
        return tf.lite.Interpreter(str(file)).get_signature_runner()(**images)


@pytest.fixture(scope="module")
def tiny():
    return loaded(tiny_network(middle_blocks=2, unshuffle=2))


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_converted(folder, tiny.module, tiny.params, tiny.train_crop_px)
    return folder


def exported(output, checkpoint, *more, size="64x32"):
    """The manifest that the command wrote beside `output`."""
    command.main([f"--ckpt={checkpoint}", f"--size={size}", *more, output])
    return json.loads(output.with_name(f"{output.name}.json").read_text())


@pytest.fixture(autouse=True)
def without_set_up(monkeypatch):
    """The command leaves this process's settings alone."""
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)


def test_stablehlo_restores_the_same_for_any_batch_and_lowers_for_every_platform(tiny, checkpoint, tmp_path):
    manifest = exported(tmp_path / "tiny.stablehlo", checkpoint)
    program = export.deserialize(bytearray((tmp_path / "tiny.stablehlo").read_bytes()))
    assert list(program.platforms) == manifest["platforms"] == ["cpu", "cuda", "tpu"]
    images = random_images(2, 32, 64, 3)
    expected = restored(tiny, images)
    for batch in (1, 2):
        result = jax.jit(program.call)(images[:batch])
        np.testing.assert_allclose(result, expected[:batch], rtol=0, atol=1e-5)
    assert manifest["input"]["shape"] == ["batch", 32, 64, 3]
    assert "HIGHEST" in program.mlir_module(), "products of float32 on GPUs and TPUs too"


def test_onnx_restores_the_same(tiny, checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    manifest = exported(tmp_path / "tiny.onnx", checkpoint)
    images = random_images(1, 32, 64, 3)
    session = onnxruntime.InferenceSession(tmp_path / "tiny.onnx")
    (output,) = session.run([manifest["output"]["name"]], {manifest["input"]["name"]: images})
    np.testing.assert_allclose(output, restored(tiny, images), rtol=0, atol=1e-4)
    opsets = [(opset.domain, opset.version) for opset in onnx.load(tmp_path / "tiny.onnx").opset_import]
    assert opsets == [("", manifest["opset"])]


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo", pytest.param("tflite", marks=pytest.mark.long)])
def test_the_weights_in_the_box_restore_the_same_and_are_float16_as_in_the_box(suffix, tmp_path):
    model, file = load_model(), tmp_path / f"pocket.{suffix}"
    command.main(["--size=64x64", "--half", file])
    photograph = read_rgb(bundled("photos/test/gcompris_cheetah.jpg"))[100:164, 200:264] / np.float32(255)
    blurred = np.mean([np.roll(photograph, shift, axis=1) for shift in range(6)], axis=0, dtype=np.float32)[None]
    expected = restored(model, blurred, changed=0.001)
    if suffix == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
        (output,) = onnxruntime.InferenceSession(file).run(None, {"image": blurred})
    elif suffix == "stablehlo":
        output = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)(blurred)
    else:
        output = interpreted(file, {"image": blurred})["restored"]
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert file.stat().st_size < 2.4 * numbers, "two bytes for each weight, and the program"
    assert json.loads((tmp_path / f"pocket.{suffix}.json").read_text())["weights"]["dtype"] == "float16"


def test_weights_that_float16_does_not_hold_are_one_sentence(tiny):
    params = tiny.params | {"intro": jax.tree.map(lambda leaf: leaf + 1e5, tiny.params["intro"])}
    model = dataclasses.replace(tiny, params=params)
    with pytest.raises(UserError, match="--half: these weights have numbers that float16 does not hold; leave"):
        stablehlo(Program(model, *SIZE, None, half=True))


def test_onnx_adds_a_whole_picture_up_to_within_rounding():
    """A runtime that adds a million numbers up one by one loses four digits of their mean."""
    pytest.importorskip("onnx", reason=NEEDS_ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    images = random_images(1, 1024, 1024, 3)
    program = SimpleNamespace(
        shape=lambda batch: jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype),
        function=lambda: lambda images: images.mean((1, 2), keepdims=True),
        manifest=lambda *_, **__: {},
        half=False,
    )
    (mean,) = onnxruntime.InferenceSession(onnx_file.onnx_file(program)[0]).run(None, {"image": images})
    np.testing.assert_allclose(mean, images.mean((1, 2), dtype=np.float64, keepdims=True), rtol=1e-6)


def test_onnx_holds_no_map_twice(tiny):
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    graph = onnx.load_from_string(onnx_file.onnx_file(Program(tiny, 32, 64, None))[0]).graph
    joined = [list(node.input) for node in graph.node if node.op_type == "Concat"]
    assert joined and all(len(set(parts)) == len(parts) for parts in joined)


def test_tflite_restores_the_same(tiny, checkpoint, tmp_path):
    manifest = exported(tmp_path / "tiny.tflite", checkpoint)
    images = random_images(1, 32, 64, 3)
    output = interpreted(tmp_path / "tiny.tflite", {manifest["input"]["name"]: images})[manifest["output"]["name"]]
    np.testing.assert_allclose(output, restored(tiny, images), rtol=0, atol=1e-4)
    assert manifest["input"]["shape"] == [1, 32, 64, 3]


def test_a_network_that_tensorflow_cannot_convert_is_one_sentence(monkeypatch):
    def refuse():
        raise RuntimeError("/a/file.py:1:2: error: 'tfl.pad' op failed\n  x = pad(y)")

    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_concrete_functions", lambda *_: SimpleNamespace(convert=refuse))
    with pytest.raises(UserError, match=r"write this network as a .tflite file \('tfl\.pad' op failed\); export"):
        tflite(Program(loaded(tiny_network(groups=(), skip="sum")), *SIZE, None))


def test_a_converter_that_takes_a_network_for_another_is_found_out(monkeypatch):
    monkeypatch.setattr("concertormer_jax.exporting.tflite.TOLERANCE", -1)
    with pytest.raises(UserError, match=r"restores other pictures, by up to .* converter; export \.onnx"):
        tflite(Program(loaded(tiny_network(groups=(), skip="sum")), *SIZE, None))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(tiny_network(middle_blocks=2), id="concertormer"),
        pytest.param(tiny_restormer(), id="restormer"),
        pytest.param(tiny_restormer(norm_bias=False), id="restormer without biases"),
    ],
)
def test_both_formats_restore_the_same_with_tlc(network):
    pytest.importorskip("onnx", reason=NEEDS_ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    model, window = loaded(network), 32
    program = Program(model, *SIZE, window)
    images = random_images(1, *SIZE, 3)
    expected = restored(model, images, window)
    assert np.abs(restored(model, images) - expected).max() > 1e-3, "TLC does nothing"
    content, manifest = onnx_file.onnx_file(program)
    (output,) = onnxruntime.InferenceSession(content).run(None, {"image": images})
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-4)
    called = export.deserialize(bytearray(stablehlo(program)[0])).call
    np.testing.assert_allclose(jax.jit(called)(images), expected, rtol=0, atol=1e-5)
    assert manifest["tlc_window_px"] == window


def test_the_manifest_says_how_to_call_it(tiny, checkpoint, tmp_path):
    manifest = exported(tmp_path / "tiny.stablehlo", checkpoint, "--tlc=auto", size="32x64")
    tensor = {"shape": ["batch", 64, 32, 3], "axes": "NHWC", "channels": "RGB", "dtype": "float32", "range": [0, 1]}
    assert manifest["input"] == {"name": "image", **tensor}
    assert manifest["output"] == {"name": "restored", **tensor, "clipped": True}
    assert manifest["padding"]["multiple"] == tiny.module.multiple == 32
    assert manifest["tlc_window_px"] == 192  # 1.75 times 96, as a multiple of 64
    assert manifest["network"]["architecture"]["width"] == 8
    assert manifest["weights"] == {"name": "tiny, step 0", "step": 0, "dtype": "float32"}
    assert manifest["versions"] == {"concertormer_jax": __version__, "jax": jax.__version__}


def test_mistakes_are_one_sentence(checkpoint, tmp_path):
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    ckpt, size = f"--ckpt={checkpoint}", "--size=32x32"
    refused = {
        (ckpt, size, "tiny.pb"): "must end in one of .stablehlo, .onnx, .tflite",
        (ckpt, size, "gs://bucket/tiny.onnx"): "must be on this machine",
        (ckpt, size, str(folder)): "is a folder; name a file",
        (ckpt, size, "tiny.stablehlo", "--page"): "--page: browsers run ONNX files alone",
        (ckpt, "tiny.onnx"): "the following arguments are required: --size; see --help",
        (ckpt, "--size=32", "tiny.onnx"): "'32' must be WIDTHxHEIGHT in pixels, such as 1280x720",
        (ckpt, "--size=0x32", "tiny.onnx"): "'0x32' must be WIDTHxHEIGHT",
        (ckpt, "--size=40x32", "tiny.onnx"): "--size=40x32: this network takes multiples of 32 pixels; export "
        "--size=64x32 and pad",
        (ckpt, size, "--tlc=33", "tiny.onnx"): "--tlc=33: must be a multiple of 64",
        ("--ckpt=missing", size, "tiny.onnx"): "missing does not exist",
    }
    results = command_lines.run_all("concertormer_jax.commands.export", list(map(list, refused)), tmp_path)
    for (status, said), expected in zip(results, refused.values(), strict=True):
        assert expected in command_lines.sentence_of(status, said)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"], "a refused export leaves nothing behind"


def test_a_missing_package_is_one_sentence_that_names_the_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # so that its import fails
    with pytest.raises(UserError, match=r"need the package onnx .* pip install onnx \(the extra `onnx`\)"):
        onnx_file.onnx_file(Program(tiny, *SIZE, None))
