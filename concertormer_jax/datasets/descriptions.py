"""The sets that can be prepared: their contents, the names of their folders, and where users get them.

`SETS` has an entry for each: layouts.py finds the pairs by it, verify.py checks them, builders.py makes a
tensorflow-datasets builder of it.
"""

import dataclasses
import re
from collections.abc import Callable

from concertormer_jax.data.folders import INPUTS, TARGETS


def joined(path: str) -> str:
    """GoPro: <sequence>/<frame> to <sequence>-<frame>, the name in the usual re-packs."""
    return path.replace("/", "-")


def last_part(path: str) -> str:
    """HIDE: test-close-ups/1fromGOPR1087 to 1fromGOPR1087."""
    return path.rpartition("/")[2]


def scene_and_number(path: str) -> str:
    """RealBlur: scene001/blur_1, scene001-1, scene001_gt_1 and the like to scene001-1."""
    match = re.search(r"(scene\d+).*?(\d+)$", path)
    return f"{match[1]}-{match[2]}" if match else path


def day_and_scene(path: str) -> str:
    """RSBlur: 0001/000022/real_blur, 0001_000022 and the like to 0001-000022."""
    match = re.search(r"(\d{4})[/_-](\d{6})(?!\d)", path)
    return f"{match[1]}-{match[2]}" if match else path


def sequence_and_frame(path: str) -> str:
    """REDS: 000/00000009, 000_00000009 to 000-00000009."""
    return re.sub(r"^(\d{3})[/_]", r"\1-", path)


def rain_number(path: str) -> str:
    """Rain13K: rain-001, norain-001, rain-001x2 to 1, the numbers in the re-packs of Restormer and MPRNet."""
    return re.sub(r"^(?:no)?rain-?0*(\d+)(?:x2)?$", r"\1", last_part(path))


def rain_role(stem: str) -> str | None:
    """Rain13K: "input" for rain-001, "target" for norain-001, None for other names."""
    match = re.fullmatch(r"(no)?rain-?\d+", stem)
    return match and ("target" if match[1] else "input")


def instance_and_number(path: str) -> str:
    """SIDD: <instance>_.../<instance>_NOISY_SRGB_010 to <instance>-010; the folder's instance if the file has none."""
    match = re.search(r"(?:^|/)(\d{4})_(?:.*?)(\d{3})$", path)
    return f"{match[1]}-{match[2]}" if match else path


def sidd_role(stem: str) -> str | None:
    """SIDD: "input" for ..._NOISY_SRGB_010, "target" for ..._GT_SRGB_010, None for other names."""
    match = re.search(r"(NOISY|GT)_SRGB_\d+$", stem.upper())
    return match and {"NOISY": "input", "GT": "target"}[match[1]]


CROP_PX, CROP_STEP_PX = 512, 256

_TRAIN = {"train": "train", "training": "train"}
_TEST = {"test": "test", "testing": "test"}
_VALIDATION_UNUSED = {"val": "", "validation": "", "valid": ""}
_VALIDATION_IS_TEST = {"val": "test", "validation": "test", "valid": "test"}
_RAIN_TESTS = {"test100": 100, "rain100h": 100, "rain100l": 100, "test2800": 2800, "test1200": 1200}


@dataclasses.dataclass(frozen=True)
class Roles:
    """Names of sibling folders with inputs and with targets, the preferred first. split: of their pairs, if known."""

    inputs: tuple[str, ...] = INPUTS
    targets: tuple[str, ...] = TARGETS
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration of a set: which folders hold its pairs, and whether the training pairs are cut into crops."""

    name: str
    text: str
    roles: tuple[Roles, ...] = (Roles(),)
    crops: bool = False


@dataclasses.dataclass(frozen=True)
class SetDescription:
    """A set.

    counts: the published number of pairs of each split, None where it is not known.
    folders: pattern of the names of its folders. Here and below, names are lower case letters and digits alone.
    split_folders: name of a folder to split ("": not used); the deepest folder decides. default_split: if none says.
    rename: path below the set's folders without extension (<sequence>/<frame>, <name>) to the prepared name.
    sequence_folder: pattern of the folder of a sequence, if each sequence has inputs and targets of its own.
    sequence_depth: how many folders name a sequence, the last of which is its own.
    file_role: stem of a file that lies beside its partner to "input", "target" or None.
    chosen: split to pattern of the prepared names that belong to it; a split without pattern takes all.
    lists: split to the text file that lists its pairs, one "<target> <input>" in each line.
    softer: the side of a pair with less detail, "input" or "target"; None where it varies.
    targets_repeat: whether several inputs may share a target. spare_targets: whether some targets have no input.
    free_names: whether the user names its configurations.
    """

    name: str
    title: str
    counts: dict[str, int | None]
    folders: str
    rename: Callable[[str], str]
    homepage: str
    licence: str
    citation: str
    steps: tuple[str, ...]
    variants: tuple[Variant, ...] = (Variant("", "input and target pictures"),)
    split_folders: dict[str, str] = dataclasses.field(default_factory=lambda: _TRAIN | _TEST | _VALIDATION_UNUSED)
    default_split: str = "train"
    sequence_folder: str | None = None
    sequence_depth: int = 1
    file_role: Callable[[str], str | None] | None = None
    chosen: dict[str, str] = dataclasses.field(default_factory=dict)
    lists: dict[str, str] = dataclasses.field(default_factory=dict)
    softer: str | None = "input"
    targets_repeat: bool = False
    spare_targets: bool = False
    free_names: bool = False

    def variant(self, name: str) -> Variant | None:
        """Return the variant `name` ("": the first one), None if there is none of that name."""
        if not name:
            return self.variants[0]
        if self.free_names:
            return dataclasses.replace(self.variants[0], name=name)
        return next((variant for variant in self.variants if variant.name == name), None)


_GAMMA = (Roles(inputs=("blur_gamma",)),)
_CROPS_TEXT = f"; training pictures cut into crops of {CROP_PX} pixels that overlap by {CROP_PX - CROP_STEP_PX}"
_REALBLUR_CITATION = """@inproceedings{rim2020realblur,
  title={Real-World Blur Dataset for Learning and Benchmarking Deblurring Algorithms},
  author={Rim, Jaesung and Lee, Haeyun and Won, Jucheol and Cho, Sunghyun},
  booktitle={ECCV}, year={2020}}"""

_REDS_CITATION = """@inproceedings{nah2019ntire,
  title={NTIRE 2019 Challenge on Video Deblurring and Super-Resolution: Dataset and Study},
  author={Nah, Seungjun and Baik, Sungyong and Hong, Seokil and Moon, Gyeongsik and Son, Sanghyun and
    Timofte, Radu and Lee, Kyoung Mu},
  booktitle={CVPR Workshops}, year={2019}}"""


def _realblur(letter: str, kind: str) -> SetDescription:
    return SetDescription(
        name=f"realblur_{letter.lower()}",
        title=f"RealBlur-{letter}",
        counts={"train": 3758, "test": 980},
        folders=f"realblur{letter.lower()}((bm3d)?ecc.*)?",
        rename=scene_and_number,
        sequence_folder=r"scene\d+",
        lists={split: f"RealBlur_{letter}_{split}_list.txt" for split in ("train", "test")},
        homepage="https://github.com/rimchang/RealBlur",
        licence="CC BY 4.0",
        citation=_REALBLUR_CITATION,
        steps=(
            "Open https://github.com/rimchang/RealBlur and follow its link to the data set.",
            f"Download and unpack the archive, which holds RealBlur-{letter}_..._ref/ ({kind}) and the lists "
            f"RealBlur_{letter}_train_list.txt and RealBlur_{letter}_test_list.txt; keep the lists beside that folder.",
            "Give the folder that holds all of them as --source. A re-pack with input/ and target/ will do, too.",
        ),
    )


SETS = {
    description.name: description
    for description in (
        SetDescription(
            name="gopro",
            title="GoPro",
            counts={"train": 2103, "test": 1111},
            folders="gopro(large)?",
            rename=joined,
            sequence_folder=r"GOPR\d+_\d+_\d+",
            homepage="https://seungjunnah.github.io/Datasets/gopro",
            licence="CC BY 4.0",
            citation="""@inproceedings{nah2017deep,
  title={Deep Multi-Scale Convolutional Neural Network for Dynamic Scene Deblurring},
  author={Nah, Seungjun and Kim, Tae Hyun and Lee, Kyoung Mu},
  booktitle={CVPR}, year={2017}}""",
            steps=(
                "Open https://seungjunnah.github.io/Datasets/gopro and download GOPRO_Large.zip (8.9 GB).",
                "Unpack it; it holds train/ and test/ with a folder for each sequence.",
                "Give the unpacked folder as --source. A re-pack with input/ and target/ will do, too, for blur.",
            ),
            variants=(
                Variant("blur", "blur as the literature uses it"),
                Variant("blur_gamma", "the author's other blur, averaged in linear light", _GAMMA),
                Variant("blur_crops", f"as blur{_CROPS_TEXT}", crops=True),
                Variant("blur_gamma_crops", f"as blur_gamma{_CROPS_TEXT}", _GAMMA, crops=True),
            ),
        ),
        SetDescription(
            name="hide",
            title="HIDE",
            counts={"test": 2025},
            folders="hide|hidedataset|hidetest|testcloseups|testlongshot",
            rename=last_part,
            split_folders=_TEST | {"train": "", "training": ""},
            default_split="test",
            variants=(Variant("", "test pictures of both distances", (Roles(("test",), ("gt",)), Roles())),),
            spare_targets=True,
            homepage="https://github.com/joanshen0508/HA_deblur",
            licence="none stated",
            citation="""@inproceedings{shen2019human,
  title={Human-Aware Motion Deblurring},
  author={Shen, Ziyi and Wang, Wenguan and Lu, Xiankai and Shen, Jianbing and Ling, Haibin and Xu, Tingfa and
    Shao, Ling},
  booktitle={ICCV}, year={2019}}""",
            steps=(
                "Open https://github.com/joanshen0508/HA_deblur and follow its link to the HIDE data set (4.2 GB).",
                "Unpack it; it holds GT/ and test/ with test-close-ups/ and test-long-shot/ (train/ is not used).",
                "Give the unpacked folder as --source. A re-pack with input/ and target/ will do, too.",
            ),
        ),
        _realblur("R", "from raw data"),
        _realblur("J", "from the camera's JPEG files"),
        SetDescription(
            name="rsblur",
            title="RSBlur",
            counts={"train": 8878, "validation": 1120, "test": 3360},
            folders="rsblur",
            rename=day_and_scene,
            split_folders=_TRAIN | _TEST | dict.fromkeys(("val", "validation", "valid"), "validation"),
            sequence_folder=r"\d{6}",
            sequence_depth=2,
            lists={
                "train": "RSBlur_real_train.txt",
                "validation": "RSBlur_real_val.txt",
                "test": "RSBlur_real_test.txt",
            },
            variants=(
                Variant("", "real blurred pictures and their targets", (Roles(("real_blur",), ("gt",)), Roles())),
            ),
            homepage="https://github.com/rimchang/RSBlur",
            licence="CC BY 4.0",
            citation="""@inproceedings{rim2022realistic,
  title={Realistic Blur Synthesis for Learning Image Deblurring},
  author={Rim, Jaesung and Kim, Geonung and Kim, Jungeon and Lee, Junyong and Lee, Seungyong and Cho, Sunghyun},
  booktitle={ECCV}, year={2022}}""",
            steps=(
                "Open https://github.com/rimchang/RSBlur, follow its link to the data set, and unpack RSBlur.zip, "
                "which holds RSBlur/<day>/<scene>/ with real_blur/ and gt/ (the other archives are not used).",
                "Put RSBlur_real_train.txt, RSBlur_real_val.txt and RSBlur_real_test.txt from datalist/RSBlur/ of that "
                "repository beside RSBlur/.",
                "Give the folder that holds all of them as --source. A re-pack with input/ and target/ will do, too.",
            ),
        ),
        SetDescription(
            name="rain13k",
            title="Rain13K",
            counts={"train": 13711} | _RAIN_TESTS,
            folders="|".join(("rain13k", *_RAIN_TESTS)),
            rename=rain_number,
            split_folders=_TRAIN | {name: name for name in _RAIN_TESTS} | {"rain13k": "train", "test": ""},
            file_role=rain_role,
            softer=None,
            targets_repeat=True,
            homepage="https://github.com/swz30/Restormer",
            licence="none stated",
            citation="""@inproceedings{jiang2020multi,
  title={Multi-Scale Progressive Fusion Network for Single Image Deraining},
  author={Jiang, Kui and Wang, Zhongyuan and Yi, Peng and Chen, Chen and Huang, Baojin and Luo, Yimin and
    Ma, Jiayi and Jiang, Junjun},
  booktitle={CVPR}, year={2020}}""",
            steps=(
                "Open https://github.com/swz30/Restormer (or MPRNet's repository) and follow its links to the training "
                "and test data for deraining (1.2 and 1.4 GB).",
                "Unpack both below one folder: train/Rain13K/ and test/{Test100,Rain100H,Rain100L,Test2800,Test1200}/, "
                "each with input/ and target/.",
                "Give that folder as --source.",
            ),
        ),
        SetDescription(
            name="reds",
            title="REDS blur+JPEG",
            counts={"train": 24000, "test": 300},
            folders="reds|(train|val)blurjpeg",
            rename=sequence_and_frame,
            split_folders=_TRAIN | _TEST | _VALIDATION_IS_TEST,
            chosen={"test": "9$"},
            variants=(
                Variant(
                    "",
                    "frames with blur and JPEG artifacts; test is val-300, the frames whose names end in 9",
                    (
                        Roles(("train_blur_jpeg",), ("train_sharp",), "train"),
                        Roles(("blur_300",), ("sharp_300",), "test"),
                        Roles(("val_blur_jpeg",), ("val_sharp",), "test"),
                        Roles(("input", "lq", "blur_jpeg"), ("target", "gt", "sharp")),
                    ),
                ),
            ),
            homepage="https://seungjunnah.github.io/Datasets/reds",
            licence="CC BY 4.0",
            citation=_REDS_CITATION,
            steps=(
                "Open https://seungjunnah.github.io/Datasets/reds and download train_blur_jpeg, train_sharp, "
                "val_blur_jpeg and val_sharp (35 GB).",
                "Unpack them into one folder: train/train_blur_jpeg/, train/train_sharp/, val/val_blur_jpeg/ and "
                "val/val_sharp/, each with a folder for each sequence.",
                "Give that folder as --source.",
            ),
        ),
        SetDescription(
            name="reds_blur",
            title="REDS blur",
            counts={"train": 24000, "test": 300},
            folders="reds(blur)?|(train|val)blur",
            rename=sequence_and_frame,
            split_folders=_TRAIN | _TEST | _VALIDATION_IS_TEST,
            chosen={"test": "9$"},
            variants=(
                Variant(
                    "",
                    "frames with blur alone; test is the frames of the validation set whose names end in 9",
                    (
                        Roles(("train_blur",), ("train_sharp",), "train"),
                        Roles(("val_blur",), ("val_sharp",), "test"),
                        Roles(("blur",), ("sharp",)),
                    ),
                ),
            ),
            homepage="https://seungjunnah.github.io/Datasets/reds",
            licence="CC BY 4.0",
            citation=_REDS_CITATION,
            steps=(
                "Open https://seungjunnah.github.io/Datasets/reds and download train_blur, train_sharp, val_blur and "
                "val_sharp.",
                "Unpack them into one folder: train/train_blur/, train/train_sharp/, val/val_blur/ and val/val_sharp/, "
                "each with a folder for each sequence.",
                "Give that folder as --source.",
            ),
        ),
        SetDescription(
            name="sidd",
            title="SIDD-Medium",
            counts={"train": 320, "test": 1280},
            folders="sidd(medium|small)?(srgb)?(only)?",
            rename=instance_and_number,
            split_folders=_TRAIN | _TEST | _VALIDATION_IS_TEST,
            file_role=sidd_role,
            softer="target",
            variants=(
                Variant("whole", "whole training pictures; test is the 1,280 validation blocks"),
                Variant("crops", f"as whole{_CROPS_TEXT}", crops=True),
            ),
            homepage="https://abdokamel.github.io/sidd/",
            licence="see the page of the set",
            citation="""@inproceedings{abdelhamed2018high,
  title={A High-Quality Denoising Dataset for Smartphone Cameras},
  author={Abdelhamed, Abdelrahman and Lin, Stephen and Brown, Michael S.},
  booktitle={CVPR}, year={2018}}""",
            steps=(
                "Open https://abdokamel.github.io/sidd/ and download SIDD-Medium, sRGB images only (13 GB), and unpack "
                "it.",
                "Download ValidationNoisyBlocksSrgb.mat and ValidationGtBlocksSrgb.mat from the same page into that "
                "folder.",
                "Give the folder as --source.",
            ),
        ),
        SetDescription(
            name="pairs",
            title="Pairs of your own",
            counts={"train": None, "test": None},
            folders="(?!)",  # matches nothing, since all folders belong to this set
            rename=lambda path: path,
            split_folders=_TRAIN | _TEST | _VALIDATION_IS_TEST,
            variants=(Variant("default", "input and target pictures"),),
            softer=None,
            targets_repeat=True,
            free_names=True,
            homepage="",
            licence="that of the pictures",
            citation="",
            steps=(
                "Put degraded pictures into input/ and their targets, under the same names, into target/; blur/ and "
                "sharp/ and the like will do, too.",
                "For a test set of its own, put both into train/ and do the same in test/.",
                "Give the folder that holds them as --source.",
            ),
        ),
    )
}
