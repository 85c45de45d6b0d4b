"""What processes tell the compilers, and where they keep programs."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from concertormer_jax.runtime.devices import compile_interruptibly, deduplicate_tpu_code, keep_cpu_loops_rolled

FLAG = "--xla_tpu_enable_deduplicated_calls"


TPU, CPU = f"{FLAG}=true", "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling=1"


@pytest.mark.parametrize(
    ("set_option", "variable", "given", "expected"),
    [
        (deduplicate_tpu_code, "LIBTPU_INIT_ARGS", None, TPU),
        (deduplicate_tpu_code, "LIBTPU_INIT_ARGS", "--xla_other=1", f"{TPU} --xla_other=1"),
        (deduplicate_tpu_code, "LIBTPU_INIT_ARGS", f"{FLAG}=false", f"{FLAG}=false"),
        (keep_cpu_loops_rolled, "XLA_FLAGS", None, CPU),
        (keep_cpu_loops_rolled, "XLA_FLAGS", "--xla_other=1", f"--xla_other=1 {CPU}"),
        (keep_cpu_loops_rolled, "XLA_FLAGS", "--xla_backend_extra_options=a=1", "--xla_backend_extra_options=a=1"),
    ],
)
def test_the_compilers_get_an_option_unless_the_user_says_otherwise(monkeypatch, set_option, variable, given, expected):
    monkeypatch.setenv(variable, "")  # so that the change is undone
    if given is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, given)
    for _ in range(2):
        set_option()
    assert os.environ[variable] == expected


@pytest.mark.parametrize(("backend", "expected"), [("cpu", {"xla_disable_hlo_passes": "hlo-verifier"}), ("gpu", None)])
def test_on_a_cpu_xla_does_not_check_its_own_program(monkeypatch, backend, expected):
    class Lowered:
        def compile(self, options):
            return options

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert compile_interruptibly(Lowered()) == expected


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
