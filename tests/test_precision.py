"""A float32 network is evaluated and restored with float32 products, whatever a device would do by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from PIL import Image
from tiny_network import random_params, tiny_network

from concertormer_jax.analysis.attribution import PathIntegral
from concertormer_jax.analysis.windows import Window
from concertormer_jax.commands import app, restore
from concertormer_jax.commands import evaluate as evaluate_command
from concertormer_jax.data.sources import open_source
from concertormer_jax.evaluation.evaluator import evaluate
from concertormer_jax.evaluation.scores import EvaluationSet
from concertormer_jax.inference import compiled
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.ops.dispatch import traced_for
from concertormer_jax.runtime import trace_cache
from concertormer_jax.weights.checkpoints import LoadedModel

WITHOUT_ATTENTION = {"groups": (), "skip": "sum"}  # quick to trace


class Lowered(Exception):
    """Raised in place of compiling, with the text of the program."""


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    def stop(lowered):
        raise Lowered(lowered.as_text())

    monkeypatch.setattr(compiled, "compile_interruptibly", stop)


@pytest.fixture
def pairs(tmp_path):
    for part in ("input", "target"):
        (tmp_path / "data" / part).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / part / "a.png")
    return EvaluationSet("data", open_source(tmp_path / "data"))


def loaded(**fields):
    module = tiny_network(**fields)
    return LoadedModel(module, random_params(module), 128, 1, "tiny")


def evaluated(model, pairs, tmp_path, **options):
    evaluate(model, pairs, tmp_path / "out", devices=jax.devices()[:1], log=lambda line: None, **options)


def restored(model, **options):
    Restorer(model, log=lambda line: None, **options)(np.zeros((32, 32, 3), np.float32))


def precisions(text):
    """What the products of a StableHLO program ask for; first those of its convolutions, then those of matrices."""
    lines = [line for line in text.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)\b", line)]
    asked = [
        # A program that was stored leaves out what is the default.
        ("convolution" in line, "/".join(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line)) or "DEFAULT/DEFAULT")
        for line in lines
    ]
    return [[what for is_convolution, what in asked if is_convolution is wanted] for wanted in (True, False)]


def test_every_product_of_an_evaluation_is_one_of_float32(pairs, tmp_path):
    with pytest.raises(Lowered) as program:
        evaluated(loaded(), pairs, tmp_path)
    convolutions, matrices = precisions(str(program.value))
    assert set(convolutions) == set(matrices) == {"HIGHEST/HIGHEST"}
    assert len(matrices) > 20, "those of the attention"


def test_every_product_of_a_restoration_on_a_tpu_is_one_of_float32():
    with traced_for("tpu"), pytest.raises(Lowered) as program:
        restored(loaded())
    convolutions, matrices = precisions(str(program.value))
    assert set(convolutions) == set(matrices) == {"HIGHEST/HIGHEST"}
    assert len(matrices) > 20


def test_every_product_of_an_attribution_is_one_of_float32():
    model = loaded(**WITHOUT_ATTENTION)
    restore = Partial(lambda params, images: model.module.apply({"params": params}, images)[-1], model.params)
    with pytest.raises(Lowered) as program:
        PathIntegral(restore, steps=2, batch=1, log=lambda line: None)(
            np.zeros((32, 32, 3), np.float32), Window(8, 8, 8)
        )
    convolutions, _ = precisions(str(program.value))
    assert set(convolutions) == {"HIGHEST/HIGHEST"}


def test_another_precision_is_asked_for_by_name(pairs, tmp_path):
    for setting in ("high", "default"):
        with pytest.raises(Lowered) as program:
            evaluated(loaded(**WITHOUT_ATTENTION), pairs, tmp_path, precision=setting)
        convolutions, _ = precisions(str(program.value))
        assert set(convolutions) == {f"{setting.upper()}/{setting.upper()}"}


def test_nothing_is_asked_for_a_network_in_bfloat16():
    model = loaded(dtype=jnp.bfloat16, **WITHOUT_ATTENTION)
    with pytest.raises(Lowered) as program:
        restored(model)
    images = jnp.zeros((1, 384, 384, 3))
    module = model.module.clone(tlc_window=256)
    plain = jax.jit(compiled.restore_floats(module)).lower(model.params, images).as_text()
    assert precisions(str(program.value)) == precisions(plain)
    assert "DEFAULT/DEFAULT" in precisions(plain)[0]


def test_a_trace_serves_for_its_own_precision_alone(tmp_path):
    trace_cache.set_cache_dir(tmp_path / "traces")
    try:
        for setting in ("highest", "default", "highest"):
            with pytest.raises(Lowered) as program:
                restored(loaded(**WITHOUT_ATTENTION), precision=setting)
            convolutions, _ = precisions(str(program.value))
            assert set(convolutions) == {f"{setting.upper()}/{setting.upper()}"}
        assert len(list((tmp_path / "traces").iterdir())) == 2
    finally:
        trace_cache.set_cache_dir(None)


def test_the_process_setting_is_left_as_it_was():
    with jax.default_matmul_precision("high"):
        with pytest.raises(Lowered):
            restored(loaded(**WITHOUT_ATTENTION))
        assert jax.config.jax_default_matmul_precision == "high"


@pytest.mark.parametrize("command", [evaluate_command, restore, app])
def test_an_unknown_precision_is_one_sentence(command, capsys):
    with pytest.raises(SystemExit) as status:
        command.main(["--ckpt=x", "--precision=float64", *(["a", "b"] if command is restore else [])])
    assert status.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--precision" in line and "highest" in line
