"""What processes tell the compiler for TPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from concertormer_jax.runtime.devices import deduplicate_tpu_code, keep_cpu_loops_rolled

FLAG = "--xla_tpu_enable_deduplicated_calls"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, f"{FLAG}=true"),
        ("--xla_other=1", f"{FLAG}=true --xla_other=1"),
        (f"{FLAG}=false", f"{FLAG}=false"),
    ],
)
def test_equal_operations_are_written_once_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")  # so that the change is undone
    if given is None:
        monkeypatch.delenv("LIBTPU_INIT_ARGS")
    else:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    for _ in range(2):
        deduplicate_tpu_code()
    assert os.environ["LIBTPU_INIT_ARGS"] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=1"),
        ("--xla_a=1", "--xla_a=1 --xla_backend_extra_options=xla_cpu_disable_loop_unrolling=1"),
        ("--xla_backend_extra_options=a=1", "--xla_backend_extra_options=a=1"),
    ],
)
def test_loops_stay_rolled_on_a_cpu_unless_the_user_says_otherwise(monkeypatch, given, expected):
    monkeypatch.setenv("XLA_FLAGS", "")  # so that the change is undone
    if given is None:
        monkeypatch.delenv("XLA_FLAGS")
    else:
        monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        keep_cpu_loops_rolled()
    assert os.environ["XLA_FLAGS"] == expected


def cache_of(setting, home):
    """(exit status, output) of a process that prepares to compile."""
    script = "import jax; from concertormer_jax.runtime import devices, errors\nwith errors.reported():\n"
    script += " devices.prepare_to_compile(); print(jax.config.jax_compilation_cache_dir)"
    environment = os.environ | {"HOME": str(home), "JAX_COMPILATION_CACHE_DIR": setting}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    return ended.returncode, (ended.stdout or ended.stderr).strip()


def test_the_cache_of_programs_is_where_the_user_says(tmp_path):
    assert cache_of("~/programs", tmp_path) == (0, str(tmp_path / "programs"))
    status, said = cache_of("s3://bucket/programs", tmp_path)
    assert status == 2
    assert said.startswith("error: JAX_COMPILATION_CACHE_DIR=s3://bucket/programs: is no path that can be used here")
