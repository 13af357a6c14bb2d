"""Codes in machine words as compressed-tensors lays them out: row by row, the first code in the lowest bits."""

import torch
from torch import Tensor

from ...integer.packing import pack_integers

__all__ = ["in_bytes", "in_words"]

WORD = 32  # bits


def in_words(codes: Tensor, bit_width: int) -> Tensor:
    """Integers as unsigned ones, without gaps; each row fills whole words, with zeros at its end.

    Args:
        codes: signed integers: (rows, columns). They are written with ``2**(bit_width - 1)`` added.
        bit_width: bits for each.

    Returns:
        int32: (rows, ``ceil(columns * bit_width / 32)``).

    Example:
        >>> in_words(torch.tensor([[-8, -7, 7]]), 4), in_words(torch.tensor([[-4, 3]]), 3)
        (tensor([[3856]], dtype=torch.int32), tensor([[56]], dtype=torch.int32))
    """
    rows, columns = codes.shape
    offset = codes.cpu().to(torch.int32) + 2 ** (bit_width - 1)
    filled = torch.nn.functional.pad(offset, (0, -columns % WORD))  # so that every row has whole words
    words = pack_integers(filled, bit_width, signed=False).view(torch.int32).reshape(rows, -1)
    return words[:, : -(-columns * bit_width // WORD)].contiguous()


def in_bytes(codes: Tensor, bit_width: int) -> Tensor:
    """Codes of small floats without gaps, in rows that fill whole bytes.

    Args:
        codes: (rows, columns), as many columns as fill whole bytes.
        bit_width: bits for each.

    Returns:
        uint8: (rows, ``columns * bit_width / 8``).

    Example:
        >>> in_bytes(torch.tensor([[1, 15, 2, 0]]), 4)
        tensor([[241,   2]], dtype=torch.uint8)
    """
    return pack_integers(codes, bit_width, signed=False).reshape(codes.shape[0], -1)
