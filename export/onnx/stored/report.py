"""What the stored tensors of a file take."""

import os
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from ..comparing.disk import opened
from .reading import FileReader, Held

if TYPE_CHECKING:
    import onnx
    import torch

__all__ = ["StorageReport", "StorageRow", "storage_report"]


@dataclass(frozen=True)
class StorageRow:
    """One stored tensor.

    Attributes:
        name: path of the quantizer.
        shape: of the tensor.
        stored_as: its type, such as ``FLOAT8E4M3FN``, or the type of its codes and the size of their table; of what
            ``fast=True`` packs, its type and ``in MatMulNBits``.
        scales: how many, and their type.
        bytes: of its numbers or codes, scales and zero points; tables are shared by tensors, and not counted here.

    Example:
        >>> StorageRow("fc.weight_quant", (4, 64), "INT4", "8 x FLOAT", 160).bits_per_weight
        5.0
    """

    name: str
    shape: tuple[int, ...]
    stored_as: str
    scales: str
    bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits for each number, scales and zero points included."""
        return 8 * self.bytes / max(prod(self.shape), 1)


@dataclass(frozen=True)
class StorageReport:
    """All stored tensors of a file.

    Attributes:
        rows: one for each tensor.
        table_bytes: of the tables of levels, which tensors share.

    Example:
        >>> rows = (StorageRow("0.weight_quant", (4, 64), "INT4", "8 x FLOAT", 160),)
        >>> print(StorageReport(rows, 64))
        160 bytes in 1 stored tensor, 64 bytes of tables
        tensor          numbers  bits each  stored as  scales
        0.weight_quant      256          5  INT4       8 x FLOAT
    """

    rows: tuple[StorageRow, ...]
    table_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Of all tensors, without tables."""
        return sum(row.bytes for row in self.rows)

    def __str__(self) -> str:
        count = f"{len(self.rows)} stored tensor{'' if len(self.rows) == 1 else 's'}"
        tables = f", {self.table_bytes} bytes of tables" if self.table_bytes else ""
        lines = [("tensor", "numbers", "bits each", "stored as", "scales")]
        for row in self.rows:
            lines.append((row.name, str(prod(row.shape)), f"{row.bits_per_weight:.4g}", row.stored_as, row.scales))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(f"{each:{side}{width}}" for each, side, width in zip(line, "<>><<", widths, strict=True))
            for line in lines
        ]
        return "\n".join([f"{self.bytes} bytes in {count}{tables}", *map(str.rstrip, aligned)])


def storage_report(program: "torch.onnx.ONNXProgram | onnx.ModelProto | str | os.PathLike[str]") -> StorageReport:
    """How an exported file stores each weight, bias and table: the type, the scales, the bits for each number.

    Args:
        program: what an export returned, the path of a file, or an ``onnx.ModelProto``.

    Returns:
        A `StorageReport`, which prints as a table.

    Raises:
        ExportError: not an exported model.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.export import export_onnx_qdq
        >>> from bitwright.quantizers import NF4Weight
        >>> layer = qnn.QuantLinear(64, 8, bias=False, weight_quant=NF4Weight)
        >>> print(storage_report(export_onnx_qdq(layer, torch.randn(2, 64))))
        288 bytes in 1 stored tensor, 64 bytes of tables
        tensor        numbers  bits each  stored as                         scales
        weight_quant      512        4.5  UINT4 codes + table of 16 levels  8 x FLOAT
    """
    with opened("storage_report", program) as file:
        reader = FileReader(file.graph, "storage_report", file.folder)
    held = [each for each in reader.held() if each.codes is not None]
    tables = {each.table for each in held if each.table is not None}
    return StorageReport(tuple(_row(reader, each) for each in held), sum(map(reader.nbytes, tables)))


def _row(reader: FileReader, held: Held) -> StorageRow:
    assert held.codes is not None
    form = reader.kind(held.codes) if held.packed is None else f"{held.packed.kind} in MatMulNBits"
    if held.table is not None:
        form = f"{form} codes + table of {reader.shape(held.table)[0]} levels"
    scales = f"{prod(reader.shape(held.scale))} x {reader.kind(held.scale)}"
    size = sum(map(reader.nbytes, (held.codes, held.scale, held.unit, held.zero_point)))
    under = "" if held.unit is None else " under one FLOAT"
    return StorageRow(held.name, reader.stored_shape(held), form, scales + under, size)
