"""Tiny copies of every set, in the folder layouts that people have on disk.

`write_set(name, layout, folder)` writes one and returns the folder to give as --source; `pairs_of(name)` says what must
come out, the same for every layout. Pictures are windows of the bundled photographs.
"""

import dataclasses
import functools
import io
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

HEIGHT, WIDTH = 48, 64
BLOCK_PX = 32
PHOTOS = Path(__file__).parent.parent / "photos" / "train"


@dataclasses.dataclass(frozen=True)
class FixturePair:
    """A pair of one split as encoded files: `sequence` and `frame` as in the original set, `name` as prepared."""

    split: str
    sequence: str
    frame: str
    name: str
    input: bytes
    target: bytes
    gamma: bytes = b""
    input_suffix: str = ".png"

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Input and target, uint8 [H, W, 3]."""
        return decoded(self.input), decoded(self.target)


def decoded(data: bytes) -> np.ndarray:
    """The pixels of an encoded picture, uint8 [H, W, 3]."""
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    """Encode uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={".png": "PNG", ".jpg": "JPEG"}[suffix])
    return buffer.getvalue()


@functools.cache
def _photo(number: int) -> np.ndarray:
    paths = sorted(PHOTOS.glob("*.jpg"))
    with Image.open(paths[number % len(paths)]) as image:
        return np.array(image.convert("RGB").reduce(2))


def sharp_picture(scene: int, frame: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A window of photograph `scene`, uint8 [height, width, 3], that moves on from frame to frame."""
    photo = _photo(scene)
    top = (60 + 12 * frame) % (photo.shape[0] - height)
    left = (140 + 20 * frame) % (photo.shape[1] - width)
    return np.ascontiguousarray(photo[top : top + height, left : left + width])


def blurred(sharp: np.ndarray, reach: int = 2) -> np.ndarray:
    """Average the picture over a horizontal shift of up to `reach` pixels to both sides."""
    shifted = [np.roll(sharp, shift, axis=1).astype(np.float64) for shift in range(-reach, reach + 1)]
    return np.rint(np.mean(shifted, axis=0)).astype(np.uint8)


def rainy(sharp: np.ndarray, seed: int) -> np.ndarray:
    """Add bright slanted streaks."""
    rng = np.random.default_rng(seed)
    wet = sharp.astype(np.int64)
    for top, left in zip(rng.integers(0, HEIGHT - 8, 12), rng.integers(4, WIDTH - 4, 12), strict=True):
        for step in range(8):
            wet[top + step, left - step // 3] += 90
    return np.clip(wet, 0, 255).astype(np.uint8)


def noisy(sharp: np.ndarray, seed: int) -> np.ndarray:
    """Add Gaussian noise."""
    noise = np.random.default_rng(seed).normal(0, 20, sharp.shape)
    return np.clip(np.rint(sharp + noise), 0, 255).astype(np.uint8)


def _video(splits: dict[str, list[str]], frames: list[str], joined: str, suffix: str = ".png") -> list[FixturePair]:
    """Blurred sequences: `splits` gives the sequences of each; a name is sequence, `joined`, frame."""
    sequences = [(split, sequence) for split, names in splits.items() for sequence in names]
    return [
        FixturePair(
            split,
            sequence,
            frame,
            f"{sequence}{joined}{frame}",
            encoded(blurred(sharp), suffix),
            encoded(sharp),
            encoded(blurred(sharp, 3)),
            suffix,
        )
        for scene, (split, sequence) in enumerate(sequences)
        for position, frame in enumerate(frames)
        for sharp in [sharp_picture(scene, position)]
    ]


def _gopro():
    splits = {
        "train": ["GOPR0372_07_00", "GOPR0374_11_01", "GOPR0378_13_00"],
        "test": ["GOPR0384_11_00", "GOPR0385_11_01"],
    }
    return _video(splits, ["000047", "000048", "000049"], "-")


def _hide():
    return [
        dataclasses.replace(pair, name=f"{pair.frame}from{pair.sequence}")
        for pair in _video({"test": ["GOPR0950", "GOPR1087"]}, ["1", "2"], "from")
    ]


def _realblur():
    splits = {"train": ["scene001", "scene003", "scene004"], "test": ["scene002"]}
    return _video(splits, ["1", "2", "10"], "-")


def _rsblur():
    splits = {"train": ["0001", "0002", "0003"], "validation": ["0004"], "test": ["0005", "0006"]}
    return _video(splits, ["000022", "000023"], "-")


def _reds(suffix=".jpg"):
    train = _video({"train": ["000", "001", "002"]}, ["00000008", "00000009"], "-", suffix)
    test = []
    for scene, sequence in enumerate(("000", "001")):
        sharp = sharp_picture(scene + 20, 0)
        files = encoded(blurred(sharp), suffix), encoded(sharp)
        test.append(FixturePair("test", sequence, "00000009", f"{sequence}-00000009", *files, input_suffix=suffix))
    return train + test


RAIN_TEST_SETS = ("test100", "rain100h", "rain100l", "test2800", "test1200")


def _rain13k():
    pairs = []
    for scene, (split, count) in enumerate([("train", 6), *((name, 2) for name in RAIN_TEST_SETS)]):
        for number in range(1, count + 1):
            sharp = sharp_picture(scene * 5 + number, 0)
            pairs.append(
                FixturePair(split, "", str(number), str(number), encoded(rainy(sharp, number)), encoded(sharp))
            )
    return pairs


def _sidd():
    pairs = []
    instances = ("0001_001_S6_00100_00060_3200_L", "0002_001_S6_00100_00020_3200_N", "0006_001_S6_00100_00060_4400_N")
    for scene, instance in enumerate(instances):
        for frame in ("010", "011"):
            sharp = sharp_picture(3 * scene, int(frame) - 10)
            noise = noisy(sharp, int(frame) + scene)
            pairs.append(
                FixturePair("train", instance, frame, f"{instance[:4]}-{frame}", encoded(noise), encoded(sharp))
            )
    for image in range(2):
        for block in range(2):
            sharp = sharp_picture(10 + image, block, BLOCK_PX, BLOCK_PX)
            noise = noisy(sharp, 100 + 10 * image + block)
            name = f"{image:04d}-{block:02d}"
            pairs.append(FixturePair("test", f"{image:04d}", f"{block:02d}", name, encoded(noise), encoded(sharp)))
    return pairs


def _generic():
    return _video({"train": ["walk", "ride", "turn"]}, ["1", "2"], "-")


_SETS = {
    "gopro": _gopro,
    "hide": _hide,
    "realblur_j": _realblur,
    "realblur_r": _realblur,
    "rsblur": _rsblur,
    "rain13k": _rain13k,
    "reds": _reds,
    "reds_blur": functools.partial(_reds, ".png"),
    "sidd": _sidd,
    "pairs": _generic,
}


@functools.cache
def pairs_of(name: str) -> tuple[FixturePair, ...]:
    """All pairs of the set, sorted by split and prepared name."""
    return tuple(sorted(_SETS[name](), key=lambda pair: (pair.split, pair.name)))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _put_pair(folder: Path, pair: FixturePair, roles=("input", "target"), names=None) -> None:
    """Write to `folder`/<role>/<name>; names: of input and target, without extension."""
    names = names or (pair.name, pair.name)
    _put(folder / roles[0] / f"{names[0]}{pair.input_suffix}", pair.input)
    _put(folder / roles[1] / f"{names[1]}.png", pair.target)


def _repacked(folder_of, roles=("input", "target"), names_of=None):
    """A layout with one folder of each role; folder_of: pair -> folder below the source."""

    def write(pairs, folder):
        for pair in pairs:
            _put_pair(folder / folder_of(pair), pair, roles, names_of and names_of(pair))
        return folder

    return write


def _gopro_original(pairs, folder):
    for pair in pairs:
        sequence = folder / "GOPRO_Large" / pair.split / pair.sequence
        for role, data in (("blur", pair.input), ("blur_gamma", pair.gamma), ("sharp", pair.target)):
            _put(sequence / role / f"{pair.frame}.png", data)
    return folder


def _hide_original(pairs, folder):
    root = folder / "HIDE_dataset"
    for pair, part in zip(pairs, ("test-close-ups", "test-long-shot") * len(pairs), strict=False):
        _put(root / "test" / part / f"{pair.name}.png", pair.input)
        _put(root / "GT" / f"{pair.name}.png", pair.target)
    unused = sharp_picture(30, 0)
    _put(root / "train" / "9fromGOPR0800.png", encoded(blurred(unused)))
    _put(root / "GT" / "9fromGOPR0800.png", encoded(unused))
    return folder


def _realblur_original(letter, set_folder):
    def write(pairs, folder):
        lines = {"train": [], "test": []}
        for pair in pairs:
            target = f"{set_folder}/{pair.sequence}/gt/gt_{pair.frame}.png"
            degraded = f"{set_folder}/{pair.sequence}/blur/blur_{pair.frame}.png"
            _put(folder / target, pair.target)
            _put(folder / degraded, pair.input)
            lines[pair.split].append(f"{target} {degraded}\n")
        for split, content in lines.items():
            (folder / f"RealBlur_{letter}_{split}_list.txt").write_text("".join(content))
        return folder

    return write


def _rsblur_names(pair):
    return (f"{pair.sequence}_{pair.frame}",) * 2


def _realblur_names(pair):
    return f"{pair.sequence}_blur_{pair.frame}", f"{pair.sequence}_gt_{pair.frame}"


def _rsblur_original(pairs, folder):
    lines = {"train": [], "validation": [], "test": []}
    for pair in pairs:
        scene = f"RSBlur/{pair.sequence}/{pair.frame}"
        target, degraded = f"{scene}/gt/gt_sharp.png", f"{scene}/real_blur/real_blur.png"
        for path, data in ((target, pair.target), (degraded, pair.input), (f"{scene}/avg65_img/blur.png", pair.gamma)):
            _put(folder / path, data)
        lines[pair.split].append(f"{target} {degraded}\n")
    for split, content in lines.items():
        name = {"validation": "val"}.get(split, split)
        (folder / f"RSBlur_real_{name}.txt").write_text("".join(content))
    return folder


def _reds_original(blur, pairs, folder):
    for pair in pairs:
        part = {"train": "train", "test": "val"}[pair.split]
        # Frames of val that are not of val-300 hold the same pictures here.
        for frame in (pair.frame, "00000010") if part == "val" else (pair.frame,):
            _put(folder / part / f"{part}_{blur}" / pair.sequence / f"{frame}{pair.input_suffix}", pair.input)
            _put(folder / part / f"{part}_sharp" / pair.sequence / f"{frame}.png", pair.target)
    return folder


def _reds_flattened(pairs, folder):
    for pair in pairs:
        name = f"{pair.sequence}_{pair.frame}"
        if pair.split == "train":
            _put_pair(folder / "REDS" / "train", pair, ("train_blur_jpeg", "train_sharp"), (name, name))
        else:
            _put_pair(folder / "REDS" / "val", pair, ("blur_300", "sharp_300"), (name, name))
    return folder


def _rain_test_originals(pairs, folder):
    """Rain13K as re-packed for training; the test sets as their authors name the files."""
    for pair in pairs:
        if pair.split == "train":
            _put_pair(folder / "train" / "Rain13K", pair)
        elif pair.split == "rain100l":
            _put(folder / "Rain100L" / f"rain-{int(pair.frame):03d}.png", pair.input)
            _put(folder / "Rain100L" / f"norain-{int(pair.frame):03d}.png", pair.target)
        else:
            title = pair.split.capitalize().replace("100h", "100H")
            names = f"rain-{int(pair.frame):03d}", f"norain-{int(pair.frame):03d}"
            _put_pair(folder / title, pair, ("rain", "norain"), names)
    return folder


def _sidd_blocks(pairs, folder):
    blocks = [pair for pair in pairs if pair.split == "test"]
    for number, role in enumerate(("Noisy", "Gt")):
        array = np.stack([pair.pixels[number] for pair in blocks]).reshape(2, 2, BLOCK_PX, BLOCK_PX, 3)
        key = f"Validation{role}BlocksSrgb"
        scipy.io.savemat(folder / f"{key}.mat", {key: array}, do_compression=True)


def _sidd_original(below):
    def write(pairs, folder):
        for pair in pairs:
            if pair.split == "train":
                scene = folder / below / "Data" / pair.sequence
                for role, data in (("NOISY", pair.input), ("GT", pair.target)):
                    _put(scene / f"{pair.sequence[:4]}_{role}_SRGB_{pair.frame}.PNG", data)
        _sidd_blocks(pairs, folder)
        return folder

    return write


def _sidd_repacked(pairs, folder):
    for pair in pairs:
        if pair.split == "train":
            names = tuple(f"{pair.sequence[:4]}_{role}_SRGB_{pair.frame}" for role in ("NOISY", "GT"))
            _put_pair(folder / "SIDD" / "train", pair, names=names)
    _sidd_blocks(pairs, folder)
    return folder


def _rain_folder(pair):
    title = {"train": "train/Rain13K", "rain100h": "test/Rain100H", "rain100l": "test/Rain100L"}
    return title.get(pair.split, f"test/{pair.split.capitalize()}")


LAYOUTS = {
    "gopro": {
        "original": _gopro_original,
        "restormer": _repacked(lambda pair: f"{pair.split}/GoPro"),
        "nafnet": _repacked(lambda pair: f"GoPro/{pair.split}"),
        "blur_sharp": _repacked(lambda pair: f"GOPRO/{pair.split}", ("blur", "sharp")),
    },
    "hide": {
        "original": _hide_original,
        "restormer": _repacked(lambda pair: "test/HIDE"),
        "input_target": _repacked(lambda pair: "HIDE"),
    },
    "realblur_j": {
        "original": _realblur_original("J", "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"),
        "restormer": _repacked(lambda pair: f"{pair.split}/RealBlur_J"),
        "roles_in_names": _repacked(lambda pair: f"RealBlur_J/{pair.split}", names_of=_realblur_names),
    },
    "realblur_r": {
        "original": _realblur_original("R", "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref"),
        "restormer": _repacked(lambda pair: f"{pair.split}/RealBlur_R"),
    },
    "rain13k": {
        "original": _repacked(_rain_folder),  # it was published as a re-pack of other sets
        "below_its_name": _repacked(lambda pair: f"Rain13K/{_rain_folder(pair)}"),
        "test_originals": _rain_test_originals,
    },
    "rsblur": {
        "original": _rsblur_original,
        "input_target": _repacked(lambda pair: f"RSBlur/{pair.split}", names_of=_rsblur_names),
    },
    "reds": {
        "original": functools.partial(_reds_original, "blur_jpeg"),
        "nafnet": _reds_flattened,
        "input_target": _repacked(lambda pair: f"REDS/{pair.split}"),
    },
    "reds_blur": {
        "original": functools.partial(_reds_original, "blur"),
        "below_its_name": lambda pairs, folder: _reds_original("blur", pairs, folder / "REDS").parent,
        "blur_sharp": _repacked(lambda pair: f"REDS_blur/{pair.split}", ("blur", "sharp")),
    },
    "sidd": {
        "original": _sidd_original("SIDD_Medium_Srgb"),
        "nested": _sidd_original("SIDD_Medium_Srgb/mnt/d/SIDD_Medium_Srgb"),
        "restormer": _sidd_repacked,
    },
    "pairs": {
        "input_target": _repacked(lambda pair: ""),
        "split": _repacked(lambda pair: pair.split),
    },
}


def write_set(name: str, layout: str, folder) -> Path:
    """Write set `name` in one of `LAYOUTS[name]` below `folder` (made if missing); return what to give as --source."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return LAYOUTS[name][layout](pairs_of(name), folder)
