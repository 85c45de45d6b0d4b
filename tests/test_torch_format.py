"""PyTorch's weights files: what PyTorch wrote is read, what could do harm is refused."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from concertormer_jax.weights.state_dict import read_state_dict, write_state_dict

from concertormer_jax.errors import UserError

SAVED_BY_TORCH = Path(__file__).parent / "golden" / "torch_saved.pth"


def test_a_file_that_pytorch_saved():
    """Views with strides and offsets, a shared storage, half precision, a parameter, a scalar and an empty tensor."""
    expected = {
        "contiguous": np.array([[0, 1, 2], [3, 4, 5]], np.float32),
        "transposed": np.array([[0, 3], [1, 4], [2, 5]], np.float32),
        "half": np.array([0.5, -2], np.float32),
        "bfloat16": np.array([1.5, -0.25], np.float32),
        "shared.0": np.array([2, 3, 4], np.float32),
        "shared.1": np.array([4, 6], np.float32),
        "parameter": np.array([7, 8], np.float32),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }
    state = read_state_dict(SAVED_BY_TORCH)
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        np.testing.assert_array_equal(state[name], array, strict=True)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_written_is_read_back(tmp_path, name):
    rng = np.random.default_rng(0)
    state = {
        "contiguous": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "transposed": rng.normal(size=(2, 3)).astype(np.float32).T,
        "name.with.äöü": rng.normal(size=7).astype(np.float32),
    }
    write_state_dict(tmp_path / name, state)
    read = read_state_dict(tmp_path / name)
    assert read.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(read[key], array, strict=True)


def test_another_suffix_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"weights\.bin must end in \.pth or \.safetensors"):
        write_state_dict(tmp_path / "weights.bin", {"a": np.zeros(1)})
    assert not list(tmp_path.iterdir())


TORCH, TORCH_UTILS = types.ModuleType("torch"), types.ModuleType("torch._utils")
for module, name in (
    (TORCH, "FloatStorage"),
    (TORCH, "load"),
    (TORCH_UTILS, "_rebuild_tensor_v2"),
    (TORCH_UTILS, "_rebuild_tensor"),
):
    setattr(module, name, type(name, (), {"__module__": module.__name__}))


class Storage:
    """Stands for the storage `0` of a file, of `size` numbers."""

    def __init__(self, size, kind="storage"):
        self.identifier = (kind, TORCH.FloatStorage, "0", "cpu", size)


class Tensor:
    """Stands for a tensor: the arguments with which PyTorch rebuilds it."""

    def __init__(self, storage, offset, shape, stride):
        self.arguments = (storage, offset, shape, stride, False, {})

    def __reduce__(self):
        return TORCH_UTILS._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Storage) else None


def write_pth(path, content):
    """Write a file like PyTorch's, of the numbers 0 to 5 and any `content`: an object, or the bytes of a pickle."""
    if not isinstance(content, bytes):
        data = io.BytesIO()
        # The names of PyTorch, which is not installed, can be written while they can be imported.
        with mock.patch.dict(sys.modules, {"torch": TORCH, "torch._utils": TORCH_UTILS}):
            Pickler(data, protocol=2).dump(content)
        content = data.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("key", [None, "params", "state_dict", "params_ema"])
def test_the_dictionary_of_tensors_is_found(path, key):
    state = {"a": Tensor(Storage(6), 1, (2, 2), (1, 2))}
    (array,) = read_state_dict(write_pth(path, state if key is None else {key: state, "epoch": 3})).values()
    np.testing.assert_array_equal(array, [[1, 3], [2, 4]])


class RunsACommand:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluates:
    def __init__(self, source):
        self.source = source

    def __reduce__(self):
        return eval, (self.source,)


@pytest.mark.parametrize(
    ("attack", "name"),
    [
        (lambda victim: RunsACommand(f"touch {victim}"), f"{os.system.__module__}.system"),
        (lambda victim: Evaluates(f"open({str(victim)!r}, 'w')"), "builtins.eval"),
    ],
)
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, path, attack, name):
    victim = tmp_path / "victim"
    content = pickle.dumps({"params": {"a": attack(victim)}})
    pickle.loads(content)  # the attack works on a reader that trusts the file
    assert victim.exists()
    victim.unlink()
    with pytest.raises(UserError, match=f"must not contain the name {name}"):
        read_state_dict(write_pth(path, content))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (TORCH.load, "torch.load"),
        (TORCH_UTILS._rebuild_tensor, "torch._utils._rebuild_tensor"),
        (collections.Counter, "collections.Counter"),
        (np.load, "numpy.load"),
    ],
)
def test_only_the_names_of_tensors_are_known(path, value, name):
    with pytest.raises(UserError, match=f"must not contain the name {name}$"):
        read_state_dict(write_pth(path, {"a": value}))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (Tensor(Storage(6), 0, (7,), (1,)), "reaches outside its storage"),
        (Tensor(Storage(6), 6, (), ()), "reaches outside its storage"),
        (Tensor(Storage(6), 0, (2, 2), (1, 5)), "reaches outside its storage"),
        (Tensor(Storage(6), -1, (2,), (1,)), "impossible shape"),
        (Tensor(Storage(6), 5, (2,), (-1,)), "impossible shape"),
        (Tensor(Storage(6), 0, (2,), (1, 1)), "impossible shape"),
        (Tensor(Storage(6), 0, (10**12,), (0,)), "more elements than its storage"),
        (Tensor(Storage(7), 0, (7,), (1,)), "a storage of 6 numbers where 7 are announced"),
        (Tensor(Storage(6, kind="module"), 0, (6,), (1,)), "an object of kind 'module'"),
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_refused(path, tensor, reason):
    with pytest.raises(UserError, match=rf"weights\.pth is refused, because .*{reason}"):
        read_state_dict(write_pth(path, {"a": tensor}))


@pytest.mark.parametrize("content", [b"", b"\x80\x02}", b"garbage", b"\x80\x02}K\x01K\x02R."])
def test_a_malformed_pickle_is_refused(path, content):
    with pytest.raises(UserError, match=r"weights\.pth is refused, because its pickle is malformed"):
        read_state_dict(write_pth(path, content))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"params": {"a": {"b": 1}}}])
def test_a_file_without_tensors_is_refused(path, content):
    with pytest.raises(UserError, match=r"weights\.pth holds no dictionary of tensors"):
        read_state_dict(write_pth(path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        read_state_dict(tmp_path / "absent.pth")


@pytest.mark.parametrize("keep", [0, 100, SAVED_BY_TORCH.stat().st_size - 10])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(SAVED_BY_TORCH.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"weights\.pth is damaged or older than PyTorch 1\.6"):
        read_state_dict(path)


def test_a_damaged_storage_is_refused(path):
    data = bytearray(SAVED_BY_TORCH.read_bytes())
    place = data.index(struct.pack("<3f", 3, 4, 5))
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.pth is damaged"):
        read_state_dict(path)


def test_a_file_of_pytorch_before_1_6_is_refused(path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2))
    with pytest.raises(UserError, match=r"older than PyTorch 1\.6"):
        read_state_dict(path)


def test_a_zip_archive_of_something_else_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme.txt", "no weights")
    with pytest.raises(UserError, match=r"must hold one data\.pkl, not 0"):
        read_state_dict(path)


def test_big_endian_numbers_are_refused(path):
    write_pth(path, {"a": Tensor(Storage(6), 0, (6,), (1,))})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match=r"weights\.pth was saved in big-endian byte order"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"garbage garbage"])
def test_a_damaged_safetensors_file_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is no readable safetensors file"):
        read_state_dict(path)
