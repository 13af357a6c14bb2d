"""The integers that a quantizer may use."""

import inspect
from collections.abc import Callable
from operator import index

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..schedules.anneal import Anneal, Annealed, checked_ends, in_use
from .bounds import int_bounds, representable_bounds
from .integers import Interval, interval

__all__ = ["IntRange", "int_bounds", "representable_bounds"]

MIN_BIT_WIDTH, MAX_BIT_WIDTH = 2, 32


class IntRange:
    """The integers that a quantizer may use, from its attributes ``bit_width``, ``signed`` and ``narrow_range``.

    Inject it (as ``int_range``) into a scaling, statistic or zero point of your own to know the bounds.

    Args:
        bit_width: whole number from 2 to 32, or a module that computes it, such as `LearnedBitWidth`: a 0-d tensor,
            or one width for each channel, in any shape; or a schedule, `Anneal`.
        signed: whether there are negative integers.
        narrow_range: leave out the smallest (signed) or largest (unsigned) integer.

    Raises:
        SettingError: a bit width out of range, a module that computes none, or something that is not a truth value.

    Example:
        >>> four = IntRange(4, signed=True, narrow_range=True)
        >>> four.min_int, four.max_int, four.threshold
        (-7, 7, 7)
    """

    anneals = ("bit_width",)
    width: "int | nn.Module | Anneal | Annealed"

    def __init__(self, bit_width: int | nn.Module | Anneal, signed: bool, narrow_range: bool = False) -> None:
        if isinstance(bit_width, nn.Module):
            self.width = _check_module(bit_width)
        else:
            self.width = checked_ends("bit_width", bit_width, lambda found: check_bit_width("bit_width", found))
        self.signed = check_flag("signed", signed)
        self.narrow_range = check_flag("narrow_range", narrow_range)

    def __str__(self) -> str:
        kind = "int" if self.signed else "uint"
        way = "learned" if isinstance(self.width, nn.Module) else "annealed"
        width = f"{way} {kind}" if self.learned else f"{kind}{self.width}"
        return f"{width} narrow" if self.narrow_range else width

    @property
    def learned(self) -> bool:
        """Whether the bit width changes in training: a module or a schedule computes it."""
        return not isinstance(self.width, int)

    @property
    def bit_width(self) -> int | Tensor:
        """The current bit width: a plain number, a 0-d tensor where a module computes it, or one for each channel."""
        if isinstance(self.width, int):
            return self.width
        if not isinstance(self.width, nn.Module):
            return _rounded(in_use(self.width))
        width = self.width()
        if not isinstance(width, Tensor) or width.ndim == 0:
            return width
        return width.reshape(() if width.numel() == 1 else -1)

    @property
    def widest(self) -> int | Tensor:
        """The largest bit width in use: every integer of every channel is one of so many bits."""
        width = self.bit_width
        return width.amax() if isinstance(width, Tensor) and width.ndim else width

    def bounds(self, shaped: Callable[[Tensor], Tensor] | None = None) -> tuple[int, int] | tuple[Tensor | int, Tensor]:
        """The smallest and the largest integer; tensors where a module computes the bit width.

        Args:
            shaped: gives several bit widths, one for each scale, the shape that the bounds are to have.
        """
        width = self.bit_width
        if shaped is not None and isinstance(width, Tensor) and width.ndim:
            width = shaped(width)
        return int_bounds(width, self.signed, self.narrow_range)  # type: ignore[arg-type]

    @property
    def min_int(self) -> int | Tensor:
        """The smallest integer."""
        return self.bounds()[0]

    @property
    def max_int(self) -> int | Tensor:
        """The largest integer."""
        return self.bounds()[1]

    @property
    def threshold(self) -> int | Tensor:
        """The integer that the largest magnitude is mapped to: scale = magnitude / threshold."""
        low, high = self.bounds()
        return -low if self.signed else high

    @property
    def power(self) -> int | Tensor:
        """The largest power of two among them."""
        return 2 ** (self.bit_width - 1 - int(self.signed))

    @property
    def mantissa_bits(self) -> int | Tensor:
        """Binary digits of the largest integer after the first."""
        return self.bit_width - 1 - int(self.signed)

    @property
    def symmetric(self) -> bool:
        """Whether the ends are as far from 0 on both sides."""
        return self.signed and self.narrow_range

    def settled(self, shaped: Callable[[Tensor], Tensor] | None = None) -> Interval:
        """The integers as they are now, as a number format; see `bounds`."""
        return interval(*self.bounds(shaped))

    @property
    def power_of_two_threshold(self) -> int | Tensor:
        """The same for scales that are powers of two: a power of two itself."""
        return int_bounds(self.bit_width, self.signed, False)[1] + 1  # type: ignore[arg-type]


def _rounded(width: float | Tensor) -> int | Tensor:
    """The whole number of bits of a schedule."""
    return torch.round(width).to(torch.float32) if isinstance(width, Tensor) else round(width)


def check_bit_width(setting: str, bit_width: object, minimum: int = MIN_BIT_WIDTH) -> int:
    """The bit width as an int, or a `SettingError` that says what is possible."""
    expected = f"a whole number from {minimum} to {MAX_BIT_WIDTH}"
    try:
        if isinstance(bit_width, bool) or _is_numpy_bool(bit_width):
            raise TypeError
        width = index(bit_width)  # type: ignore[arg-type]
    except TypeError:
        remedy = ""
        if isinstance(bit_width, float) and minimum <= bit_width <= MAX_BIT_WIDTH:
            remedy = f"Write {setting}={int(bit_width)}."
        raise SettingError(setting, bit_width, expected, remedy) from None
    if width == 1:
        raise SettingError(
            setting,
            bit_width,
            expected,
            "A narrow signed range of 1 bit has no levels but 0: one bit is binary quantization (signs times a "
            f"scale), which is not an integer grid. Write {setting}=2 for the levels -1, 0, 1.",
        )
    if not minimum <= width <= MAX_BIT_WIDTH:
        raise SettingError(setting, bit_width, expected, f"Write {setting}={min(max(width, minimum), MAX_BIT_WIDTH)}.")
    return width


def check_flag(setting: str, flag: object) -> bool:
    """The flag, or a `SettingError`: anything but True and False, Python's or numpy's, is a slip."""
    if flag is True or flag is False:
        return flag
    if _is_numpy_bool(flag):
        return bool(flag)
    raise SettingError(setting, flag, "True or False")


def _is_numpy_bool(found: object) -> bool:
    return str(getattr(found, "dtype", "")) == "bool" and getattr(found, "shape", None) == ()


def _check_module(bit_width: nn.Module) -> nn.Module:
    """A module that computes a bit width, or a `SettingError`: its forward takes nothing."""
    try:
        inspect.signature(bit_width.forward).bind()
    except TypeError:
        raise SettingError(
            "bit_width",
            bit_width,
            f"a whole number from {MIN_BIT_WIDTH} to {MAX_BIT_WIDTH}, or a module whose forward takes no arguments and "
            "returns it",
            "Write bit_width=LearnedBitWidth for one that is learned.",
        ) from None
    return bit_width
