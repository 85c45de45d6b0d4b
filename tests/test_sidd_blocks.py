"""SIDD's validation blocks from their MATLAB files."""

import numpy as np
import pytest
import scipy.io

from concertormer_jax.datasets import sidd_blocks
from concertormer_jax.runtime.errors import UserError


@pytest.fixture
def files(tmp_path):
    """Both files: 3 images of 2 blocks of 8x8; returns (folder, noisy, clean)."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (2, 3, 2, 8, 8, 3), dtype=np.uint8)
    for name, array in zip((sidd_blocks.NOISY_FILE, sidd_blocks.CLEAN_FILE), arrays, strict=True):
        scipy.io.savemat(tmp_path / name, {name.removesuffix(".mat"): array})
    return tmp_path, *arrays


def test_blocks_are_pairs_in_the_files_order(files):
    folder, noisy, clean = files
    source = sidd_blocks.SiddBlocks(*sidd_blocks.find_block_files(folder))
    assert len(source) == 6
    assert [source.name(index) for index in range(6)] == [
        "0000-00",
        "0000-01",
        "0001-00",
        "0001-01",
        "0002-00",
        "0002-01",
    ]
    assert {source.size(index) for index in range(6)} == {(8, 8)}
    for index in range(6):
        degraded, target = source.whole(index)
        np.testing.assert_array_equal(degraded, noisy[index // 2, index % 2])
        np.testing.assert_array_equal(target, clean[index // 2, index % 2])


def test_files_are_found_below_the_folder_and_only_together(files, tmp_path):
    folder = files[0]
    (folder / "empty").mkdir()
    assert sidd_blocks.find_block_files(folder / "empty") is None
    below = folder / "validation"
    below.mkdir()
    for name in (sidd_blocks.NOISY_FILE, sidd_blocks.CLEAN_FILE):
        (folder / name).rename(below / name)
    assert sidd_blocks.find_block_files(folder) == (below / sidd_blocks.NOISY_FILE, below / sidd_blocks.CLEAN_FILE)
    (below / sidd_blocks.CLEAN_FILE).unlink()
    with pytest.raises(UserError, match=r"has no ValidationGtBlocksSrgb\.mat"):
        sidd_blocks.find_block_files(folder)


def test_files_of_different_shapes_are_refused(files):
    folder, noisy, _ = files
    scipy.io.savemat(folder / sidd_blocks.CLEAN_FILE, {"x": noisy[:2]})
    with pytest.raises(UserError, match=r"holds blocks \[3, 2, 8, 8, 3\] but .*\[2, 2, 8, 8, 3\]"):
        sidd_blocks.SiddBlocks(*sidd_blocks.find_block_files(folder))


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "blocks.mat"
    with pytest.raises(UserError, match=r"blocks\.mat: no such file"):
        sidd_blocks.read_blocks(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"blocks\.mat: is in MATLAB's format 7\.3.*-v7"):
        sidd_blocks.read_blocks(path)
    scipy.io.savemat(path, {"blocks": np.zeros((2, 2, 8, 8, 3), np.uint8)})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=r"blocks\.mat: cannot be read as a \.mat file"):
        sidd_blocks.read_blocks(path)
    for content in ({"a": np.zeros((2, 8, 8, 3), np.uint8)}, {"a": np.zeros((2, 2, 8, 8, 3))}, {}):
        scipy.io.savemat(path, content)
        with pytest.raises(UserError, match="does not hold one array of 8-bit colour blocks"):
            sidd_blocks.read_blocks(path)
