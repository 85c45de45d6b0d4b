"""From the names that files have in the various layouts to those of the prepared pairs, which are the same for all.

A path is what stands below the set's folders, without extension: `<sequence>/<frame>` or `<name>`.
"""

import re


def joined(path: str) -> str:
    """<sequence>/<frame> to <sequence>-<frame>, as the re-packs have it."""
    return path.replace("/", "-")


def last_part(path: str) -> str:
    """HIDE: test-close-ups/1fromGOPR1087 to 1fromGOPR1087."""
    return path.rpartition("/")[2]


def scene_and_number(path: str) -> str:
    """RealBlur: scene001/blur_1, scene001-1, scene001_gt_1 and the like to scene001-1."""
    match = re.search(r"(scene\d+).*?(\d+)$", path)
    return f"{match[1]}-{match[2]}" if match else path


def sequence_and_frame(path: str) -> str:
    """REDS: 000/00000009, 000_00000009 to 000-00000009."""
    return re.sub(r"^(\d{3})[/_]", r"\1-", path)


def rain_number(path: str) -> str:
    """rain-001, norain-001, rain-001x2 to 1, as the re-packs of Restormer and MPRNet number the pictures."""
    return re.sub(r"^(?:no)?rain-?0*(\d+)(?:x2)?$", r"\1", last_part(path))


def rain_role(stem: str) -> str | None:
    """Whether a file beside its partner is an input (rain-001) or a target (norain-001)."""
    match = re.fullmatch(r"(no)?rain-?\d+", stem)
    return match and ("target" if match[1] else "input")


def instance_and_number(path: str) -> str:
    """SIDD: <instance>_.../<instance>_NOISY_SRGB_010 to <instance>-010; the folder's instance if the file has none."""
    match = re.search(r"(?:^|/)(\d{4})_(?:.*?)(\d{3})$", path)
    return f"{match[1]}-{match[2]}" if match else path


def sidd_role(stem: str) -> str | None:
    """Whether a file beside its partner is an input (..._NOISY_SRGB_010) or a target (..._GT_SRGB_010)."""
    match = re.search(r"(NOISY|GT)_SRGB_\d+$", stem.upper())
    return match and {"NOISY": "input", "GT": "target"}[match[1]]
