"""Restoring videos and animated GIFs, frame by frame."""

import collections
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos.video_file import (
    READ,
    WRITTEN,
    GifReader,
    VideoReader,
    require_pyav,
    write_gif,
    write_video,
)
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.runtime.files import written_atomically
from concertormer_jax.runtime.outputs import require_file_writable, require_separate
from concertormer_jax.runtime.paths import local_path

GIF = ".gif"


def is_video(source, destination) -> bool:
    """Whether `restore source destination` is about a video, or about a GIF that stays one, by their suffixes."""
    return _suffix(source) in READ or _suffix(destination) in WRITTEN or _suffix(destination) == GIF


def plan_video(source, destination) -> tuple[Path, Path]:
    """Return the video or GIF and its result, whose suffix decides the format.

    A video may also go into a folder that exists or ends in `/`; there it keeps its name, with .mp4 if its format is
    not written. Raises UserError for a video that is missing, a result that is none or cannot be written, and a missing
    PyAV.
    """
    into_folder = str(destination).endswith(os.sep)
    before, after = local_path(source, "IN"), local_path(destination, "OUT")
    if before.is_dir():
        raise UserError(f"{before}: is a folder, and {after} a video; name a folder for the restored pictures.")
    if not before.is_file():
        raise UserError(f"{before}: no such video; check the path.")
    if into_folder or after.is_dir():
        after /= before.name if _suffix(before) in WRITTEN else f"{before.stem}.mp4"
    if _suffix(after) not in (*WRITTEN, GIF):
        raise UserError(f"{after}: is no video by its name; let it end in one of {', '.join([*WRITTEN, GIF])}.")
    if _suffix(before) not in (*READ, GIF):
        raise UserError(f"{before}: is no video by its name, and only a video or a GIF becomes a {_suffix(after)}.")
    if {_suffix(before), _suffix(after)} != {GIF}:
        require_pyav()
    require_separate([after], [before])
    require_file_writable(after)
    return before, after


def restore_video(restorer: Restorer, before: Path, after: Path, *, log: Callable[[str], None] = tqdm.write) -> None:
    """Restore every frame of the video or GIF `before` as a picture; write `after`, which is either whole or absent.

    The times of the frames, the sound and how colours are stored stay as they are; frames are turned upright.
    log: called with lines to print. Raises UserError for what cannot be decoded, kept or written.
    """
    begun = time.perf_counter()

    def say(text):
        log(printable(text))

    with contextlib.nullcontext(GifReader(before)) if _suffix(before) == GIF else VideoReader(before) as video:
        size = f"{video.width}x{video.height}"
        say(f"note: {before}: its frames are restored one by one; nothing is carried from one to the next.")
        for note in video.notes:
            say(f"note: {before}: {note}")
        if _suffix(after) != GIF and (video.width % 2 or video.height % 2):
            say(f"note: {after}: is one pixel larger than {size}, as its sides must be even.")
        restorer.choose_canvas([(video.height, video.width)])
        title = printable(f"restoring {before.name}")
        with tqdm(total=video.count, unit="frame", desc=title, dynamic_ncols=True) as bar:
            frames = _Frames(restorer, video, bar)
            with written_atomically(after) as temporary:
                if _suffix(after) == GIF:
                    write_gif(temporary, iter(frames), video.loop)
                else:
                    write_video(temporary, frames, video, name=after)
    if video.damaged:
        say(f"note: {before}: {video.damaged} frames were damaged; what could be decoded of them was restored.")
    if frames.departed:
        say(f"note: {before}: in {frames.departed} frames the colours of tiles were off, which were left alone.")
    seconds = time.perf_counter() - begun
    say(f"{after}: {size}, {frames.count} frames, {restorer.device.device_kind}, {seconds:.1f} s")


class _Frames:
    """The restored frames of a video. count: how many there were; departed: in how many of them tiles were left."""

    def __init__(self, restorer, video, bar):
        self._restorer, self._video, self._bar = restorer, video, bar
        self.count = self.departed = 0

    def __iter__(self) -> Iterator:
        waiting = collections.deque()

        def pictures():
            for frame in self._video.frames():
                waiting.append(frame)
                yield np.divide(frame.rgb, np.float32(255), dtype=np.float32)

        for result in self._restorer.each(pictures()):
            self.count += 1
            self.departed += bool(result.kept)
            yield waiting.popleft()._replace(rgb=np.rint(255 * result.rgb).astype(np.uint8))
            self._bar.update()


def _suffix(path):
    return Path(path).suffix.lower()
