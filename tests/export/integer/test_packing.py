import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.export import ExportError, pack_integers, unpack_integers
from bitwright.qcore.formats.int_range import int_bounds


@given(st.data(), st.integers(1, 32), st.booleans(), st.lists(st.integers(0, 5), min_size=0, max_size=3))
def test_round_trip(data, bits, signed, shape):
    low, high = int_bounds(bits, signed, False)
    count = torch.Size(shape).numel()
    numbers = data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    codes = torch.tensor(numbers, dtype=torch.int64).reshape(shape)
    packed = pack_integers(codes, bits, signed)
    assert packed.dtype is torch.uint8
    assert packed.shape == (-(-count * bits // 8),)
    assert torch.equal(unpack_integers(packed, bits, signed, tuple(shape)).to(torch.int64), codes)


@given(st.data(), st.integers(1, 32), st.booleans())
def test_packing_is_one_stream_of_bits(data, bits, signed):
    low, high = int_bounds(bits, signed, False)
    numbers = data.draw(st.lists(st.integers(low, high), min_size=1, max_size=20))
    stream = sum((number % 2**bits) << index * bits for index, number in enumerate(numbers))
    expected = stream.to_bytes(-(-len(numbers) * bits // 8), "little")
    assert bytes(pack_integers(torch.tensor(numbers), bits, signed).tolist()) == expected


@pytest.mark.parametrize("bits", [3, 4])
def test_many_numbers(bits):
    codes = torch.arange(2**17 * 2 + 5) % 2**bits - 2 ** (bits - 1)
    packed = pack_integers(codes, bits, signed=True)
    assert torch.equal(unpack_integers(packed, bits, True, tuple(codes.shape)).to(torch.int64), codes)


@pytest.mark.parametrize(
    ("bits", "numbers", "expected"),
    [
        (2, [1, -2, 0, -1, 1], [0b11_00_10_01, 0b01]),
        (3, [3, -4, 1], [0b01_100_011, 0]),
        (4, [1, -2, 7], [0xE1, 0x07]),
        (8, [-1, 5], [0xFF, 5]),
        (16, [-2, 258], [0xFE, 0xFF, 0x02, 0x01]),
    ],
)
def test_bytes(bits, numbers, expected):
    assert pack_integers(torch.tensor(numbers), bits, signed=True).tolist() == expected


def test_halves_and_quarters_are_onnx_types():
    onnx = pytest.importorskip("onnx")
    numpy = pytest.importorskip("numpy")
    codes = torch.tensor([3, -8, 7, 0, -1])
    tensor = onnx.helper.make_tensor("x", onnx.TensorProto.INT4, [5], codes.numpy().astype(numpy.int8))
    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
    assert raw == bytes(pack_integers(codes, 4, signed=True).tolist())


def test_a_number_too_large():
    with pytest.raises(ExportError) as raised:
        pack_integers(torch.tensor([3, 8]), 4, signed=True)
    assert str(raised.value) == "pack_integers(bit_width=4): 8 is not among the signed integers of 4 bits, -8 to 7."


def test_bytes_missing():
    with pytest.raises(ExportError) as raised:
        unpack_integers(torch.zeros(3, dtype=torch.uint8), 4, True, (4, 2))
    assert str(raised.value) == (
        "unpack_integers(shape=(4, 2)): 3 bytes are given, and 8 integers of 4 bits are 4. The file is damaged, "
        "or not ours."
    )
