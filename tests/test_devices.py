"""What processes tell the compiler for TPUs."""

import os

import pytest

from concertormer_jax.devices import share_code_on_tpus

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
        share_code_on_tpus()
    assert os.environ["LIBTPU_INIT_ARGS"] == expected
