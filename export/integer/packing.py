"""Integers of any width as bytes, without gaps.

The integers of a tensor, in row-major order, are one stream of bits: number *i* of width *b* has the bits *i b* to
*i b + b - 1*, its lowest bit first, in two's complement where it is signed. Bit *k* of the stream is bit *k mod 8* (of
value 2 to the *k mod 8*) of byte *k div 8*, and the last byte is filled up with zeros. So 8, 16 and 32 bits are plain
little-endian integers, and 2 and 4 bits lie as ONNX packs INT2 and INT4: the first number in the lowest bits.
"""

from math import gcd

import torch
from torch import Tensor

from ...qcore.formats.int_range import int_bounds
from ...qcore.formats.integers import storage_dtype
from ..errors import ExportError

__all__ = ["pack_integers", "unpack_integers"]

CHUNK = 2**17  # numbers at a time, which fill whole bytes: pieces of them take up to 64 times the space


def pack_integers(codes: Tensor, bit_width: int, signed: bool) -> Tensor:
    """The bytes of integers.

    Args:
        codes: integers of any shape.
        bit_width: bits for each, 1 to 32.
        signed: whether they are in two's complement.

    Returns:
        A 1-d uint8 tensor of ``ceil(codes.numel() * bit_width / 8)`` bytes.

    Raises:
        ExportError: a number that so many bits don't hold.

    Example:
        >>> pack_integers(torch.tensor([1, -2, 7]), 4, signed=True)
        tensor([225,   7], dtype=torch.uint8)
    """
    numbers = codes.detach().cpu().reshape(-1)
    low, high = int_bounds(bit_width, signed, False)
    if numbers.numel() and (int(numbers.min()) < low or int(numbers.max()) > high):
        worst = int(numbers.min()) if int(numbers.min()) < low else int(numbers.max())
        kind = "signed" if signed else "unsigned"
        raise ExportError(
            f"pack_integers(bit_width={bit_width}): {worst} is not among the {kind} integers of {bit_width} bits, "
            f"{low} to {high}."
        )
    return torch.cat([_packed(each, bit_width) for each in numbers.split(CHUNK)])


def unpack_integers(packed: Tensor, bit_width: int, signed: bool, shape: tuple[int, ...]) -> Tensor:
    """The integers that `pack_integers` wrote, in the smallest integer type that holds their range.

    Args:
        packed: 1-d uint8.
        bit_width: bits for each.
        signed: whether they are in two's complement.
        shape: of the result.

    Raises:
        ExportError: another number of bytes than the shape needs.

    Example:
        >>> unpack_integers(torch.tensor([225, 7], dtype=torch.uint8), 4, signed=True, shape=(3,))
        tensor([ 1, -2,  7], dtype=torch.int8)
    """
    count = torch.Size(shape).numel()
    needed = -(-count * bit_width // 8)
    if packed.numel() != needed:
        raise ExportError(
            f"unpack_integers(shape={tuple(shape)}): {packed.numel()} bytes are given, and {count} integers of "
            f"{bit_width} bits are {needed}. The file is damaged, or not ours."
        )
    dtype = storage_dtype(*int_bounds(bit_width, signed, False))
    parts = packed.split(CHUNK * bit_width // 8)
    numbers = [_unpacked(each, bit_width, signed).to(dtype) for each in parts]
    return torch.cat(numbers)[:count].reshape(shape)


def _packed(numbers: Tensor, bit_width: int) -> Tensor:
    unit = gcd(bit_width, 8)  # bits that lie in one byte together
    pieces = (
        numbers.to(torch.int64)[:, None] >> torch.arange(0, bit_width, unit) & 2**unit - 1
    )  # (count, bit_width / unit)
    padded = torch.zeros(-(-pieces.numel() * unit // 8) * 8 // unit, dtype=torch.int64)
    padded[: pieces.numel()] = pieces.reshape(-1)
    return (padded.reshape(-1, 8 // unit) << torch.arange(0, 8, unit)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, bit_width: int, signed: bool) -> Tensor:
    """As many numbers as the bytes hold whole, the bits that fill up the last byte included."""
    unit = gcd(bit_width, 8)
    pieces = (packed.to(torch.int64)[:, None] >> torch.arange(0, 8, unit) & 2**unit - 1).reshape(-1)
    each = bit_width // unit
    pieces = pieces[: pieces.numel() // each * each].reshape(-1, each)
    numbers = (pieces << torch.arange(0, bit_width, unit)).sum(1)
    return numbers - (numbers >> bit_width - 1 << bit_width) if signed else numbers
