"""PyTorch's weights files: what PyTorch wrote is read, what could do harm is refused."""

import argparse
import builtins
import collections
import os
import pathlib
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from pth_files import PATHLIB_OF_3_13, TORCH, TORCH_STORAGE, TORCH_UTILS, Call, Storage, pickled, tensor, write_pth

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights import read_state_dict, torch_pickle, write_state_dict

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


@pytest.mark.parametrize("name", ["weights.pth", "weights.PT", "weights.safetensors"])
def test_what_is_written_is_read_back(tmp_path, name):
    rng = np.random.default_rng(0)
    state = {
        "contiguous": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "transposed": rng.normal(size=(2, 3)).astype(np.float32).T,
        "name.with.äöü": rng.normal(size=7).astype(np.float32),
    }
    write_state_dict(tmp_path / name, state)
    (tmp_path / name).rename(tmp_path / "named.bin")  # the content says what it is
    read = read_state_dict(tmp_path / "named.bin")
    assert read.keys() == state.keys()
    for key, array in state.items():
        np.testing.assert_array_equal(read[key], array, strict=True)


def test_another_suffix_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"weights\.bin must end in \.pth, \.pt or \.safetensors"):
        write_state_dict(tmp_path / "weights.bin", {"a": np.zeros(1)})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


WHOLE = tensor(Storage(6), 0, (6,), (1,))


def test_a_view(path):
    state = read_state_dict(write_pth(path, {"a": tensor(Storage(6), 1, (2, 2), (1, 2))}))
    np.testing.assert_array_equal(state["a"], np.array([[1, 3], [2, 4]], np.float32), strict=True)


def test_a_tensor_of_8_bits_becomes_float32(path):
    """PyTorch has no storage class for new types: it writes bytes, and the type beside them."""
    data = np.array([1, 0.5, -1.5, 448], ml_dtypes.float8_e4m3fn)
    storage = Storage(4, name=TORCH_STORAGE.UntypedStorage)
    call = Call(TORCH_UTILS._rebuild_tensor_v3, storage, 1, (3,), (1,), False, {}, TORCH.float8_e4m3fn)
    state = read_state_dict(write_pth(path, {"a": call}, {"0": data.tobytes()}))
    np.testing.assert_array_equal(state["a"], np.array([0.5, -1.5, 448], np.float32), strict=True)


def test_what_trainers_save_beside_the_weights_is_ignored(path):
    content = {
        "params": collections.OrderedDict(a=WHOLE),
        "arguments": argparse.Namespace(lr=1e-3, folder=pathlib.PosixPath("runs/a")),
        "best": np.float64(31.5),
        "milestones": collections.Counter({1000: 1}),
        "losses": collections.defaultdict(list, {"l1": [1.5]}),
        "optimizer": {"state": {0: {"exp_avg": WHOLE}}, "param_groups": [{"lr": 0.1}]},
        "size": Call(TORCH.Size, (1, 2)),
        "type": TORCH.float32,
        "picture": np.zeros((2, 2)),
        "seen": {1, 2},
        "folder": Call(PATHLIB_OF_3_13.PosixPath, ("runs", "a")),
    }
    content["params"]._metadata = {"": {"version": 1}}  # PyTorch saves this attribute
    assert list(read_state_dict(write_pth(path, content))) == ["a"]


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
        (lambda victim: Evaluates(f"__import__('pathlib').Path({str(victim)!r}).touch()"), "builtins.eval"),
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
        (collections.ChainMap, "collections.ChainMap"),
        (builtins.getattr, "__builtin__.getattr"),
        (np.load, "numpy.load"),
    ],
)
def test_only_the_names_of_tensors_are_known(path, value, name):
    with pytest.raises(UserError, match=f"must not contain the name {name};"):
        read_state_dict(write_pth(path, {"a": value}))


def test_a_name_is_shown_without_control_characters(path):
    with pytest.raises(UserError, match=r"must not contain the name \\x1b\[31m\.a+\.\.\.;"):
        read_state_dict(write_pth(path, b"\x80\x02c\x1b[31m\n" + 10_000 * b"a" + b"\n."))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor(Storage(6), 0, (7,), (1,)), "reaches outside its storage"),
        (tensor(Storage(6), 6, (), ()), "reaches outside its storage"),
        (tensor(Storage(6), 0, (2, 2), (1, 5)), "reaches outside its storage"),
        (tensor(Storage(6), 2**47, (2,), (1,)), "reaches outside its storage"),
        (tensor(Storage(6), -1, (2,), (1,)), "impossible shape"),
        (tensor(Storage(6), 5, (2,), (-1,)), "impossible shape"),
        (tensor(Storage(6), 0, (2,), (1, 1)), "impossible shape"),
        (tensor(Storage(6), 0, (-2, -3), (1, 1)), "impossible shape"),
        (tensor(Storage(6), 0, (0, 2**47, 2**47), (1, 1, 1)), "impossible shape"),
        (tensor(Storage(6), 0, (1,) * 33, (1,) * 33), "impossible shape"),
        (tensor(Storage(6), True, (2,), (1,)), "impossible shape"),
        (tensor(Storage(6), 0.0, (2,), (1,)), "impossible shape"),
        (tensor(Storage(6), 0, (2.0,), (1,)), "impossible shape"),
        (tensor(Storage(6), 0, (True,), (1,)), "impossible shape"),
        (tensor(Storage(6), 0, (2,), (2**64,)), "impossible shape"),
        (tensor(Storage(6), 0, (10**5000,), (1,)), "impossible shape"),
        (tensor(Storage(6), 0, [2], [1]), "impossible shape"),
        (tensor(Storage(6), 0, "2", "1"), "impossible shape"),
        (tensor(Storage(6), None, None, None), "impossible shape"),
        (tensor(Storage(6), 0, (10**12,), (0,)), "more elements than its storage"),
        (tensor(Storage(6), 0, (6,), (1,), {"neg": True}), "stored negated or conjugated"),
        (tensor(tensor(Storage(6), 0, (1,), (1,)), 0, (6,), (1,)), "a tensor without a storage"),
        (tensor(TORCH.FloatStorage, 0, (6,), (1,)), "a tensor without a storage"),
        (tensor([1.0] * 6, 0, (6,), (1,)), "a tensor without a storage"),
        (Call(TORCH_UTILS._rebuild_parameter, Storage(6), False, {}), "a parameter without a tensor"),
        (tensor(Storage(7), 0, (7,), (1,)), "a storage of 24 bytes where 28 are announced"),
        (tensor(Storage(-6), 0, (6,), (1,)), "a storage of an impossible size"),
        (tensor(Storage(6.0), 0, (6,), (1,)), "a storage of an impossible size"),
        (tensor(Storage(6, name=TORCH.float32), 0, (6,), (1,)), "an object that is no storage"),
        (tensor(Storage(6, kind="module"), 0, (6,), (1,)), "an object that is no storage"),
        (tensor(Storage(6, key="../data.pkl"), 0, (6,), (1,)), "a storage that is not in the file"),
        (tensor(Storage(6, key=0), 0, (6,), (1,)), "a storage that is not in the file"),
        (Call(TORCH.FloatStorage, 10**12), "a call of torch.FloatStorage"),
        (Call(TORCH_UTILS._rebuild_tensor_v2, Storage(6)), "a malformed pickle"),
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_refused(path, value, reason):
    with pytest.raises(UserError, match=rf"weights\.pth is refused, because .*{reason}"):
        read_state_dict(write_pth(path, {"a": value}))


def test_a_tensor_is_no_storage(path):
    """The first tensor has strides of 0 bytes; a reader that takes it for six numbers reads on behind its one."""
    one = tensor(Storage(6), 5, (1,), (1,))
    with pytest.raises(UserError, match="a tensor without a storage"):
        read_state_dict(write_pth(path, {"a": tensor(one, 0, (1,), (1,))}))


def opcodes(*parts) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def name(module, name) -> bytes:
    return f"c{module}\n{name}\n".encode()


@pytest.mark.parametrize(
    "target",
    [
        name("torch", "BFloat16Storage"),
        name("torch._utils", "_rebuild_tensor_v2"),
        name("collections", "OrderedDict"),
        name("torch", "float32"),
        pickled(WHOLE)[2:-1],
        b"]",
        b"K\x01",
    ],
)
@pytest.mark.parametrize("state", [b"}X\x01\x00\x00\x00aK\x01s", b"N}X\x01\x00\x00\x00aK\x01s\x86", b")"])
def test_no_state_is_set(path, target, state):
    """With Python's own machine the opcode BUILD sets attributes of what a name stands for."""
    with pytest.raises(UserError, match="a state of what has none"):
        read_state_dict(write_pth(path, opcodes(b"}X\x01\x00\x00\x00b", target, state, b"bs")))
    assert np.dtype(ml_dtypes.bfloat16).name == "bfloat16"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "a malformed pickle"),
        (b"\x80\x02}", "a malformed pickle"),
        (b"garbage", "a malformed pickle"),
        (opcodes(), "a malformed pickle"),
        (opcodes(b"h\x07"), "a malformed pickle"),
        (opcodes(b"tt"), "a malformed pickle"),
        (opcodes(b"}K\x01u"), "a malformed pickle"),
        (opcodes(b"}(K\x01u"), "a malformed pickle"),
        (opcodes(b"}K\x01K\x02R"), "a call of what is no function"),
        (opcodes(name("collections", "OrderedDict"), b"K\x01R"), "a call of what is no function"),
        (opcodes(b"ccollections\nOrderedDict\n", b"}\x85R"), "a malformed pickle"),
        (opcodes(b"K\x01(K\x01K\x02e"), "items of what is no list"),
        (opcodes(b"](K\x01K\x02u"), "entries of what is no dictionary"),
        (opcodes(b"K\x01K\x02\x93"), "a name that is no text"),
        (opcodes(b"(iposix\nsystem\n"), "the pickle opcode INST"),
        (opcodes(b"(cposix\nsystem\nX\x01\x00\x00\x00ao"), "the name posix.system"),
        (opcodes(b"\x82\x01"), "the pickle opcode EXT1"),
        (opcodes(b"Pabc\n"), "the pickle opcode PERSID"),
        (opcodes(b"]22"), "the pickle opcode DUP"),
        (opcodes(b"\x96\x00\x00\x00\x00\x00\x00\x00\x00"), "the pickle opcode BYTEARRAY8"),
        (opcodes(b"]p123\n"), "the pickle opcode PUT"),
        (opcodes(b"\x8e\xff\xff\xff\xff\xff\x00\x00\x00"), "a malformed pickle"),
    ],
)
def test_a_malformed_pickle_is_refused(path, content, reason):
    with pytest.raises(UserError, match=rf"weights\.pth is refused, .* must not contain {reason}; save"):
        read_state_dict(write_pth(path, content))


def number(value):
    return b"\x8a\x0a" + value.to_bytes(10, "little")


def nested_twice(levels):
    """A tuple that holds the one of the level below twice: a tree of 2**levels."""
    return b"K\x01" + levels * b"q\x00h\x00\x86"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(opcodes(b"]r\xff\xff\xff\x7f"), id="memo of 2**31"),
        pytest.param(opcodes(100_000 * b"\x85"), id="stack underflow"),
        pytest.param(opcodes(b"K\x01", 100_000 * b"\x85"), id="deep tuple"),
        pytest.param(opcodes(100_000 * b"]", 99_999 * b"a"), id="deep list"),
        pytest.param(opcodes(b"}", nested_twice(100), b"K\x01s"), id="hash of a tree"),
        pytest.param(opcodes(nested_twice(100), b"Q"), id="tree as identifier"),
        pytest.param(opcodes(nested_twice(100), b"]R"), id="tree as function"),
        pytest.param(opcodes(nested_twice(100)), id="tree as result"),
        pytest.param(
            opcodes(b"}(", *(number(k * (2**61 - 1)) + b"N" for k in range(50_000)), b"u"), id="colliding keys"
        ),
        pytest.param(opcodes(b"X\xff\xff\xff\x7f"), id="text of 2**31"),
        pytest.param(opcodes(b"}q\x00(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00u"), id="holds itself"),
    ],
)
def test_a_pickle_cannot_take_much_time_or_memory(path, content):
    write_pth(path, content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(UserError):
            read_state_dict(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 20
    assert peak < 64 * len(content) + 2**24


def test_the_number_of_opcodes_is_limited(path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(UserError, match="a pickle of more than 1,000 opcodes"):
        read_state_dict(write_pth(path, opcodes(1000 * b"]")))


def test_tensors_cannot_repeat_a_storage_to_any_size(path):
    content = {f"{i}": tensor(Storage(1000), 0, (1000,), (1,)) for i in range(500)}
    with pytest.raises(UserError, match="tensors that repeat each other's numbers"):
        read_state_dict(write_pth(path, content, {"0": bytes(4000)}))


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"params": {"a": {"b": 1}}}])
def test_a_file_without_tensors_is_refused(path, content):
    with pytest.raises(UserError, match=r"weights\.pth holds no dictionary of tensors"):
        read_state_dict(write_pth(path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth does not exist"):
        read_state_dict(tmp_path / "absent.pth")


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for other in (tmp_path, tmp_path / "pipe.pth"):
        with pytest.raises(UserError, match=rf"{other} is no file"):
            read_state_dict(other)


@pytest.mark.parametrize("keep", [100, 1000, SAVED_BY_TORCH.stat().st_size - 10])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(SAVED_BY_TORCH.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"weights\.pth is damaged or incomplete"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"garbage garbage", r"is neither .* \(it begins with 'garbage garbage'\)"),
        (b"<!DOCTYPE html>\n\x1b[31m", r"is neither .* \(it begins with '<!DOCTYPE html>.n.x1b\[31'\)"),
        (bytes(1000), r"is neither .* \(it begins with"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), r"is of a format older than PyTorch 1\.6; .* torch\.save"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, suffix, content, reason):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\{suffix} {reason}"):
        read_state_dict(path)


def test_a_damaged_storage_is_refused(path):
    data = bytearray(SAVED_BY_TORCH.read_bytes())
    place = data.index(struct.pack("<3f", 3, 4, 5))
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"weights\.pth is damaged"):
        read_state_dict(path)


def test_a_zip_archive_of_something_else_is_refused(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/readme.txt", "no weights")
    with pytest.raises(UserError, match=r"must hold one data\.pkl, not 0"):
        read_state_dict(path)


def test_big_endian_numbers_are_refused(path):
    write_pth(path, {"a": WHOLE})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match=r"weights\.pth was saved in big-endian byte order"):
        read_state_dict(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(path, method):
    """Two megabytes of compressed zeros are four gigabytes."""
    write_pth(path, {"a": tensor(Storage(10**6), 0, (10**6,), (1,))}, {"1": b""})
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("archive/data/0", bytes(4 * 10**6))
    with pytest.raises(UserError, match=r"compressed members, which torch\.save does not write"):
        read_state_dict(path)


def test_members_that_overlap_are_refused(path):
    """The directory of the archive names the same bytes again and again."""
    write_pth(path, {"a": WHOLE}, {"0": bytes(10**5)})
    with zipfile.ZipFile(path, "a") as archive:
        (storage,) = [member for member in archive.infolist() if member.filename.endswith("data/0")]
        for number in range(100):
            again = zipfile.ZipInfo(f"archive/data/{number + 1}")
            again.header_offset, again.CRC = storage.header_offset, storage.CRC
            again.file_size = again.compress_size = storage.file_size
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(UserError, match="members that overlap"):
        read_state_dict(path)


def test_two_members_of_one_name_are_refused(path):
    write_pth(path, {"a": WHOLE})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", bytes(24))
    with pytest.raises(UserError, match="two members of one name"):
        read_state_dict(path)


def test_an_encrypted_member_is_refused(path):
    data = bytearray(write_pth(path, {"a": WHOLE}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        read_state_dict(path)
