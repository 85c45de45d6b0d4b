"""`.safetensors` files: every type becomes numbers or a sentence, and damage is found."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights import read_state_dict, write_state_dict


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def write(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        ("F64", np.float64),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
        ("F8_E8M0", ml_dtypes.float8_e8m0fnu),
    ],
)
def test_every_floating_type(path, dtype, numpy_dtype):
    """Half precision and less becomes float32."""
    numbers = [1, 0.5, 4, 32]
    data = np.array(numbers, numpy_dtype).tobytes()
    array = read_state_dict(write(path, {"a": entry(dtype, [2, 2], 0, len(data))}, data))["a"]
    expected = np.reshape(numbers, (2, 2)).astype(np.float64 if dtype == "F64" else np.float32)
    np.testing.assert_array_equal(array, expected, strict=True)


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": entry("F4", [2], 0, 1)}, b"\0", "'a' is of the type F4, which cannot be read; save it as F32"),
        ({"a": entry("F6_E2M3", [4], 0, 3)}, b"\0\0\0", "'a' is of the type F6_E2M3, which cannot be read"),
        ({"a": entry("C128", [1], 0, 16)}, bytes(16), "no readable safetensors file .*unknown variant `C128`"),
        ({"a": entry("F32", [2**63, 2**63], 0, 4)}, bytes(4), "no readable safetensors file .*overflow"),
        ({"a": entry("F32", [0, 2**63], 0, 0)}, b"", "a tensor of an impossible shape"),
        ({"a": entry("F32", [1] * 65, 0, 4)}, bytes(4), "a tensor of an impossible shape"),
        ({"a": entry("F32", [-1], 0, 4)}, bytes(4), "no readable safetensors file"),
        ({"a": entry("F32", [1.0], 0, 4)}, bytes(4), "no readable safetensors file"),
        ({"a": entry("F32", [2], 0, 4)}, bytes(4), "no readable safetensors file"),
        ({"a": entry("F32", [1], 4, 0)}, bytes(4), "no readable safetensors file"),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), "no readable safetensors file"),
        ({"a": entry("F32", [1], 0, 4)}, b"", "no readable safetensors file"),
        ({"a": entry("F32", [1], 0, 4)}, bytes(8), "no readable safetensors file"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)}, bytes(8), "no readable safetensors file"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, bytes(4), "no readable safetensors file"),
        ({"a": {}}, b"", "no readable safetensors file"),
        ({"\x1b[31m": entry("XX", [1], 0, 4)}, bytes(4), "no readable safetensors file"),
        ({}, b"", "holds no dictionary of tensors"),
        (b"{", b"", "no readable safetensors file"),
        (b"{" + 10**5 * b'"a":{', b"", "no readable safetensors file"),
        (b'{"a":"\xff"}', b"", "no readable safetensors file"),
    ],
)
def test_a_damaged_file_is_refused(path, header, data, reason):
    with pytest.raises(UserError, match=rf"weights\.safetensors.*{reason}") as error:
        read_state_dict(write(path, header, data))
    assert len(str(error.value)) < 300 + len(str(path))
    assert str(error.value).isprintable()


def test_a_header_longer_than_the_file_is_refused(path):
    for length in (100, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(UserError, match="no readable safetensors file"):
            read_state_dict(path)


def test_every_flipped_byte_of_a_file_of_ours_is_found(path):
    """The format has no check of its own, so the file holds a digest of its arrays."""
    state = {"a.b": np.arange(4, dtype=np.float32).reshape(2, 2), "c": np.ones(2, np.float32)}
    write_state_dict(path, state)
    whole = path.read_bytes()
    unchanged = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            read = read_state_dict(path)
        except UserError:
            continue
        assert read.keys() == state.keys()
        assert all((read[name] == state[name]).all() for name in state)
        unchanged += 1
    assert unchanged < 20  # in the name of the digest, without which the file is one of anybody's


def test_a_file_without_a_digest_is_read(path):
    save_file({"a": np.ones(2, np.float32)}, path, {"format": "pt"})
    np.testing.assert_array_equal(read_state_dict(path)["a"], np.ones(2, np.float32), strict=True)
