"""The dialects of ONNX that quantized models are written in, each one record."""

from dataclasses import dataclass

from ...qcore import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, Integers, NumberFormat

__all__ = ["BLOCKS", "EXPORTER_OPSET", "INTEGER", "LATEST_OPSET", "QCDQ", "QDQ", "Dialect", "Storage", "StoredAs"]

BLOCKS = 21  # the first opset whose DequantizeLinear has a block_size
EXPORTER_OPSET = 18  # the oldest that torch.onnx.export writes without converting
LATEST_OPSET = 27  # the last whose QuantizeLinear and DequantizeLinear onnxruntime runs


@dataclass(frozen=True)
class Storage:
    """A type of ONNX that quantized tensors are stored in.

    Args:
        name: as ONNX spells it.
        levels: the numbers that it has.
        opset: the first whose QuantizeLinear and DequantizeLinear take it.
        ir_version: the first version of the file format that has it.
        clips: whether onnxruntime can clip integers of it.
    """

    name: str
    levels: NumberFormat
    opset: int
    ir_version: int = 8
    clips: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> int:
        """Its width."""
        return self.levels.bits

    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest number.

        Example:
            >>> QDQ.storage(3, signed=True).bounds()
            (-8, 7)
        """
        return self.levels.low, self.levels.high

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether all levels of a number format are numbers of this type.

        Example:
            >>> from bitwright.qcore import E2M1
            >>> byte, float8 = (each for each in QDQ.types if each.name in ("INT8", "FLOAT8E4M3FN"))
            >>> byte.holds(E2M1), float8.holds(E2M1), byte.holds(Integers(4))
            (False, True, True)
        """
        own = self.levels
        return own.holds(number_format) and (not own.whole or own.signed == number_format.signed)


@dataclass(frozen=True)
class StoredAs:
    """How a file holds the numbers of a stored tensor: in a type that has them, or as codes beside a table of levels.

    Args:
        storage: the type, of the numbers or of the codes.
        levels: how many the table has; None where there is no table.

    Example:
        >>> from bitwright.qcore import E4M3, NF4
        >>> print(QDQ.stored_as(E4M3), QDQ.stored_as(NF4), sep="; ")
        FLOAT8E4M3FN; UINT4 codes + table of 16 levels
    """

    storage: Storage
    levels: int | None = None

    def __str__(self) -> str:
        if self.levels is None:
            return self.storage.name
        return f"{self.storage.name} codes + table of {self.levels} levels"


@dataclass(frozen=True)
class Dialect:
    """One dialect: which types it stores quantized tensors in.

    Args:
        name: for messages.
        types: the types it uses, narrow ones first.
        clips_integers: whether a tensor narrower than its type goes through Clip between the two nodes, so that a
            reader of the file sees its bit width; otherwise values are clipped before QuantizeLinear.
        tables: whether stored tensors may be codes beside a table of levels.
    """

    name: str
    types: tuple[Storage, ...]
    clips_integers: bool
    tables: bool = False

    def storage_for(self, number_format: NumberFormat) -> Storage | None:
        """The narrowest type that has all levels of a number format, or None.

        Example:
            >>> from bitwright.qcore import BINARY, E2M1, NF4
            >>> [QDQ.storage_for(each).name for each in (Integers(3), E2M1, BINARY)], QDQ.storage_for(NF4)
            (['INT4', 'FLOAT8E4M3FN', 'INT2'], None)
        """
        return next((each for each in self.types if each.holds(number_format)), None)

    def stored_as(self, number_format: NumberFormat) -> StoredAs | None:
        """How a stored tensor of a number format is held, in the fewest bits for each number; or None.

        A type that has the levels goes before codes of as many bits, and a table has any levels.

        Example:
            >>> from bitwright.qcore import E2M1, E3M2
            >>> print(QDQ.stored_as(E2M1), QDQ.stored_as(E3M2), QCDQ.stored_as(E2M1), sep="; ")
            UINT4 codes + table of 16 levels; FLOAT8E4M3FN; None
        """
        held = self.storage_for(number_format)
        if number_format.whole or not self.tables:
            return None if held is None else StoredAs(held)
        codes = self.storage(number_format.bits, signed=False)
        if held is not None and (codes is None or held.bits <= codes.bits):
            return StoredAs(held)
        return None if codes is None else StoredAs(codes, len(number_format.levels))

    def storage(self, bits: int, signed: bool) -> Storage | None:
        """The narrowest type that holds integers of so many bits, or None.

        Example:
            >>> QCDQ.storage(4, signed=False).name, QDQ.storage(4, signed=False).name, QDQ.storage(17, signed=True)
            ('UINT8', 'UINT4', None)
        """
        return self.storage_for(Integers(bits, signed))

    @property
    def widest(self) -> int:
        """The most bits that quantized integers may have."""
        return max(each.bits for each in self.types)


_EIGHT = (
    Storage("INT8", Integers(8), 10, clips=True),
    Storage("UINT8", Integers(8, False), 10, clips=True),
)

_SIXTEEN = (
    Storage("INT16", Integers(16), 21, 10),
    Storage("UINT16", Integers(16, False), 21, 10),
)

QCDQ = Dialect("QCDQ", (*_EIGHT, *_SIXTEEN), clips_integers=True)

QDQ = Dialect(
    "QDQ",
    (
        Storage("INT2", Integers(2), 25, 13),
        Storage("UINT2", Integers(2, False), 25, 13),
        Storage("INT4", Integers(4), 21, 10),
        Storage("UINT4", Integers(4, False), 21, 10),
        *_EIGHT,
        Storage("FLOAT8E4M3FN", E4M3, 19, 9),
        Storage("FLOAT8E5M2", E5M2, 19, 9),
        Storage("FLOAT8E4M3FNUZ", E4M3FNUZ, 19, 9),
        Storage("FLOAT8E5M2FNUZ", E5M2FNUZ, 19, 9),
        *_SIXTEEN,
    ),
    clips_integers=False,
    tables=True,
)

INTEGER = Dialect("the integer dialect", _EIGHT, clips_integers=True)

BIAS = Storage("INT32", Integers(32), 10)
