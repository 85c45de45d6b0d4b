"""Thousands of mutated weights files: each is an error of one sentence or right, and nothing else changes.

Everything is drawn from a seed, so that a failure can be repeated.
"""

import collections
import pickletools
import random
import time
import tracemalloc
import types
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from pth_files import TORCH_UTILS, Call, Storage, pickled, tensor, write_pth

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights import read_state_dict, torch_format, torch_pickle, write_state_dict

SAVED_BY_TORCH = Path(__file__).parent / "golden" / "torch_saved.pth"
FILES = 600  # of each kind
NUMBERS = np.arange(1000, 1024, dtype=np.float32)  # in the storage of the files whose pickle is mutated


def snapshot():
    """What a hostile pickle could have changed: functions, tables and types that live in this process."""
    seen = {}
    for module in (torch_pickle, torch_format, collections, types.SimpleNamespace(dtypes=torch_pickle.DTYPES)):
        for name, value in vars(module).items():
            if isinstance(value, type):
                seen[name] = dict(vars(value))
            elif callable(value):
                attributes = ("__code__", "__defaults__", "__kwdefaults__")
                seen[name] = [getattr(value, key, None) for key in attributes], dict(getattr(value, "__dict__", {}))
            elif isinstance(value, dict | set | frozenset | list):
                seen[name] = value.copy()
    probe = np.array([1.5, -2])
    return (
        seen,
        [(str(dtype), dtype.num, dtype.itemsize) for dtype in torch_pickle.DTYPES.values()],
        [probe.astype(dtype).astype(np.float64).tolist() for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn)],
    )


@pytest.fixture(autouse=True)
def nothing_changes_and_nothing_is_large():
    before = snapshot()
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert snapshot() == before
    assert peak < 2**25


def read(path):
    """The arrays of a file, or None where it is refused; fails for a slow answer and a long one."""
    start = time.process_time()
    try:
        return read_state_dict(path)
    except UserError as error:
        message = str(error)
        assert len(message) < 400 + len(str(path))
        assert message.isprintable()
        return None
    finally:
        assert time.process_time() - start < 5


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` with one thing changed."""
    place = rng.randrange(len(data))
    end = min(len(data), place + rng.choice((1, 1, 4, 30, 300)))
    return rng.choice(
        (
            lambda: data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :],
            lambda: data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :],
            lambda: data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :],
            lambda: data[:place],
            lambda: data[:place] + data[end:],
            lambda: data[:end] + data[place:],
            lambda: data[:place] + rng.randbytes(end - place) + data[place:],
            lambda: data[:place] + bytes(end - place) + data[end:],
        )
    )()


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


@pytest.mark.parametrize("kind", ["torch", "ours", "safetensors"])
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path, kind):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "torch":
        path.write_bytes(SAVED_BY_TORCH.read_bytes())
    else:
        write_state_dict(path, {"a": NUMBERS.reshape(4, 6), "b.c": NUMBERS[:5], "scalar": NUMBERS[0]})
    whole, expected = path.read_bytes(), read_state_dict(path)
    rng = random.Random(0)
    refused = 0
    for _ in range(FILES):
        path.write_bytes(mutated(whole, rng))
        arrays = read(path)
        if arrays is None:
            refused += 1
        else:
            assert_same(arrays, expected)
    assert FILES / 2 < refused < FILES  # most of a file matters, and dates and the like do not


CONTENT = {
    "params": collections.OrderedDict(
        whole=tensor(Storage(24), 0, (4, 6), (6, 1)),
        view=tensor(Storage(24), 3, (2, 3), (1, 5)),
        parameter=Call(TORCH_UTILS._rebuild_parameter, tensor(Storage(24), 0, (), ()), True, {}),
    ),
    "step": 3,
    "rates": [0.1, None, True],
}


def names_only_what_is_there(path, pickle_bytes) -> bool:
    """Whether a file of this pickle is read, which must give nothing but numbers that it holds."""
    arrays = read(write_pth(path, pickle_bytes, {"0": NUMBERS.tobytes()}))
    for array in (arrays or {}).values():
        assert array.nbytes <= NUMBERS.nbytes * 8
        if array.dtype == np.float32:
            assert np.isin(array, NUMBERS).all()
    return arrays is not None


def test_a_mutated_pickle_gives_nothing_but_numbers_of_the_file(tmp_path):
    """The archive around it is whole, so that its checksums do not find the change."""
    rng = random.Random(1)
    data = pickled(CONTENT)
    read_files = sum(names_only_what_is_there(tmp_path / "w.pth", mutated(data, rng)) for _ in range(FILES))
    assert FILES / 20 < read_files < FILES


def opcodes_of(data: bytes) -> list[bytes]:
    places = [place for _, _, place in pickletools.genops(data)]
    return [data[start:end] for start, end in zip(places, [*places[1:], len(data)], strict=True)]


NAMES = [
    b"torch\nFloatStorage",
    b"torch\nBFloat16Storage",
    b"torch\nfloat32",
    b"torch._utils\n_rebuild_tensor_v2",
    b"collections\nOrderedDict",
    b"posix\nsystem",
]
STATES = [b"}X\x01\x00\x00\x00aK\x01sb", b"N}X\x01\x00\x00\x00aK\x01s\x86b"]
NUMBER_OPCODES = [b"K\x00", b"K\xff", b"J\xff\xff\xff\xff", b"\x8a\x09" + bytes(8) + b"\x01", b"G" + bytes(8)]
MEMO_OPCODES = [code + bytes([index]) for code in (b"h", b"q") for index in range(20)]
LARGE = [b"r\xff\xff\xff\x7f", b"j\xff\xff\xff\x7f", b"\x8e" + bytes(8), b"\x96" + bytes(8)]
EVERY_OPCODE = [bytes([code]) for code in range(256)]
PIECES = [*(b"c" + name + b"\n" for name in NAMES), *STATES, *NUMBER_OPCODES, *MEMO_OPCODES, *LARGE, *EVERY_OPCODE]


def test_inserted_and_exchanged_opcodes_give_nothing_but_numbers_of_the_file(tmp_path):
    rng = random.Random(2)
    original = opcodes_of(pickled(CONTENT))
    read_files = 0
    for _ in range(FILES):
        program = list(original)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place, other = rng.randrange(1, len(program)), rng.randrange(1, len(program))
            match rng.randrange(5):
                case 0 | 1:
                    program.insert(place, rng.choice(PIECES))
                case 2:
                    program[place] = rng.choice(PIECES)
                case 3:
                    program[place], program[other] = program[other], program[place]
                case 4:
                    del program[place : place + rng.randrange(4)]
        read_files += names_only_what_is_there(tmp_path / "w.pth", b"".join(program))
    assert FILES / 20 < read_files < FILES


def drawn(rng: random.Random, depth: int = 0):
    """Any object that a pickle can describe, tensors above all, with impossible arguments among the possible."""

    def number():
        return rng.choice((0, 1, 2, 3, 6, 24, -1, 25, 2**31, 2**63, True, 1.0, None, "0", (), (1,)))

    def numbers():
        return tuple(number() for _ in range(rng.randrange(4)))

    match rng.randrange(12 if depth < 4 else 6):
        case 0 | 1:
            return number()
        case 2:
            return Storage(rng.choice((24, 24, 24, number())), key=rng.choice(("0", "0", "1", "../0", 0)))
        case 3:
            return tensor(Storage(24), number(), numbers(), numbers())
        case 4:
            shape = rng.choice(((4, 6), (24,), (2, 2, 2), ()))
            return tensor(Storage(24), 0, shape, tuple(rng.choice((0, 1, 2, 6)) for _ in shape))
        case 5:
            return numbers()
        case 6:
            return tensor(drawn(rng, depth + 1), number(), drawn(rng, depth + 1), numbers())
        case 7:
            return Call(TORCH_UTILS._rebuild_parameter, drawn(rng, depth + 1), False, {})
        case 8:
            return [drawn(rng, depth + 1) for _ in range(rng.randrange(3))]
        case 9:
            return tuple(drawn(rng, depth + 1) for _ in range(rng.randrange(3)))
        case 10:
            return Call(collections.OrderedDict, *(drawn(rng, depth + 1) for _ in range(rng.randrange(2))))
        case 11:
            return {rng.choice("abc"): drawn(rng, depth + 1) for _ in range(rng.randrange(3))}


def test_files_of_any_structure_give_nothing_but_numbers_of_the_file(tmp_path):
    rng = random.Random(3)
    read_files = sum(
        names_only_what_is_there(tmp_path / "w.pth", pickled({"a": drawn(rng), "b": drawn(rng)})) for _ in range(FILES)
    )
    assert FILES / 50 < read_files < FILES


def test_members_of_any_sizes_are_refused_or_read(tmp_path):
    """Every number in the directory of the archive takes every value that could mislead."""
    path = write_pth(tmp_path / "w.pth", CONTENT, {"0": NUMBERS.tobytes()})
    whole, expected = path.read_bytes(), read_state_dict(path)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    for place in range(start, len(whole) - 4):
        for value in (0, 1, 2**16 - 1, 2**31, 2**32 - 1):
            path.write_bytes(whole[:place] + value.to_bytes(4, "little") + whole[place + 4 :])
            arrays = read(path)
            if arrays is not None:
                assert_same(arrays, expected)
