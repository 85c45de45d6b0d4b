"""An operation takes the form of the platform that is traced for, and of this one if none is named."""

import jax
import jax.numpy as jnp
import pytest

from concertormer_jax.ops.dispatch import on_platform, traced_for


@jax.jit
def chosen(x):
    return on_platform(x, cpu=lambda x: x + 1, tpu=lambda x: x + 2, default=lambda x: x + 3)


@pytest.mark.parametrize(("platform", "added"), [("cpu", 1), ("tpu", 2), ("gpu", 3), (None, 1)])
def test_the_form_follows_the_platform(platform, added):
    """Also for a function that was compiled for another one before."""
    assert chosen(jnp.zeros(())) == 1
    with traced_for(platform):
        assert chosen(jnp.zeros(())) == added


def test_only_the_form_that_is_used_is_traced():
    def other(x):
        raise AssertionError("traced")

    assert on_platform(jnp.zeros(()), cpu=lambda x: x, tpu=other, default=other) == 0
