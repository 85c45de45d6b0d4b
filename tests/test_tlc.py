"""The test-time local converter: where windows lie and how they are averaged. (In a network: see test_golden.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.dispatch import traced_for
from concertormer_jax.ops.tlc import on_windows, window_starts, windows_at_once, windows_in_turn


@pytest.mark.parametrize(
    ("size", "window", "starts"),
    [
        (64, 64, [0]),
        (40, 64, [0]),
        (96, 64, [0, 32]),
        (128, 64, [0, 64]),
        (130, 64, [0, 33, 66]),
        (250, 64, [0, 62, 124, 186]),
        (100, 30, [0, 24, 48, 70]),  # 3 * 24 + 30 is over the border: the last window is moved back
    ],
)
def test_window_starts(size, window, starts):
    assert window_starts(size, window) == starts


def test_windows_cover_every_size_up_to_the_border():
    for size in range(1, 60):
        for window in range(1, 20):
            covered = {at for start in window_starts(size, window) for at in range(start, start + min(size, window))}
            assert covered == set(range(size))


BOTH = pytest.mark.parametrize("on_windows", [windows_at_once, windows_in_turn])


@BOTH
def test_overlapping_windows_are_averaged(on_windows):
    row = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])
    # Windows of 3 pixels of a row of 5 start at 0 and 2; their means are 7/3 and 28/3.
    for image in (row.reshape(1, 1, 5, 1), row.reshape(1, 5, 1, 1)):
        means = on_windows(lambda x: jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape), (image,), 3)
        np.testing.assert_allclose(means.ravel(), [7 / 3, 7 / 3, (7 + 28) / 6, 28 / 3, 28 / 3], rtol=1e-6)


@BOTH
def test_windows_of_all_images_and_arrays_are_cut_alike(on_windows):
    features = jax.random.normal(jax.random.key(0), (2, 11, 14, 3))
    sizes = set()

    def product(x, y):
        sizes.add(x.shape)
        return x * y[..., :2]

    result = on_windows(product, (features[..., :2], features), 8)
    assert sizes == {(2 * 2 * 2 if on_windows is windows_at_once else 2, 8, 8, 2)}
    np.testing.assert_allclose(result, features[..., :2] ** 2, rtol=1e-6)


def test_an_accelerator_takes_all_windows_at_once_and_a_cpu_one_after_the_other():
    features = jnp.ones((1, 16, 32, 2))

    def loops(platform):
        with traced_for(platform):
            return "scan" in str(jax.jit(lambda x: on_windows(jnp.sin, (x,), 16)).trace(features).jaxpr)

    assert loops("cpu")
    assert not loops("tpu")
    assert not loops("gpu")
