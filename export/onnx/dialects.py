"""The dialects of ONNX that quantized models are written in, each one record."""

from dataclasses import dataclass

__all__ = ["BLOCKS", "EXPORTER_OPSET", "QCDQ", "QDQ", "Dialect", "Storage"]

BLOCKS = 21  # the first opset whose DequantizeLinear has a block_size
EXPORTER_OPSET = 18  # the oldest that torch.onnx.export writes without converting


@dataclass(frozen=True)
class Storage:
    """An integer type of ONNX.

    Args:
        name: as ONNX spells it.
        bits: its width.
        opset: the first whose QuantizeLinear and DequantizeLinear take it.
        ir_version: the first version of the file format that has it.
        clips: whether onnxruntime can clip integers of it.
    """

    name: str
    bits: int
    opset: int
    ir_version: int = 8
    clips: bool = False

    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer.

        Example:
            >>> QDQ.storage(3, signed=True).bounds()
            (-8, 7)
        """
        if self.name.startswith("U"):
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Dialect:
    """One dialect: which integer types it stores quantized tensors in.

    Args:
        name: for messages.
        types: the types it uses, narrow ones first.
        clips_integers: whether a tensor narrower than its type goes through Clip between the two nodes, so that a
            reader of the file sees its bit width; otherwise values are clipped before QuantizeLinear.
    """

    name: str
    types: tuple[Storage, ...]
    clips_integers: bool

    def storage(self, bits: int, signed: bool) -> Storage | None:
        """The narrowest type that holds integers of so many bits, or None.

        Example:
            >>> QCDQ.storage(4, signed=False).name, QDQ.storage(4, signed=False).name, QDQ.storage(17, signed=True)
            ('UINT8', 'UINT4', None)
        """
        fitting = (each for each in self.types if each.bits >= bits and each.name.startswith("U") != signed)
        return next(fitting, None)

    @property
    def widest(self) -> int:
        """The most bits that a quantized tensor may have."""
        return max(each.bits for each in self.types)


_EIGHT_AND_SIXTEEN = (
    Storage("INT8", 8, 10, clips=True),
    Storage("UINT8", 8, 10, clips=True),
    Storage("INT16", 16, 21, 10),
    Storage("UINT16", 16, 21, 10),
)

QCDQ = Dialect("QCDQ", _EIGHT_AND_SIXTEEN, clips_integers=True)

QDQ = Dialect(
    "QDQ",
    (
        Storage("INT2", 2, 25, 13),
        Storage("UINT2", 2, 25, 13),
        Storage("INT4", 4, 21, 10),
        Storage("UINT4", 4, 21, 10),
        *_EIGHT_AND_SIXTEEN,
    ),
    clips_integers=False,
)

BIAS = Storage("INT32", 32, 10)
