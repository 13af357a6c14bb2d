"""From sums of products to the integers of the next grid: by float scales, by multiplier and shift, or by shift."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ...qcore import Ceil, Floor, HalfEven, HalfUp, StochasticRounding, TowardZero
from ...qcore.errors import nearest
from ..capture.grid import IntegerGrid
from ..errors import ExportError
from .reference.tensor import IntegerTensor

__all__ = ["REQUANTIZATIONS", "ByMultiplier", "ByScale", "ByShift", "multiplier_and_shift", "requantization"]


class ByScale:
    """By float32 scales: ``round(sum * scale / next_scale) + zero_point``, as the fake-quantized model does it.

    A sum is converted to float32, multiplied by its scale, and divided by that of the next grid.

    Example:
        >>> from bitwright.export.integer.reference.journal import Journal
        >>> from bitwright.export.integer.reference.terms import Term
        >>> x = IntegerTensor((Term(torch.tensor([5, 99]), torch.tensor(0.25)),), Journal())
        >>> ByScale()(x, IntegerGrid("act", torch.tensor(0.5), torch.tensor(0), 4, signed=False), HalfEven())
        tensor([ 2, 15])
    """

    def __call__(self, x: Tensor, grid: IntegerGrid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """The integers of ``x`` on a grid, int64."""
        return grid.codes(x.value if isinstance(x, IntegerTensor) else x, rounding)


class ByMultiplier:
    """By an integer multiplier and a right shift, which is all that hardware without floats needs.

    The ratio of the scales becomes ``multiplier / 2**shift`` with a multiplier of so many bits, the same shift for all
    terms of a sum; what is shifted out decides the rounding, exactly. Where the scales are powers of two, the
    multiplier is 1. Tensors that are floats (the model's input) are quantized by scale.

    Args:
        bits: of the multiplier.

    Example:
        >>> from bitwright.export.integer.reference.journal import Journal
        >>> from bitwright.export.integer.reference.terms import Term
        >>> x = IntegerTensor((Term(torch.tensor([5, 99]), torch.tensor(0.25)),), Journal())
        >>> ByMultiplier()(x, IntegerGrid("act", torch.tensor(0.5), torch.tensor(0), 4, signed=False), HalfEven())
        tensor([ 2, 15])
    """

    def __init__(self, bits: int = 31) -> None:
        self.bits = bits

    def __call__(self, x: Tensor, grid: IntegerGrid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        """The integers of ``x`` on a grid, int64."""
        if not isinstance(x, IntegerTensor):
            return ByScale()(x, grid, rounding)
        shifted = _ROUNDINGS.get(type(rounding))
        if shifted is None:
            known = ", ".join(repr(each.name) for each in _ROUNDINGS)
            raise ExportError(
                f"{grid.name}: {self._name} has no rounding {_name(rounding)}. Write rounding= one of {known}, or "
                "requantize='scale'."
            )
        ratios = self._ratios(x, grid)
        multipliers, shift = multiplier_and_shift(torch.broadcast_tensors(*ratios), self.bits)
        self._check(multipliers, grid)
        reach = sum(
            int(term.codes.abs().max()) * int(each.max())
            for term, each in zip(x.terms, multipliers, strict=True)
            if term.codes.numel()
        )
        if reach >= 2**63:
            bits = max(int(each.max()).bit_length() for each in multipliers) - (reach.bit_length() - 63)
            raise ExportError(
                f"{grid.name}: the sum of its input times the multiplier reaches {reach}, more than 64 bits. Write "
                f"requantize=ByMultiplier(bits={bits})."
            )
        total = sum(term.codes * each for term, each in zip(x.terms, multipliers, strict=True))
        assert isinstance(total, Tensor)
        codes = shifted(total, shift) + grid.spread(total)[1]
        for bound, clamp in ((x.low, torch.maximum), (x.high, torch.minimum)):
            if bound is not None:  # rounding keeps order, so the bound may be rounded in place of the values
                end = ByScale()(torch.full((1,) * x.ndim, bound, device=x.device), grid, rounding)
                codes = clamp(codes, end)
        return codes.clamp(*grid.bounds)

    _name = "requantize='multiplier'"

    def _ratios(self, x: IntegerTensor, grid: IntegerGrid) -> list[Tensor]:
        scale, _ = grid.spread(x)
        return [term.scale.double() / scale.double() for term in x.terms]

    def _check(self, multipliers: list[Tensor], grid: IntegerGrid) -> None:
        """Whether the multipliers may be used."""


class ByShift(ByMultiplier):
    """By a shift alone, for scales that are powers of two; others are refused.

    Example:
        >>> from bitwright.export.integer.reference.journal import Journal
        >>> from bitwright.export.integer.reference.terms import Term
        >>> x = IntegerTensor((Term(torch.tensor([5, 99]), torch.tensor(0.25)),), Journal())
        >>> ByShift()(x, IntegerGrid("act", torch.tensor(0.6), torch.tensor(0), 4, signed=False), HalfEven())
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: act: requantize='shift' needs scales that are powers of two, and the \
ratio of input scale to scale 0.6 is none. Write act_quant=Uint8ActPowerOfTwo and the like for every quantizer, or \
requantize='multiplier'.
    """

    _name = "requantize='shift'"

    def _check(self, multipliers: list[Tensor], grid: IntegerGrid) -> None:
        if any(bool((each & (each - 1) != 0).any()) for each in multipliers):
            raise ExportError(
                f"{grid.name}: requantize='shift' needs scales that are powers of two, and the ratio of input scale to "
                f"scale {grid.scale.reshape(-1)[0].item():.6g} is none. Write act_quant=Uint8ActPowerOfTwo and the "
                "like for every quantizer, or requantize='multiplier'."
            )


Requantization = Callable[[Tensor, IntegerGrid, Callable[[Tensor], Tensor]], Tensor]
REQUANTIZATIONS: dict[str, Callable[[], Requantization]] = {
    "scale": ByScale,
    "multiplier": ByMultiplier,
    "shift": ByShift,
}


def requantization(choice: str | Requantization) -> Requantization:
    """The callable for a name, or the callable itself."""
    if callable(choice):
        return choice
    if choice in REQUANTIZATIONS:
        return REQUANTIZATIONS[choice]()
    close = nearest(str(choice), REQUANTIZATIONS)
    hint = f" Did you mean {close!r}?" if close else ""
    known = ", ".join(map(repr, REQUANTIZATIONS))
    raise ExportError(f"requantize={choice!r} is not possible: expected one of {known}, or a callable.{hint}")


def multiplier_and_shift(ratios: Iterable[Tensor], bits: int = 31) -> tuple[list[Tensor], Tensor]:
    """Integers for ratios: ``ratio = multiplier / 2**shift``, as near as ``bits`` bits come.

    Args:
        ratios: positive float64 tensors of one shape, which share a shift in each place; the largest has all the bits.
        bits: of the multiplier.

    Returns:
        The multipliers, int64, without common factors of two; and the shift, which is negative for large ratios.

    Example:
        >>> multiplier_and_shift([torch.tensor(0.3, dtype=torch.float64)], bits=8)
        ([tensor(77)], tensor(8))
        >>> multiplier_and_shift([torch.tensor(2**-7, dtype=torch.float64)])
        ([tensor(1)], tensor(7))
    """
    largest = torch.stack(list(ratios)).amax(0)
    mantissa, exponent = torch.frexp(largest)
    exponent = exponent + (torch.ldexp(mantissa, torch.tensor(bits)).round() >= 2**bits)  # rounds up to the next power
    shift = (bits - exponent).clamp_max(62).to(torch.int64)
    multipliers = [torch.ldexp(each, shift).round().to(torch.int64) for each in ratios]
    together = torch.zeros_like(shift)
    for each in multipliers:
        together = together | each
    lowest = (together & -together).clamp_min(1)  # the common factor of two
    trailing = torch.log2(lowest.double()).to(torch.int64)
    return [each >> trailing for each in multipliers], shift - trailing


# Roundings of ``total / 2**shift``, on integers. A shift below 0 multiplies.


def _floor(total: Tensor, shift: Tensor) -> Tensor:
    return (total << (-shift).clamp_min(0)) >> shift.clamp_min(0)


def _ceil(total: Tensor, shift: Tensor) -> Tensor:
    return -_floor(-total, shift)


def _toward_zero(total: Tensor, shift: Tensor) -> Tensor:
    return total.sign() * _floor(total.abs(), shift)


def _remainder(total: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The floor, twice what lies above it, and one step."""
    floor = _floor(total, shift)
    up = shift.clamp_min(0)
    return floor, 2 * (torch.where(shift > 0, total, 0) - torch.where(shift > 0, floor << up, 0)), 1 << up


def _half_even(total: Tensor, shift: Tensor) -> Tensor:
    floor, twice, step = _remainder(total, shift)
    return floor + ((twice > step) | ((twice == step) & (floor & 1 == 1))).to(torch.int64)


def _half_up(total: Tensor, shift: Tensor) -> Tensor:
    floor, twice, step = _remainder(total, shift)
    return floor + (twice >= step).to(torch.int64)


_ROUNDINGS: dict[type, Callable[[Tensor, Tensor], Tensor]] = {
    HalfEven: _half_even,
    HalfUp: _half_up,
    Floor: _floor,
    Ceil: _ceil,
    TowardZero: _toward_zero,
    StochasticRounding: _half_even,  # in evaluation
}


def _name(rounding: object) -> str:
    return repr(getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__))
