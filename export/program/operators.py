"""torch's operators for quantized tensors, and the types in which they take integers."""

from importlib import import_module
from typing import Any

import torch

from ...qcore import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, NumberFormat

__all__ = ["FLOAT8", "operators", "type_of"]

FLOAT8: dict[NumberFormat, torch.dtype] = {
    E4M3: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    E4M3FNUZ: torch.float8_e4m3fnuz,
    E5M2FNUZ: torch.float8_e5m2fnuz,
}

_SIGNED = (torch.int8, torch.int16, torch.int32)
_UNSIGNED = (torch.uint8, torch.uint16, torch.int32)


def operators() -> Any:
    """The namespace of ``quantized_decomposed``, which torch defines when a module of its own is imported."""
    import_module("torch.ao.quantization.fx._decomposed")
    return torch.ops.quantized_decomposed


def type_of(low: int, high: int, mixes: bool) -> torch.dtype:
    """The smallest type that has all integers of a range.

    Args:
        low: the smallest.
        high: the largest.
        mixes: whether integers meet tensors of another type, as scales and zero points are; uint16 can't.

    Example:
        >>> type_of(-8, 7, True), type_of(0, 255, True), type_of(0, 65535, False), type_of(0, 65535, True)
        (torch.int8, torch.uint8, torch.uint16, torch.int32)
    """
    for each in _SIGNED if low < 0 else _UNSIGNED:
        info = torch.iinfo(each)
        if info.min <= low and high <= info.max and not (mixes and each is torch.uint16):
            return each
    raise AssertionError("wider integers are refused before")
