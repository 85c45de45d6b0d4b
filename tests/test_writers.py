"""The written record of a run survives interruption without gaps or repeats."""

import json
import os
import resource
from unittest.mock import MagicMock

import pytest

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.training import writers
from concertormer_jax.training.schedule import make_phases
from concertormer_jax.training.writers import Interval, Writer, append_line, duration


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, first, last):
    writer = Writer(workdir, step=first - 1, total_steps=10, enabled=True)
    for step in range(first, last + 1):
        writer.scalars(step, {"value": step / 2})
    writer.close()


def test_lines_after_the_step_of_the_checkpoint_are_dropped(tmp_path):
    write(tmp_path, 1, 5)
    write(tmp_path, 4, 6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    write(tmp_path, 1, 2)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "val')
    write(tmp_path, 3, 3)
    assert lines(tmp_path) == [{"step": step, "value": step / 2} for step in (1, 2, 3)]


def test_a_last_line_without_its_end_of_line_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "value": 0.5}\n{"step": 2, "value": 1.0}')
    write(tmp_path, 3, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", [b"", b"null", b"[]", b"{}", b'{"step": "2"}', b"\xff\xfe{", b'{"step": 2, "v": 1'])
def test_damaged_lines_are_dropped_with_a_word(tmp_path, capsys, damage):
    write(tmp_path, 1, 3)
    first, _, third = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([first, damage, third, b""]))
    write(tmp_path, 4, 4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4]
    assert f"{tmp_path / 'metrics.jsonl'}: 1 damaged lines were dropped" in capsys.readouterr().out


def test_what_is_whole_is_appended_to_and_not_written_anew(tmp_path):
    write(tmp_path, 1, 2)
    before = (tmp_path / "metrics.jsonl").stat()
    write(tmp_path, 3, 3)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before.st_ino
    assert (tmp_path / "metrics.jsonl").stat().st_size > before.st_size


def test_a_line_for_which_there_is_no_space_is_left_out_whole(tmp_path):
    path, before = tmp_path / "metrics.jsonl", b'{"step": 1}\n'
    path.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="free some space there") as error:
            append_line(path, '{"step": 2}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(path)
    assert path.read_bytes() == before


def test_the_file_is_whole_while_lines_are_dropped(tmp_path, monkeypatch):
    """Whoever reads it, or kills the process, meets the old file or the new one."""
    write(tmp_path, 1, 3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(os, "replace", MagicMock(side_effect=OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        Writer(tmp_path, step=1, total_steps=10, enabled=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_only_the_first_host_writes(tmp_path):
    writer = Writer(tmp_path, step=0, total_steps=10, enabled=False)
    writer.scalars(1, {"value": 1.0})
    writer.validation(1, 20.0, 19.0, [])
    writer.close()
    assert not list(tmp_path.iterdir())


def test_interval_means_and_time_for_remaining_work():
    (phase,) = make_phases((10,), (16,), (4,))
    interval = Interval()
    interval.start -= 200.0
    for loss in (1.0, 3.0):
        interval.add({"loss": loss, "learning_rate": loss / 10}, phase)
    summary = interval.summary()
    assert summary["loss"] == 2.0
    assert summary["learning_rate"] == pytest.approx(0.3)
    assert summary["images_per_s"] == pytest.approx(0.04, rel=0.1)
    assert interval.seconds_for(10 * phase.work) == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (90061, "1-01:01:01")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_the_console_line_says_where_the_time_went(tmp_path, capsys):
    (phase,) = make_phases((10,), (16,), (4,))
    values = dict.fromkeys(("loss", "psnr", "gradient_norm", "learning_rate", "images_per_s", "data_wait_share"), 0.25)
    shares = {"training": 0.6, "starting": 0.004, "compiling": 0.15, "data_wait": 0.21}
    shares |= {"validating": 0.036, "saving": 0}
    writer = Writer(tmp_path, step=0, total_steps=10, enabled=True)
    writer.training(2, 10, phase, values | {"mfu": 0.375}, shares, 60.0)
    writer.close()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2/10")]
    assert line.endswith(
        "  data wait 25%  MFU 37.5%  ETA 0:01:00  time: training 60%, data wait 21%, compiling 15%, validating 4%"
    )
    (told,) = lines(tmp_path)
    assert told["train/mfu"] == 0.375 and told["goodput/saving"] == 0 and told["goodput/compiling"] == 0.15


def test_a_bucket_without_its_client_is_one_sentence(tmp_path, monkeypatch):
    def summary_writer(*_, **__):
        raise ImportError("`google-cloud-storage` must be installed")

    monkeypatch.setattr(writers, "SummaryWriter", summary_writer)
    with pytest.raises(UserError, match=r"tensorboard: cannot be written .* pip install google-cloud-storage"):
        Writer(tmp_path, step=0, total_steps=10, enabled=True)
