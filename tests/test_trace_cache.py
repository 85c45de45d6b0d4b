"""The cache of traces: what is used again, what is not, pruning, and files that are damaged or cannot be written."""

import importlib.util
import os
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_runs as runs
from light_network import leave_out_blocks

from concertormer_jax.models import initial_params, parameter_shapes
from concertormer_jax.ops.platform import traced_for
from concertormer_jax.runtime import trace_cache
from concertormer_jax.runtime.devices import data_mesh, place_batch, replicated
from concertormer_jax.training import losses, trainer
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.setup import compile_step, state_shapes, trace_step, training_from
from configs import common


@pytest.fixture
def folder(tmp_path):
    trace_cache.set_cache_dir(tmp_path / "traces")
    yield tmp_path / "traces"
    trace_cache.set_cache_dir(None)


class Traced:
    """Calls a function through the cache and returns how often it was traced so far.

    Each call makes a new function: JAX itself remembers the traces of one function in a process.
    """

    def __init__(self):
        self.times = 0

    def __call__(self, x, fingerprint="two", **options):
        def double(tree):
            self.times += 1
            return {"doubled": 2 * tree["x"]}

        expected = 2 * np.asarray(x)
        compiled = trace_cache.lower_cached(double, {"x": x}, fingerprint=fingerprint, **options).compile()
        np.testing.assert_array_equal(compiled({"x": x})["doubled"], expected)
        return self.times


def test_a_function_is_traced_once_for_the_same_key(folder):
    traced = Traced()
    x = jnp.arange(3.0)
    assert [traced(x), traced(x)] == [1, 1]
    assert len(list(folder.iterdir())) == 1
    assert Traced()(jnp.arange(3.0)) == 0  # as in another process


def test_another_shape_type_text_option_setting_or_code_is_traced_anew(folder, monkeypatch):
    traced = Traced()
    x = jnp.arange(3.0)
    assert [traced(x), traced(jnp.arange(4.0)), traced(x.astype(jnp.int32)), traced(x, fingerprint="2")] == [1, 2, 3, 4]
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert traced(x) == 5
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert traced(x) == 5  # the first, again
    assert traced(x.copy(), donate_argnums=0) == 6
    monkeypatch.setattr(trace_cache, "_digest_of_package", lambda: "other code")
    trace_cache.set_cache_dir(folder)
    assert traced(x) == 7


def test_arguments_on_other_devices_are_traced_anew(folder):
    traced = Traced()
    one, two = jax.devices()[:2]
    assert [traced(jax.device_put(jnp.ones(2), device)) for device in (one, two, one)] == [1, 2, 2]


def test_the_package_s_code_is_in_the_key(tmp_path, monkeypatch):
    for room in ("ops", "runtime"):
        (tmp_path / room).mkdir()
    for name in ("runtime/trace_cache.py", "ops/attention.py"):
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(trace_cache, "__file__", str(tmp_path / "runtime/trace_cache.py"))
    before = trace_cache._digest_of_package()
    assert trace_cache._digest_of_package() == before
    (tmp_path / "ops" / "attention.py").write_text("2\n")
    assert trace_cache._digest_of_package() != before


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A function that writes a file of a user and imports it."""

    def write_and_import(source):
        path = tmp_path / "of_a_user.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    return write_and_import


def test_a_function_of_another_file_is_traced_anew_when_the_file_changes(folder, imported):
    def result(source):
        lowered = trace_cache.lower_cached(imported(source).scaled, jnp.ones(()), fingerprint="")
        return float(lowered.compile()(jnp.ones(())))

    assert result("def scaled(x):\n    return 2 * x\n") == 2
    assert result("def scaled(x):\n    return 33 * x\n") == 33
    assert result("def scaled(x):\n    return 2 * x\n") == 2
    assert len(list(folder.iterdir())) == 2


NETWORK = "import dataclasses\n@dataclasses.dataclass\nclass Network:\n    width: int = 4\n"


def test_a_fingerprint_tells_networks_their_files_and_settings_apart(imported):
    def made_of(source=NETWORK, width=4, settings=({"rate": 1}, 2)):
        return trace_cache.fingerprint(imported(source).Network(width), *settings)

    assert made_of() == made_of() is not None
    others = [made_of(width=8), made_of(settings=({"rate": 2}, 2)), made_of(settings=()), made_of(f"{NETWORK}# deeper")]
    assert len({made_of(), *others}) == 5


def test_what_comes_from_no_file_is_not_cached(folder):
    namespace = {"__name__": "typed_in"}
    exec(f"{NETWORK}def double(x):\n    return 2 * x\n", namespace)
    assert trace_cache.fingerprint(namespace["Network"]()) is None
    assert trace_cache.lower_cached(namespace["double"], jnp.ones(2), fingerprint="").compile()(jnp.ones(2)).sum() == 4
    assert not folder.exists()


def test_the_oldest_traces_are_removed(folder, monkeypatch):
    monkeypatch.setattr(trace_cache, "MOST_TRACES", 3)
    traced, written = Traced(), []
    for size in range(1, 6):
        traced(jnp.ones(size))
        (new,) = set(folder.iterdir()) - set(written)
        os.utime(new, (1000 + size, 1000 + size))
        written.append(new)
    assert set(folder.iterdir()) == set(written[-3:])
    assert traced(jnp.ones(5)) == 5
    assert traced(jnp.ones(1)) == 6


def test_nothing_is_cached_by_a_process_that_did_not_ask(tmp_path):
    traced = Traced()
    assert [traced(jnp.ones(2)), traced(jnp.ones(2))] == [1, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9], lambda content: content + b"1"])
def test_a_damaged_file_is_written_anew(folder, damage):
    traced = Traced()
    x = jnp.arange(3.0)
    traced(x)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert [traced(x), traced(x)] == [2, 2]
    assert list(folder.iterdir()) == [path]


def test_a_folder_that_takes_no_files_is_named_and_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    trace_cache.set_cache_dir(tmp_path / "file" / "traces")
    try:
        with pytest.warns(UserWarning, match=r"cannot be cached in .*file/traces"):
            assert Traced()(jnp.ones(2)) == 1
    finally:
        trace_cache.set_cache_dir(None)


def test_a_file_that_cannot_be_read_does_no_harm(folder):
    traced = Traced()
    x = jnp.arange(3.0)
    traced(x)
    (path,) = folder.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="cannot be cached"):
        assert traced(x) == 2


def test_a_run_from_cached_traces_is_the_same(folder, tmp_path, monkeypatch):
    """(And the same as one without a cache: in test_train.py only the commands have one.)"""
    leave_out_blocks(monkeypatch)
    photos = tmp_path / "photos"
    photos.mkdir()
    runs.write_photos(photos)
    settings = runs.TINY_RUN | runs.ONE_STAGE | {"data.source": str(photos)}
    trainer.train(runs.override(common.get_config(), settings), tmp_path / "traced")
    assert len(list(folder.iterdir())) == 3  # the two parts of the step, and validation
    monkeypatch.setattr(losses, "multiscale_l1_fft", None)
    trainer.train(runs.override(common.get_config(), settings | {"run.log_every_steps": 2}), tmp_path / "cached")
    traced, cached = (runs.stored_state(tmp_path / name, 2) for name in ("traced", "cached"))
    runs.assert_identical(cached, traced)


@pytest.mark.parametrize(("kind", "programs"), [("cpu", 2), ("gpu", 1)])
def test_a_step_from_new_and_from_cached_traces_is_that_of_the_config(folder, monkeypatch, kind, programs):
    """And it takes the place of the state, which is donated."""
    leave_out_blocks(monkeypatch)
    config = runs.override(common.get_config(), runs.TINY_RUN | runs.ONE_STAGE)
    (phase,) = phases = make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)
    training, mesh = training_from(config, phases), data_mesh()
    state = training.initialise(initial_params(training.module, 0))
    pixels = np.random.default_rng(0).integers(0, 255, (2, phase.batch, phase.crop_px, phase.crop_px, 3))
    batch = {"input": pixels[0].astype(training.input_dtype), "target": pixels[1].astype(np.uint8)}
    shapes = state_shapes(training, parameter_shapes(training.module), mesh)
    with traced_for(kind):
        plain = trace_step(training, shapes, phase, mesh).lower().compile()
        steps = [compile_step(training, shapes, phase, mesh)() for _ in ("traced", "cached")]
    assert len(list(folder.iterdir())) == programs
    expected = None
    for step in (plain, *steps):
        placed = jax.device_put(jax.tree.map(jnp.copy, state), replicated(mesh))
        result = step(placed, place_batch(mesh, batch))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed))
        expected = expected or result
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), result, expected)
