"""Weights as MatMulNBits takes them: unsigned integers of 2, 4 or 8 bits in bytes, in blocks along the inputs.

The node has no word for what they were before: the name of its weights says it.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Packing", "packed", "unpacked"]

_NAME = re.compile(r"(?P<call>.+)\.(?P<kind>U?INT[248])(?P<transposed>\.transposed)?\.packed")


@dataclass(frozen=True)
class Packing:
    """What packed weights were.

    Args:
        call: the name of the quantizer's call.
        kind: the type of the integers, as ONNX spells it.
        transposed: whether the tensor was (inputs, outputs): the packed one is (outputs, inputs).

    Example:
        >>> Packing("fc.weight_quant", "INT4", transposed=False).name
        'fc.weight_quant.INT4.packed'
        >>> Packing.named("fc.weight_quant.INT4.packed")
        Packing(call='fc.weight_quant', kind='INT4', transposed=False)
    """

    call: str
    kind: str
    transposed: bool

    @property
    def name(self) -> str:
        """Of the initializer."""
        return f"{self.call}.{self.kind}{'.transposed' if self.transposed else ''}.packed"

    @staticmethod
    def named(name: str) -> "Packing | None":
        """What the name of an initializer says; None for other names."""
        found = _NAME.fullmatch(name)
        return None if found is None else Packing(found["call"], found["kind"], found["transposed"] is not None)

    @property
    def bits(self) -> int:
        """Of an integer."""
        return int(self.kind[-1])

    @property
    def middle(self) -> int:
        """What is added to the integers, so that they are unsigned."""
        return 0 if self.kind.startswith("U") else 2 ** (self.bits - 1)

    def turned(self, tensor: Tensor) -> Tensor:
        """A matrix (outputs, inputs) as the tensor was."""
        return tensor.T if self.transposed else tensor


def packed(codes: Tensor, bits: int) -> Tensor:
    """Unsigned integers in bytes, row by row, the first in the lowest bits.

    Example:
        >>> packed(torch.tensor([[1, 2, 3]]), 4).tolist()
        [[33, 3]]
    """
    places = torch.arange(0, 8, bits)
    each = len(places)
    rows, columns = codes.shape
    room = torch.zeros(rows, -(-columns // each) * each, dtype=torch.int64)
    room[:, :columns] = codes
    return (room.reshape(rows, -1, each) << places).sum(2).to(torch.uint8)


def unpacked(numbers: Tensor, bits: int, columns: int) -> Tensor:
    """The integers, uint8, of rows of bytes.

    Example:
        >>> unpacked(torch.tensor([[33, 3]], dtype=torch.uint8), 4, 3).tolist()
        [[1, 2, 3]]
    """
    places = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (numbers[:, :, None] >> places) & (2**bits - 1)
    return codes.flatten(1)[:, :columns]
