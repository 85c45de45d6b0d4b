"""Videos and GIFs frame by frame: sound, times and turns are kept, and what cannot be done is one sentence."""

import importlib.util
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.commands import restore as command
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.photos.video import plan_video, restore_video
from concertormer_jax.photos.video_file import WRITTEN
from concertormer_jax.runtime.errors import UserError

HEIGHT, WIDTH = 48, 64
LEVELS = (50, 120, 200)  # of the three frames
RATE = Fraction(30000, 1001)


def pictures(height=HEIGHT, width=WIDTH):
    """Three uint8 pictures of one brightness each, whose left quarter is red, green, and blue."""
    for number, level in enumerate(LEVELS):
        picture = np.full((height, width, 3), level, np.uint8)
        picture[:, : width // 4] = np.eye(3, dtype=np.uint8)[number] * 200
        yield picture


def write_clip(
    path, *, size=(HEIGHT, WIDTH), turned=0, sound="aac", codec="libx264", pix_fmt="yuv420p", noise=None, **tags
):
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=RATE)
        video.height, video.width, video.pix_fmt = *size, pix_fmt
        for tag, value in tags.items():
            setattr(video.codec_context, tag, value)
        audio = container.add_stream(sound, rate=48000) if sound else None
        for number, picture in enumerate(pictures(*size)):
            if noise:
                picture = noise.integers(0, 256, picture.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / RATE
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound:
            kind = audio.codec_context.format.name
            tone = np.sin(np.arange(4800) / 10).astype(np.float32)[None] * np.ones((2, 1), np.float32)
            samples = tone if kind == "fltp" else (tone.T.reshape(1, -1) * 30000).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    if turned:
        turn(path, turned)
    return path


def turn(path, degrees):
    """Have the first track of an MP4 shown turned counterclockwise, as a telephone does that is held so."""
    cosine, sine = (round(2**16 * f(np.deg2rad(degrees))) for f in (np.cos, np.sin))
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", cosine, -sine, 0, sine, cosine, 0, 0, 0, 2**30)
    path.write_bytes(content)


def read(path):
    """The frames as shown (float [H, W, 3]), their times in seconds, and the bytes of the sound's packets."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    with av.open(str(path)) as container:
        sound = [bytes(p) for p in container.demux(audio=0) if p.size] if container.streams.audio else []
    shown = [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).astype(float) for frame in frames]
    return shown, [float(frame.time) for frame in frames], sound


def restored(source, destination, factor=1.0, lines=None):
    restorer = Restorer(fake_model(factor), tlc="off", log=lambda line: None)
    restore_video(restorer, *plan_video(source, destination), log=[].append if lines is None else lines.append)
    return destination


def assert_alike(some, others, factor=1.0, tolerance=4):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - factor * other).mean() < tolerance


@pytest.mark.parametrize("name", ["out.mp4", "out.mov", "out.mkv"])
def test_every_frame_is_restored_and_times_and_sound_are_kept(tmp_path, name):
    clip, lines = write_clip(tmp_path / "clip.mp4"), []
    shown, times, sound = read(clip)
    assert len(shown) == 3 and len(sound) > 3
    result = read(restored(clip, tmp_path / name, 0.9, lines))
    assert_alike(result[0], shown, 0.9)
    np.testing.assert_allclose(np.diff(result[1]), np.diff(times), atol=1e-3)
    assert result[2] == sound, "copied"
    with av.open(str(tmp_path / name)) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(float(RATE), rel=1e-2)
    assert any("frames are restored one by one" in line for line in lines)
    assert "64x48, 3 frames, cpu" in lines[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["clip.mp4", name])


@pytest.mark.parametrize("turned", [90, -90, 180])
def test_a_turned_video_is_shown_as_before(tmp_path, turned):
    clip = write_clip(tmp_path / "clip.mp4", turned=turned)
    shown, *_ = read(clip)
    assert shown[0].shape == ((HEIGHT, WIDTH, 3) if turned == 180 else (WIDTH, HEIGHT, 3))
    assert_alike(read(restored(clip, tmp_path / "out.mp4"))[0], shown)


@pytest.mark.parametrize(
    "tags", [{"colorspace": 1}, {"colorspace": 6}, {"colorspace": 1, "color_range": 2}, {"color_primaries": 5}]
)
def test_colours_are_stored_as_before(tmp_path, tags):
    """The same samples under the same tags."""
    results = []
    for path in (clip := write_clip(tmp_path / "clip.mp4", **tags), restored(clip, tmp_path / "out.mp4")):
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            kept = [getattr(context, tag) for tag in ("colorspace", "color_range", "color_primaries", "color_trc")]
            frame = next(container.decode(video=0))
            results.append((kept, [np.frombuffer(plane, np.uint8).mean() for plane in frame.planes]))
    assert results[0][0] == results[1][0]
    np.testing.assert_allclose(results[0][1], results[1][1], atol=2)


def test_odd_sides_get_one_more_pixel(tmp_path):
    clip, lines = write_clip(tmp_path / "clip.mkv", size=(33, 47), codec="ffv1", pix_fmt="bgr0"), []
    shown, *_ = read(restored(clip, tmp_path / "out.mp4", lines=lines))
    assert shown[0].shape == (34, 48, 3)
    assert_alike([frame[:33, :47] for frame in shown], list(pictures(33, 47)))
    assert any("one pixel larger than 47x33" in line for line in lines)


def test_ten_bits_are_said_to_become_eight(tmp_path):
    clip, lines = write_clip(tmp_path / "clip.mkv", codec="ffv1", pix_fmt="yuv420p10le"), []
    assert_alike(read(restored(clip, tmp_path / "out.mp4", lines=lines))[0], list(pictures()))
    assert any("has 10 bits per channel" in line for line in lines)


def test_tracks_that_are_left_out_are_said(tmp_path):
    lines, path = [], tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=RATE) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for stream in streams:
            for picture in pictures():
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    restored(path, tmp_path / "out.mp4", lines=lines)
    assert any("clip.mkv: its other tracks are left out (video)." in line for line in lines)


def write_gif(path, delays=(100, 250, 30), **options):
    first, *others = map(Image.fromarray, pictures())
    first.save(path, save_all=True, append_images=others, duration=list(delays), **options)
    return path


def read_gif(path):
    with Image.open(path) as image:
        frames = []
        for number in range(image.n_frames):
            image.seek(number)
            frames.append((np.asarray(image.convert("RGB"), float), image.info["duration"]))
        return *zip(*frames, strict=True), image.info.get("loop")


@pytest.mark.parametrize("loop", [0, 3, None])
def test_an_animated_gif_stays_one(tmp_path, loop, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # PyAV is not needed
    source = write_gif(tmp_path / "in.gif", **({} if loop is None else {"loop": loop}))
    frames, delays, loops = read_gif(restored(source, tmp_path / "out.gif", 0.9))
    assert_alike(frames, list(pictures()), 0.9)
    assert delays == (100, 250, 30)
    assert loops == loop


def test_transparency_of_a_gif_is_kept(tmp_path):
    cut_out = [np.dstack([p, np.where(np.arange(WIDTH) < 20 * (n + 1), 255, 0) * np.ones((HEIGHT, 1))])
               for n, p in enumerate(pictures())]  # fmt: skip
    first, *others = (Image.fromarray(picture.astype(np.uint8)) for picture in cut_out)
    first.save(tmp_path / "in.gif", save_all=True, append_images=others, duration=100, disposal=2)
    with Image.open(restored(tmp_path / "in.gif", tmp_path / "out.gif")) as image:
        for number in range(3):
            image.seek(number)
            alpha = np.asarray(image.convert("RGBA"))[:, :, 3]
            np.testing.assert_array_equal(alpha[0], cut_out[number][0, :, 3])
    shown, *_ = read(restored(tmp_path / "in.gif", tmp_path / "out.mp4"))
    assert shown[0][:, 24:].mean() > 250, "white in a video"


def test_later_frames_of_a_gif_stay_transparent_behind_an_opaque_first_one(tmp_path):
    def encoded(pixels):  # of 2x2, in LZW without compression, which removes it after it was shown
        codes = [code for pixel in pixels for code in (4, pixel)] + [5]
        packed = sum(code << 3 * place for place, code in enumerate(codes)).to_bytes(4, "little")
        control = struct.pack("<BHB", 2 << 2 | 1, 10, 0)  # colour 0 is transparent
        place = struct.pack("<HHHHB", 0, 0, 2, 2, 0)
        return b"\x21\xf9\x04" + control + b"\0\x2c" + place + b"\x02\x04" + packed + b"\0"

    shown = [(1, 1, 1, 1), (2, 0, 0, 0), (0, 0, 0, 3)]
    colours = bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x91, 0, 0) + colours
    (tmp_path / "in.gif").write_bytes(head + b"".join(map(encoded, shown)) + b";")
    with Image.open(restored(tmp_path / "in.gif", tmp_path / "out.gif")) as image:
        for number in range(3):
            image.seek(number)
            assert image.disposal_method == 2, "browsers show no earlier frame through the holes of the next"


@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_video_shows_the_last_frame_of_a_gif_as_long(tmp_path, suffix):
    source = write_gif(tmp_path / "in.gif", delays=[100, 250, 2000])
    with av.open(str(restored(source, tmp_path / f"out{suffix}"))) as container:
        assert container.duration == pytest.approx(2.35e6, abs=2000)


def test_a_gif_becomes_a_video_and_a_video_a_gif(tmp_path):
    shown, times, _ = read(restored(write_gif(tmp_path / "in.gif"), tmp_path / "out.mp4"))
    assert_alike(shown, list(pictures()), tolerance=6)
    np.testing.assert_allclose(times, [0, 0.1, 0.35], atol=1e-3)
    frames, delays, loops = read_gif(restored(write_clip(tmp_path / "clip.mp4"), tmp_path / "out.gif"))
    assert_alike(frames, list(pictures()), tolerance=6)
    assert (sum(delays), loops) == (100, 0)


def test_what_cannot_be_restored_is_one_sentence_and_leaves_nothing(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "unknown.mp4").write_bytes(clip.replace(b"avc1", b"zzzz"))
    (tmp_path / "cut.mp4").write_bytes(clip[: len(clip) // 3])
    (tmp_path / "text.mp4").write_bytes(b"no video")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    write_clip(tmp_path / "hdr.mkv", codec="ffv1", pix_fmt="yuv420p10le", color_trc=16)
    write_clip(tmp_path / "pcm.mkv", sound="pcm_s16le")
    before = sorted(tmp_path.iterdir())
    for name, result, reason in [
        ("unknown.mp4", "out.mp4", "its codec is unknown to PyAV; convert it"),
        ("cut.mp4", "out.mp4", "cut.mp4: (holds no video|cannot be read as a video)"),
        ("text.mp4", "out.mp4", "text.mp4: cannot be read as a video"),
        ("list.mp4", "out.mp4", "list.mp4: cannot be read as a video"),
        ("hdr.mkv", "out.mp4", r"high dynamic range \(PQ\)"),
        ("pcm.mkv", "out.webm", r"cannot hold the sound of .*pcm.mkv \(pcm_s16le\); name a .mkv"),
        ("missing.mp4", "out.mp4", "missing.mp4: no such video"),
        (".", "out.mp4", "is a folder, and"),
        ("clip.mp4", "out.avi", "out.avi: is no video by its name; let it end in one of .mp4"),
        ("clip.mp4", "clip.mp4", "would overwrite the original"),
        ("photo.png", "out.mp4", "photo.png: no such video"),
    ]:
        with pytest.raises(UserError, match=reason) as refused:
            restored(tmp_path / name, tmp_path / result)
        assert "\n" not in str(refused.value)
        assert sorted(tmp_path.iterdir()) == before, name


def damaged(path, number, share):
    """Zero what follows the first `share` of the packet `number` of a video."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
    content, start, end = bytearray(path.read_bytes()), packet.pos + int(share * packet.size), packet.pos + packet.size
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "number", "share", "frames"),
    [
        ("clip.mkv", {}, 0, 0.5, 3),  # decoded in part
        ("clip.mov", {"codec": "png", "pix_fmt": "rgb24"}, 1, 0, 2),  # not at all
    ],
)
def test_damaged_frames_are_counted(tmp_path, name, kind, number, share, frames):
    clip, lines = write_clip(tmp_path / name, noise=np.random.default_rng(0), **kind), []
    result = restored(damaged(clip, number, share), tmp_path / "out.mp4", lines=lines)
    assert len(read(result)[0]) == frames
    assert [line for line in lines if "1 frames were damaged" in line]


def test_a_video_without_a_frame_is_refused(tmp_path):
    clip = damaged(write_clip(tmp_path / "clip.mkv", noise=np.random.default_rng(0)), 0, 0.05)
    with pytest.raises(UserError, match="holds no frame that can be decoded"):
        restored(clip, tmp_path / "out.mp4")


def test_without_pyav_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'av>=14\.2'"):
        plan_video(clip, tmp_path / "out.mp4")


def test_the_command_restores_a_video(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "prepare_to_compile", lambda: None)
    monkeypatch.setattr(command, "load_model", lambda *_: fake_model())
    clip = write_clip(tmp_path / "clip.mp4")
    (tmp_path / "out").mkdir()
    command.main([f"--ckpt={tmp_path}", "--tlc=off", str(clip), str(tmp_path / "out")])
    assert_alike(read(tmp_path / "out" / "clip.mp4")[0], list(pictures()))
    assert "clip.mp4: 64x48, 3 frames, cpu" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([f"--ckpt={tmp_path}", str(clip), str(tmp_path / "out.mp4"), "--compare"])
    assert "--compare and --recursive are for pictures" in capsys.readouterr().err
