"""Progressive phases: where they start, which samples they use, and which are refused."""

import pytest

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training.schedule import Phase, make_phases, require_divisible


def test_phases_follow_each_other_in_steps_and_in_samples():
    first, second, third = make_phases(steps=(10, 5, 2), crop_px=(64, 128, 192), batch=(8, 4, 1))
    assert first == Phase(1, start=0, end=10, crop_px=64, batch=8, position=0)
    assert second == Phase(2, start=10, end=15, crop_px=128, batch=4, position=80)
    assert third == Phase(3, start=15, end=17, crop_px=192, batch=1, position=100)


def test_no_sample_is_used_twice_or_left_out():
    used = []
    for phase in make_phases(steps=(3, 2), crop_px=(64, 128), batch=(4, 2)):
        for step in range(phase.start, phase.end):
            used += range(phase.position_at(step), phase.position_at(step) + phase.batch)
    assert used == list(range(3 * 4 + 2 * 2))


def test_work_is_proportional_to_the_pixels_of_a_step():
    small, large = make_phases(steps=(1, 1), crop_px=(64, 128), batch=(8, 2))
    assert small.work == large.work == 8 * 64 * 64


@pytest.mark.parametrize(
    ("steps", "crop_px", "batch"),
    [((), (), ()), ((1, 2), (64,), (8, 8)), ((1,), (64, 64), (8,)), ((1,), (64,), (8, 8))],
)
def test_sequences_of_different_lengths_are_refused(steps, crop_px, batch):
    with pytest.raises(UserError, match="one entry for each phase") as error:
        make_phases(steps, crop_px, batch)
    for numbers in (steps, crop_px, batch):
        assert str(numbers) in str(error.value)


@pytest.mark.parametrize(("steps", "crop_px", "batch"), [((0,), (64,), (8,)), ((1,), (0,), (8,)), ((1,), (64,), (0,))])
def test_numbers_that_are_not_positive_are_refused(steps, crop_px, batch):
    with pytest.raises(UserError, match="must be positive"):
        make_phases(steps, crop_px, batch)


def test_a_crop_that_is_no_multiple_of_8_pixels_is_refused():
    with pytest.raises(UserError, match=r"crop_px=\(64, 100\).*multiples of 8 pixels"):
        make_phases((1, 1), (64, 100), (8, 8))


def test_a_batch_must_divide_over_devices_and_accumulated_parts():
    phases = make_phases(steps=(1, 1), crop_px=(64, 128), batch=(16, 8))
    require_divisible(phases, devices=8, accumulation=1)
    require_divisible(phases, devices=2, accumulation=4)
    with pytest.raises(UserError, match=r"batch of 8 images of phase 2 .* 8 devices x 2 accumulated parts"):
        require_divisible(phases, devices=8, accumulation=2)
    with pytest.raises(UserError, match=r"batch of 16 images of phase 1 .* 3 devices x 1 accumulated"):
        require_divisible(phases, devices=3, accumulation=1)
