"""What a training run tells: console lines, metrics.jsonl, TensorBoard and other trackers, and sample pictures."""

import errno
import json
import os
import time
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter
from tqdm import tqdm

from concertormer_jax.data.images import to_uint8
from concertormer_jax.photos.sheets import comparison_sheet
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.files import with_remedy, write_text
from concertormer_jax.runtime.paths import is_remote, user_path
from concertormer_jax.training.schedule import Phase
from concertormer_jax.training.trackers import Trackers

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
_FIRST_PICTURES = 8  # of the first batch, that are shown


def duration(seconds: float) -> str:
    """As h:mm:ss, or d-hh:mm:ss from one day on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}" if days else f"{hours}:{minutes:02d}:{seconds:02d}"


def _board(folder, purge_step):
    try:
        return SummaryWriter(folder, purge_step=purge_step)
    except ImportError as error:  # tensorboardX imports the client of a bucket when it first writes there
        raise UserError(f"{folder}: cannot be written ({error}); pip install google-cloud-storage") from error


class Writer:
    """Writes for one run into `workdir`; on all hosts but the first it writes nothing.

    What an earlier run wrote for steps after `step`, from which this one goes on, is dropped. trackers: gets the same
    numbers and pictures as TensorBoard.
    """

    def __init__(self, workdir, *, step: int, total_steps: int, enabled: bool, trackers: Trackers | None = None):
        self._workdir = user_path(workdir)
        self._enabled = enabled
        self._trackers = trackers or Trackers("")
        self._bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=None if enabled else True
        )
        if enabled:
            self._metrics = self._workdir / METRICS_FILE
            self._drop_after(step)
            self._board = _board(str(self._workdir / "tensorboard"), step + 1)

    def _drop_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl after `step`, and what is no line of it; if there is none, leave the file."""
        if not self._metrics.exists():
            return
        content = self._metrics.read_bytes()
        lines = content.splitlines()
        steps = [_step_of(line) for line in lines]
        if damaged := steps[:-1].count(None):  # the last one is torn when the process is killed while it writes
            self.note(f"{self._metrics}: {damaged} damaged lines were dropped")
        kept = b"".join(line + b"\n" for line, its in zip(lines, steps, strict=True) if its is not None and its <= step)
        if kept != content:
            write_text(self._metrics, kept.decode())

    def note(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self._enabled:
            tqdm.write("\n".join(map(printable, text.split("\n"))))

    def progress(self, step: int) -> None:
        """Move the progress bar to `step`."""
        self._bar.update(step - self._bar.n)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Append numbers to metrics.jsonl, TensorBoard and the trackers."""
        if not self._enabled:
            return
        line = json.dumps({"step": step, **values})
        # A bucket cannot append; the file is small enough to be written anew.
        if is_remote(self._metrics):
            before = self._metrics.read_text() if self._metrics.exists() else ""
            self._metrics.write_text(before + line + "\n")
        else:
            append_line(self._metrics, line)
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._trackers.scalars(step, values)

    def first_batch(self, step: int, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Show the batch that the run begins with after `step` as a picture: inputs above their targets.

        inputs, targets: [B, H, W, 3] on the scale from 0 to 255, of which the first few are shown.
        """
        if self._enabled:
            picture = np.concatenate([np.hstack(list(to_uint8(row[:_FIRST_PICTURES]))) for row in (inputs, targets)])
            self._picture(step, "first_batch", picture, "first_batch.png")

    def summary(self, values: dict) -> None:
        """Write summary.json, in place of that of an earlier run."""
        if self._enabled:
            write_text(self._workdir / SUMMARY_FILE, json.dumps(values, indent=2) + "\n")

    def training(
        self,
        step: int,
        total_steps: int,
        phase: Phase,
        values: dict[str, float],
        shares: dict[str, float],
        eta_s: float,
    ) -> None:
        """One console line, and as scalars: the numbers of the last interval, and the shares of the time so far."""
        self.note(
            f"step {step}/{total_steps}  phase {phase.number} ({phase.crop_px} px x {phase.batch})"
            f"  loss {values['loss']:.4f}  psnr {values['psnr']:.2f} dB  |g| {values['gradient_norm']:.3g}"
            f"  lr {values['learning_rate']:.2e}  {values['images_per_s']:.2f} images/s"
            f"  data wait {100 * values['data_wait_share']:.0f}%"
            + (f"  MFU {100 * values['mfu']:.1f}%" if "mfu" in values else "")
            + f"  ETA {duration(eta_s)}  time: {_percentages(shares)}"
        )
        scalars = {f"train/{name}": value for name, value in values.items()} | {"train/stage": phase.number}
        self.scalars(step, scalars | {f"goodput/{part}": share for part, share in shares.items()})

    def validation(self, step: int, psnr: float, input_psnr: float, pictures: Sequence[tuple]) -> None:
        """The validation PSNR, and strips of (input, output, target, error) as a picture."""
        self.note(f"step {step}  validation {psnr:.3f} dB, {psnr - input_psnr:+.3f} dB against the inputs")
        self.scalars(step, {"validation/psnr": psnr, "validation/gain": psnr - input_psnr})
        if not self._enabled or not pictures:
            return
        sheet = comparison_sheet((f"step {step}", *images) for images in pictures)
        self._picture(step, "validation", np.asarray(sheet), f"{step:07d}.png")

    def _picture(self, step: int, name: str, picture: np.ndarray, file: str) -> None:
        """Write a picture, uint8 [H, W, 3], to samples/`file`, TensorBoard and the trackers."""
        folder = self._workdir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("wb") as stream:
            Image.fromarray(picture).save(stream, "PNG")
        self._board.add_image(name, picture, step, dataformats="HWC")
        self._trackers.picture(step, name, picture)

    def close(self) -> None:
        """Flush everything."""
        self._bar.close()
        if self._enabled:
            self._board.close()
        self._trackers.close()


def _percentages(shares: dict[str, float]) -> str:
    """Those parts that are at least half a percent, the largest first."""
    parts = sorted(shares.items(), key=lambda part: -part[1])
    return ", ".join(f"{name.replace('_', ' ')} {100 * share:.0f}%" for name, share in parts if share >= 0.005)


def append_line(path, line: str) -> None:
    """Append `line` to a local file, whole or not at all. Raises OSError when the disk is full."""
    content = f"{line}\n".encode()
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        if file.write(content) < len(content):
            file.truncate(size)
            raise with_remedy(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path)


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl, None if it is not one."""
    try:
        step = json.loads(line.decode())["step"]
    except (ValueError, TypeError, KeyError):
        return None
    return step if type(step) is int else None


class Interval:
    """Sums over the steps since the last console line."""

    def __init__(self):
        self.start = time.perf_counter()
        self.data_wait_s = 0.0
        self.images = 0
        self.work = 0
        self.metrics = []

    def add(self, metrics: dict[str, float], phase: Phase) -> None:
        """Count a finished step."""
        self.metrics.append(metrics)
        self.images += phase.batch
        self.work += phase.work

    def summary(self) -> dict[str, float]:
        """Means of the metrics (the learning rate: the last), images per second, share of time waiting for data."""
        elapsed = time.perf_counter() - self.start
        values = {name: float(np.mean([m[name] for m in self.metrics])) for name in self.metrics[0]}
        values["learning_rate"] = self.metrics[-1]["learning_rate"]
        return values | {"images_per_s": self.images / elapsed, "data_wait_share": self.data_wait_s / elapsed}

    def seconds_for(self, work: int) -> float:
        """How long `work` pixels would take at the speed of this interval."""
        return (time.perf_counter() - self.start) * work / self.work
