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
from ..tensor_file import Described

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
        scale: the type of the scales, such as ``"float32"``; ``"e8m0"`` for powers of two in a byte each;
            ``"two_level"`` for codes of E4M3, under one number that their levels are multiples of.
        scale_shape: of the scales.
        zero_point: ``"packed"`` like the codes, a type, or None.
        fixed: whether the grid is fixed when the file is loaded; else the quantizer's own state says it.

    Example:
        >>> form = Form("0.weight", (4, 8), "int4 narrow", 4, True, "float32", (4, 1), None, True)
        >>> form.tensors()["codes"]
        Described(dtype=torch.uint8, shape=(16,))
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

    @classmethod
    def of(cls, key: str, coded: Coded, fixed: bool) -> "Form":
        """The form for a weight."""
        grid, levels = coded.grid, coded.grid.number_format
        zero_point = None
        if grid.zero_point is not None:
            zero_point = "packed" if levels.whole else _name(grid.zero_point.dtype)
        return cls(
            key,
            tuple(coded.codes.shape),
            str(levels),
            int(grid.bit_width),
            levels.whole and levels.signed,
            _kind(grid),
            tuple(grid.scale.shape),
            zero_point,
            fixed,
        )

    def tensors(self) -> dict[str, Described]:
        """What tensors there are."""
        scales = torch.Size(self.scale_shape).numel()
        found = {"codes": self._packed(torch.Size(self.shape).numel())}
        found["scale"] = Described(_FLOATS.get(self.scale, torch.uint8), self.scale_shape)
        if self.scale == "two_level":
            found["scale_unit"] = Described(torch.float32, ())
        if self.zero_point is not None:
            packs = self.zero_point == "packed"
            found["zero_point"] = self._packed(scales) if packs else found["scale"]
        return found

    def _packed(self, count: int) -> Described:
        return Described(torch.uint8, (-(-count * self.bit_width // 8),))


_FLOATS = {"float32": torch.float32, "float64": torch.float64}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(grid: Grid) -> str:
    """How the scales are held."""
    if grid.scales is not None:
        return "two_level"
    halves, above = torch.frexp(grid.scale.detach())
    fits = (halves == 0.5) & (above > -BIAS) & (above <= BIAS + 1)
    return "e8m0" if grid.scale.dtype == torch.float32 and bool(fits.all()) else _name(grid.scale.dtype)


def packed(form: Form, coded: Coded) -> dict[str, Tensor]:
    """The tensors of a weight.

    Example:
        >>> grid = Grid(torch.tensor([[0.5], [4.0]]))
        >>> codes = torch.tensor([[3], [-2]], dtype=torch.int8)
        >>> coded = Coded(codes, grid)
        >>> form = Form.of("weight", coded, fixed=True)
        >>> form.scale, packed(form, coded)["scale"]
        ('e8m0', tensor([[126],
                [129]], dtype=torch.uint8))
    """
    grid, scale = coded.grid, coded.grid.scale.detach().cpu()
    tensors = {"codes": pack_integers(coded.codes, form.bit_width, form.signed), "scale": scale}
    scales = grid.scales
    if scales is not None:
        tensors |= {"scale": scales.to_int(grid.scale).cpu(), "scale_unit": scales.scale.detach().cpu()}
    elif form.scale == "e8m0":
        tensors["scale"] = in_a_byte(scale)
    if grid.zero_point is not None:
        zero_point = grid.zero_point.detach().expand_as(grid.scale).cpu()
        packs = form.zero_point == "packed"
        tensors["zero_point"] = pack_integers(zero_point.long(), form.bit_width, form.signed) if packs else zero_point
    return tensors


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
    unaligned = form.zero_point not in (None, "packed")
    levels = UnalignedIntegers(form.bit_width) if unaligned else quant.number_format.snapshot()
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


def row_of(name: str, form: Form) -> StorageRow:
    """The row of a report for a quantizer.

    Example:
        >>> form = Form("0.weight", (4, 64), "int4 narrow", 4, True, "float32", (4, 1), None, True)
        >>> row_of("0.weight_quant", form).bytes
        144
    """
    kinds = {"float32": "FLOAT", "float64": "DOUBLE", "e8m0": "FLOAT8E8M0", "two_level": "bytes under one FLOAT"}
    count = torch.Size(form.scale_shape).numel()
    stored_as = f"{form.bit_width} bits of {form.number_format}"
    size = sum(each.nbytes for each in form.tensors().values())
    return StorageRow(name, form.shape, stored_as, f"{count} x {kinds[form.scale]}", size)
