"""Files of moving pictures: upright frames read from a GIF or a video, and frames written as a GIF, H.264 or VP9.

PyAV, which is optional, is imported when the first video is opened.
"""

import contextlib
import errno
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from concertormer_jax.data.images import displayed_size
from concertormer_jax.runtime.errors import UserError

_DELAY_MS = 100  # of a frame that gives none, as browsers show it
_UNITS = 100  # a GIF counts time in hundredths of a second
# By suffix: the encoder and its options, for a loss that the eye does not see.
_H264 = ("libx264", {"crf": "16"})
WRITTEN = {".mp4": _H264, ".m4v": _H264, ".mov": _H264, ".mkv": _H264, ".webm": ("libvpx-vp9", {"crf": "18", "b": "0"})}
READ = {*WRITTEN, ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts", ".3gp", ".wmv", ".flv", ".ogv"}
_FILES_ALONE = {"protocol_whitelist": "file"}  # a playlist under a video's name reaches no server
_USUAL_RATE = Fraction(25)

# FFmpeg's numbers for how colours are stored.
_FULL_RANGE = 2  # luma from 0 to 255 in place of 16 to 235
_MATRICES = {1: "ITU709", 2: "ITU601", 4: "FCC", 5: "ITU601", 6: "ITU601", 7: "SMPTE240M"}  # 2: not said
_HIGH_DYNAMIC_RANGE = {16: "PQ", 18: "HLG"}
_COLOUR_TAGS = ("color_range", "colorspace", "color_primaries", "color_trc")
_OF_THE_CONTAINER = ("major_brand", "minor_version", "compatible_brands", "encoder")


class Frame(NamedTuple):
    """An upright picture of a moving one, shown from `start` for `duration` seconds.

    rgb: uint8 [H, W, 3]; alpha: uint8 [H, W], None where all of it is opaque.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    start: Fraction
    duration: Fraction


class GifReader:
    """The frames of a GIF. Raises UserError for a file that is none."""

    notes, damaged = (), 0
    rate, time_base = Fraction(_UNITS), Fraction(1, _UNITS)

    def __init__(self, path):
        self._path = path
        self.height, self.width, self.count = displayed_size(path)
        with Image.open(path) as image:
            self.loop = image.info.get("loop")

    def frames(self) -> Iterator[Frame]:
        """Yield the frames. Raises UserError where the file is damaged."""
        milliseconds = 0
        try:
            with Image.open(self._path) as image:
                for picture in ImageSequence.Iterator(image):
                    delay = int(picture.info.get("duration") or _DELAY_MS)
                    pixels = np.asarray(picture.convert("RGBA"))
                    alpha = None if pixels[:, :, 3].all() else pixels[:, :, 3]
                    yield Frame(pixels[:, :, :3], alpha, Fraction(milliseconds, 1000), Fraction(delay, 1000))
                    milliseconds += delay
        except (OSError, EOFError, SyntaxError) as error:
            raise UserError(f"{self._path}: is damaged ({error}).") from error


def write_gif(path, frames: Iterator[Frame], loop: int | None) -> None:
    """Write `frames`, at least one, to `path`, to be shown `loop` times again, 0 for ever, None for once.

    Each frame has a palette of its own, of at most 256 colours.
    """
    first = next(frames)
    pictures = map(_picture, frames)
    options = {"disposal": 2}  # a transparent pixel shows no earlier frame
    if loop is not None:
        options["loop"] = loop
    _picture(first).save(path, format="GIF", save_all=True, append_images=pictures, **options)


def _picture(frame):
    end = round(_UNITS * (frame.start + frame.duration))
    pixels = frame.rgb if frame.alpha is None else np.dstack([frame.rgb, frame.alpha])
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.info["duration"] = (end - round(_UNITS * frame.start)) * 1000 // _UNITS  # Pillow counts in milliseconds
    return picture


def require_pyav():
    """Return the module `av`. Raises UserError where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise UserError("videos need PyAV, which is not installed: pip install 'av>=14.2' (the extra `video`).")
    import av

    return av


class VideoReader:
    """The frames of a video file, turned upright, and its sound.

    height, width: of the upright frames; count: of the frames, None if unknown; damaged: how many of those read so far
    could not be decoded, or in part; notes: sentences on what is not kept.
    on_sound: is called with every packet of sound between the frames. Raises UserError for what cannot be decoded.
    """

    loop = 0  # of a GIF made of it: for ever

    def __init__(self, path: Path):
        av = require_pyav()
        self.path = path
        self.damaged = 0
        self.on_sound: Callable = lambda packet: None
        with self._explained():
            with av.open(str(path), options=_FILES_ALONE) as container:
                stream = self._stream(container)
                first = next(self._decoded(container, stream), None)
            if first is None:
                raise UserError(f"{path}: holds no frame that can be decoded.")
            self._container = av.open(str(path), options=_FILES_ALONE)
        self.stream = self._stream(self._container)
        self.sound = self._container.streams.audio
        self.metadata = {k: v for k, v in self._container.metadata.items() if k not in _OF_THE_CONTAINER}
        self._turns = round(first.rotation / 90) % 4  # counterclockwise
        self._size = first.width, first.height
        self.width, self.height = self._size if self._turns % 2 == 0 else self._size[::-1]
        self.rate = self.stream.average_rate or _USUAL_RATE
        self.time_base = self.stream.time_base
        self.count = self.stream.frames or self._estimated_count()
        self.notes = self._notes()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._container.close()

    @property
    def pixel_aspect(self) -> Fraction | None:
        """Width by height of an upright pixel, None if the file does not say."""
        aspect = self.stream.sample_aspect_ratio
        return Fraction(1) / aspect if aspect and self._turns % 2 else aspect

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, each when the next is decoded, which says how long it is shown."""
        before = None
        for picture in self._pictures():
            start = picture.pts * picture.time_base if picture.pts is not None else self._end(before)
            if before is not None:
                yield before._replace(duration=max(start - before.start, Fraction(0)))
            before = Frame(self._upright(picture), None, start, 1 / self.rate)
        if before is not None:
            yield before

    def _end(self, frame):
        return Fraction(0) if frame is None else frame.start + frame.duration

    def _pictures(self):
        with self._explained():
            self.damaged = 0
            yield from self._decoded(self._container, self.stream, *self.sound)

    def _decoded(self, container, video, *sound):
        damage = require_pyav().error.InvalidDataError
        for packet in container.demux(video, *sound):
            if packet.stream.index != video.index:
                if packet.dts is not None:
                    self.on_sound(packet)
                continue
            try:
                pictures = packet.decode()
            except damage:  # the player of a video goes on, too
                self.damaged += 1
                continue
            self.damaged += sum(picture.is_corrupt for picture in pictures)
            yield from pictures

    def _upright(self, picture):
        if (picture.width, picture.height) != self._size:
            raise UserError(f"{self.path}: its frames change their size; cut it where they do.")
        return np.rot90(picture.to_ndarray(format="rgb24"), self._turns)

    def _stream(self, container):
        stream = container.streams.best("video")
        if stream is None:
            raise UserError(f"{self.path}: holds no video.")
        if stream.codec_context is None:
            raise UserError(f"{self.path}: its codec is unknown to PyAV; convert it to H.264 first.")
        if kind := _HIGH_DYNAMIC_RANGE.get(stream.codec_context.color_trc):
            raise UserError(f"{self.path}: has a high dynamic range ({kind}); convert it to a standard one first.")
        return stream

    def _estimated_count(self):
        microseconds = self._container.duration
        return round(microseconds * self.rate / 10**6) if microseconds else None

    def _notes(self):
        notes = []
        if (bits := self.stream.codec_context.format.components[0].bits) > 8:
            notes.append(f"has {bits} bits per channel; the result has 8.")
        kept = {self.stream.index, *(stream.index for stream in self.sound)}
        if kinds := sorted({stream.type for stream in self._container.streams if stream.index not in kept}):
            notes.append(f"its other tracks are left out ({', '.join(kinds)}).")
        return tuple(notes)

    @contextlib.contextmanager
    def _explained(self):
        av = require_pyav()
        try:
            yield
        except av.error.FFmpegError as error:
            reason = f"cannot be read as a video ({error.strerror}); check that it is whole"
            raise UserError(f"{self.path}: {reason}.") from error


def write_video(path, frames: Iterable[Frame], source, *, name: Path) -> None:
    """Write `frames` to `path`, in the format of its suffix, with the sound of `source`.

    source: what the frames come from: a `VideoReader`, whose rate, colours and sound are taken over, or a `GifReader`.
    An odd height or width gets one more row or column, as the encoders need even ones; transparency becomes white.
    name: of the file in messages. Raises UserError where the format cannot hold the sound, and OSError where the file
    cannot be written.
    """
    av = require_pyav()
    codec, options = WRITTEN[path.suffix.lower()]
    if isinstance(source, GifReader):
        # MP4 keeps the duration of the last packet alone: without B-frames the last frame, which a GIF may show long.
        options = options | {"bf": "0"}
    with _explained_writing(av, name), av.open(str(path), "w") as container:
        video = source if isinstance(source, VideoReader) else None
        stream = container.add_stream(codec, rate=source.rate, options=options)
        stream.height, stream.width = _even(source.height), _even(source.width)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = source.time_base
        conversion = _colours(av, stream.codec_context, video)
        if video:
            container.metadata.update(video.metadata)
            if video.pixel_aspect:
                stream.codec_context.sample_aspect_ratio = video.pixel_aspect
            video.on_sound = _sound_into(container, video, name)
        durations: dict[Fraction, Fraction] = {}  # by the start, both in seconds

        def write(packets):
            for packet in packets:
                if duration := durations.pop(packet.pts * packet.time_base, None):
                    packet.duration = round(duration / packet.time_base)
                container.mux(packet)

        for frame in frames:
            picture = av.VideoFrame.from_ndarray(_padded(frame), format="rgb24").reformat(**conversion)
            picture.pts, picture.time_base = round(frame.start / source.time_base), source.time_base
            durations[picture.pts * source.time_base] = frame.duration
            write(stream.encode(picture))
        write(stream.encode(None))


def _colours(av, context, video) -> dict:
    """Give an encoder the colour tags of `video`, None for a GIF, and return how to turn RGB into such colours."""
    tags = {tag: getattr(video.stream.codec_context, tag) for tag in _COLOUR_TAGS} if video else {}
    matrix = _MATRICES.get(tags.get("colorspace"))
    if matrix is None:  # RGB itself, or one that swscale does not write
        matrix, tags["colorspace"] = "ITU709", 1
    full = tags.get("color_range") == _FULL_RANGE
    for tag, value in tags.items():
        setattr(context, tag, value)
    kinds = av.video.reformatter
    return {
        "format": "yuv420p",
        "dst_colorspace": kinds.Colorspace[matrix],
        "dst_color_range": kinds.ColorRange.JPEG if full else kinds.ColorRange.MPEG,
    }


def _sound_into(container, video, name):
    """A function that writes packets of the sound of `video` as they are."""
    for stream in video.sound:
        if stream.codec_context is None or stream.codec_context.name not in container.supported_codecs:
            codec = "an unknown codec" if stream.codec_context is None else stream.codec_context.name
            raise UserError(f"{name}: cannot hold the sound of {video.path} ({codec}); name a .mkv.")
    copies = {stream.index: container.add_stream_from_template(stream) for stream in video.sound}

    def write(packet):
        packet.stream = copies[packet.stream.index]
        container.mux(packet)

    return write


def _even(length):
    return length + length % 2


def _padded(frame):
    """The colours of a frame on white, with even sides: uint8 [H, W, 3]."""
    rgb = frame.rgb
    if frame.alpha is not None:
        opaque = frame.alpha[:, :, None] / np.float32(255)
        rgb = np.rint(255 + opaque * (rgb - np.float32(255))).astype(np.uint8)
    height, width = rgb.shape[:2]
    return np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


@contextlib.contextmanager
def _explained_writing(av, name):
    """Turn FFmpeg's errors into the operating system's, where they are its, or else into a UserError."""
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno in errno.errorcode:
            raise OSError(error.errno, os.strerror(error.errno)) from error
        raise UserError(f"{name}: cannot be written ({error.strerror}); name a .mkv or .mp4.") from error
