"""How a packed file holds a weight: codes without gaps, scales in a byte where that is exact, zero points."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ....qcore import E4M3, Grid, GridQuant
from ....qcore.aliases import Keywords
from ....qcore.formats.unaligned import UnalignedIntegers
from ...integer.packing import pack_integers, unpack_integers
from ...onnx.stored.report import StorageRow
from ..stored_weights import Coded

__all__ = ["Form", "in_a_byte", "of_a_byte", "packed", "row_of", "scales", "unpacked"]

BIAS = 127  # of E8M0: code 127 stands for 1


class Form(NamedTuple):
    """How the tensors of one weight are to be read.

    Args:
        key: the name of the parameter in the state dict.
        shape: of the weight as its quantizer sees it.
        number_format: its levels, in words.
        bit_width: bits of a code.
        signed: whether codes are in two's complement.
        scale: ``"float"``, ``"e8m0"`` (powers of two in a byte each), or ``"two_level"``: codes of another format,
            and the one number that their levels are multiples of.
        scale_shape: of the scales.
        zero_point: ``"packed"`` like the codes, ``"float"``, or None.
        fixed: whether the grid is fixed when the file is loaded; else the quantizer's own state says it.

    Example:
        >>> Form("0.weight", (4, 8), "int4 narrow", 4, True, "float", (4, 1), None, True).scale
        'float'
    """

    key: str
    shape: tuple[int, ...]
    number_format: str
    bit_width: int
    signed: bool
    scale: str
    scale_shape: tuple[int, ...]
    zero_point: str | None
    fixed: bool

    @classmethod
    def read(cls, entry: Keywords) -> "Form":
        """The form of an entry of a file."""
        lists = {name: tuple(each) for name, each in entry.items() if isinstance(each, list)}
        return cls(**{**entry, **lists})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors that there must be, and their shapes."""
        count, scales = torch.Size(self.shape).numel(), torch.Size(self.scale_shape).numel()
        found = {"codes": (-(-count * self.bit_width // 8),), "scale": self.scale_shape}
        if self.scale == "two_level":
            found["scale_unit"] = ()
        if self.zero_point is not None:
            packs = self.zero_point == "packed"
            found["zero_point"] = (-(-scales * self.bit_width // 8),) if packs else self.scale_shape
        return found


def packed(key: str, coded: Coded, fixed: bool) -> tuple[Form, dict[str, Tensor]]:
    """The tensors of a weight, and how to read them.

    Example:
        >>> grid = Grid(torch.tensor([[0.5], [4.0]]))
        >>> codes = torch.tensor([[3], [-2]], dtype=torch.int8)
        >>> form, tensors = packed("weight", Coded(codes, grid, grid.from_int(codes)), fixed=True)
        >>> form.scale, tensors["scale"]
        ('e8m0', tensor([[126],
                [129]], dtype=torch.uint8))
    """
    grid, levels = coded.grid, coded.grid.number_format
    width, signed = int(grid.bit_width), levels.whole and levels.signed
    tensors = {"codes": pack_integers(coded.codes, width, signed)}
    scale = grid.scale.detach().cpu()
    halves, above = torch.frexp(scale.float())
    small = bool(((halves == 0.5) & (above > -BIAS) & (above <= BIAS + 1)).all()) and scale.dtype == torch.float32
    kind = "float"
    if grid.scales is not None:
        kind, tensors["scale"] = "two_level", grid.scales.to_int(grid.scale).cpu()
        tensors["scale_unit"] = grid.scales.scale.detach().cpu()
    elif small:
        kind, tensors["scale"] = "e8m0", in_a_byte(scale)
    else:
        tensors["scale"] = scale
    zero_point, held = grid.zero_point, None
    if zero_point is not None:
        zero_point = zero_point.detach().expand_as(grid.scale).cpu()
        held = "packed" if levels.whole else "float"
        tensors["zero_point"] = pack_integers(zero_point, width, signed) if levels.whole else zero_point.contiguous()
    shape = tuple(coded.codes.shape)
    form = Form(key, shape, str(levels), width, signed, kind, tuple(scale.shape), held, fixed)
    return form, tensors


def scales(form: Form, tensors: Mapping[str, Tensor], quant: object) -> tuple[Tensor, Tensor | None]:
    """The scales and zero points that tensors of a file stand for.

    Args:
        form: how to read them.
        tensors: by what they are.
        quant: the quantizer that is to have them.
    """
    scale = tensors["scale"]
    if form.scale == "e8m0":
        scale = of_a_byte(scale)
    elif form.scale == "two_level":
        levels = getattr(quant, "_scale_format", None) or E4M3
        scale = Grid(tensors["scale_unit"], None, levels).from_int(scale)
    zero_point = tensors.get("zero_point")
    if form.zero_point == "packed":
        assert zero_point is not None
        zero_point = unpack_integers(zero_point, form.bit_width, form.signed, form.scale_shape).to(scale.dtype)
    return scale, zero_point


def unpacked(form: Form, tensors: Mapping[str, Tensor], quant: GridQuant) -> Tensor:
    """The values that tensors of a file stand for, as the quantizer sees the weight; see `scales`."""
    scale, zero_point = scales(form, tensors, quant)
    levels = UnalignedIntegers(form.bit_width) if form.zero_point == "float" else quant.number_format.snapshot()
    grid = Grid(scale, zero_point, levels, quant.granularity)
    return grid.from_int(unpack_integers(tensors["codes"], form.bit_width, form.signed, form.shape))


def in_a_byte(scale: Tensor) -> Tensor:
    """The codes of powers of two in E8M0, the scales of Microscaling: the exponent, plus 127.

    Example:
        >>> in_a_byte(torch.tensor([1.0, 0.25]))
        tensor([127, 125], dtype=torch.uint8)
    """
    return (torch.frexp(scale)[1] - 1 + BIAS).to(torch.uint8)


def of_a_byte(codes: Tensor) -> Tensor:
    """The powers of two of codes.

    Example:
        >>> of_a_byte(torch.tensor([127, 125], dtype=torch.uint8))
        tensor([1.0000, 0.2500])
    """
    return torch.ldexp(torch.ones(codes.shape), codes.to(torch.int32) - BIAS)


def row_of(name: str, form: Form, sizes: Mapping[str, int]) -> StorageRow:
    """The row of a report.

    Args:
        name: of the quantizer.
        form: how the weight is held.
        sizes: the bytes of each tensor.

    Example:
        >>> form = Form("0.weight", (4, 64), "int4 narrow", 4, True, "float", (4, 1), None, True)
        >>> print(row_of("0.weight_quant", form, {"codes": 128, "scale": 16}).scales)
        4 x FLOAT
    """
    kinds = {"float": "FLOAT", "e8m0": "FLOAT8E8M0", "two_level": "bytes under one FLOAT"}
    count = torch.Size(form.scale_shape).numel()
    stored_as = f"{form.bit_width} bits of {form.number_format}"
    return StorageRow(name, form.shape, stored_as, f"{count} x {kinds[form.scale]}", sum(sizes.values()))
