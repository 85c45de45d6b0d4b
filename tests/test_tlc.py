"""The test-time local converter: where windows lie and how they are averaged. (In a network: see test_golden.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from concertormer_jax.ops.dispatch import IMPLEMENTATIONS
from concertormer_jax.ops.layers import on_windows, window_starts


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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_overlapping_windows_are_averaged(implementation):
    row = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0])

    def mean(x):
        return jnp.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)

    # Windows of 3 pixels of a row of 5 start at 0 and 2; their means are 7/3 and 28/3.
    for image in (row.reshape(1, 1, 5, 1), row.reshape(1, 5, 1, 1)):
        means = jax.jit(lambda image: on_windows(mean, (image,), 3, implementation=implementation))(image)
        np.testing.assert_allclose(means.ravel(), [7 / 3, 7 / 3, (7 + 28) / 6, 28 / 3, 28 / 3], rtol=1e-6)
