"""SIDD's validation set: blocks of noisy and of clean pictures in two MATLAB files."""

from pathlib import Path

import numpy as np
import scipy.io

from concertormer_jax.data.listing import find_file
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.paths import AnyPath

NOISY_FILE, CLEAN_FILE = "ValidationNoisyBlocksSrgb.mat", "ValidationGtBlocksSrgb.mat"


def find_block_files(folder: AnyPath) -> tuple[Path, Path] | None:
    """Return (noisy, clean) files in `folder` or anywhere below, or None if there is neither.

    Raises UserError if one of the two is missing.
    """
    noisy, clean = find_file(folder, NOISY_FILE), find_file(folder, CLEAN_FILE)
    if noisy and clean:
        return noisy, clean
    if noisy or clean:
        missing = CLEAN_FILE if noisy else NOISY_FILE
        raise UserError(f"{folder}: has no {missing}; download it from the SIDD page beside the other .mat file.")
    return None


def read_blocks(path: AnyPath) -> np.ndarray:
    """Return the blocks of a .mat file, uint8 [images, blocks per image, H, W, 3].

    Raises UserError naming the file if it is missing, damaged, in MATLAB's format 7.3, or holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path.")
    try:
        content = scipy.io.loadmat(path, appendmat=False)
    except NotImplementedError:  # SciPy reads formats up to 7
        raise UserError(
            f"{path}: is in MATLAB's format 7.3, which cannot be read here; save it again in MATLAB with -v7."
        ) from None
    except Exception as error:  # SciPy raises many kinds on damaged data
        raise UserError(f"{path}: cannot be read as a .mat file ({error}); download it again.") from error
    arrays = [value for name, value in content.items() if not name.startswith("__")]
    if len(arrays) != 1 or arrays[0].dtype != np.uint8 or arrays[0].ndim != 5 or arrays[0].shape[-1] != 3:
        raise UserError(
            f"{path}: does not hold one array of 8-bit colour blocks [images, blocks, height, width, 3]; give SIDD's "
            f"{NOISY_FILE} or {CLEAN_FILE}."
        )
    return arrays[0]


def block_name(index: int, blocks_per_image: int) -> str:
    """Return the name "<image>-<block>", such as 0007-31, of block `index` of all blocks of all images."""
    image, block = divmod(index, blocks_per_image)
    return f"{image:04d}-{block:02d}"


class SiddBlocks:
    """The blocks of both files as evaluation pairs. All are held in memory."""

    def __init__(self, noisy: AnyPath, clean: AnyPath):
        self._noisy, self._clean = read_blocks(noisy), read_blocks(clean)
        if self._noisy.shape != self._clean.shape:
            raise UserError(
                f"{noisy}: holds blocks {list(self._noisy.shape)} but {clean} {list(self._clean.shape)}; download both "
                "files again."
            )

    def __len__(self) -> int:
        return self._noisy.shape[0] * self._noisy.shape[1]

    def name(self, index: int) -> str:
        return block_name(index, self._noisy.shape[1])

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        return self._noisy.shape[2], self._noisy.shape[3]

    def whole(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (noisy, clean), uint8 [H, W, 3]."""
        place = divmod(index, self._noisy.shape[1])
        return self._noisy[place], self._clean[place]
