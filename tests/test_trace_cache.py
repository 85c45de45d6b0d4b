"""Traces kept between processes: what serves again, what does not, and files that are damaged or cannot be written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training_runs as runs
from light_network import leave_out_blocks

from concertormer_jax.runtime import trace_cache
from concertormer_jax.runtime.devices import data_mesh, replicated
from concertormer_jax.training import losses, trainer
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.setup import lower_step, trace_step, training_from
from configs import common


@pytest.fixture
def folder(tmp_path):
    trace_cache.set_cache_dir(tmp_path / "traces")
    yield tmp_path / "traces"
    trace_cache.set_cache_dir(None)


class Traced:
    """Calls a function and tells how often it was traced, each time for a new one, as JAX keeps traces in a process."""

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


def test_nothing_is_kept_by_a_process_that_did_not_ask(tmp_path):
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


def test_a_run_with_kept_traces_is_the_same(folder, tmp_path, monkeypatch):
    """(And the same as one that keeps none: see test_train.py, where only the commands keep traces.)"""
    leave_out_blocks(monkeypatch)
    photos = tmp_path / "photos"
    photos.mkdir()
    runs.write_photos(photos)
    settings = runs.TINY_RUN | runs.ONE_STAGE | {"data.source": str(photos)}
    trainer.train(runs.override(common.get_config(), settings), tmp_path / "traced")
    assert len(list(folder.iterdir())) == 3  # initial weights, step and validation
    monkeypatch.setattr(losses, "multiscale_l1_fft", None)
    trainer.train(runs.override(common.get_config(), settings | {"run.log_every_steps": 2}), tmp_path / "kept")
    traced, kept = (runs.stored_state(tmp_path / name, 2) for name in ("traced", "kept"))
    runs.assert_identical(kept, traced)


def test_a_step_from_a_kept_trace_donates_the_state(folder, monkeypatch):
    leave_out_blocks(monkeypatch)
    config = runs.override(common.get_config(), runs.TINY_RUN | runs.ONE_STAGE)
    phases = make_phases(config.stages.steps, config.stages.crop_px, config.stages.batch)
    training, mesh = training_from(config, phases), data_mesh()
    whole = replicated(mesh)
    shapes = jax.eval_shape(training.initialise, 0)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)
    plain = trace_step(training.step, shapes, phases[0], mesh).lower()
    kept = lower_step(training, shapes, phases[0], mesh)
    for lowered in (plain, kept):
        (main,) = [line for line in lowered.as_text().splitlines() if "@main(" in line]
        assert main.count("tf.aliasing_output") == len(jax.tree.leaves(shapes))
