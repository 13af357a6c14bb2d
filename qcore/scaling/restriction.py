"""Which scales are allowed: any float, or powers of two; and in which domain a learned one is stored.

A restriction is a small object without state; the scaling calls it. Gradients are straight through where it rounds.
"""

import torch
from torch import Tensor

from ..declare.inject import register_choices
from ..errors import SettingError
from ..formats.int_range import IntRange

__all__ = ["RESTRICTIONS", "FloatScale", "LogScale", "PowerOfTwoScale", "next_power_of_two"]


class FloatScale:
    """Any positive scale; a learned range is stored as it is.

    Example:
        >>> FloatScale().restrict(torch.tensor(0.3))
        tensor(0.3000)
    """

    kind = "float"  # what a saved scheme says of it

    def restrict(self, magnitude: Tensor) -> Tensor:
        """The allowed value for a positive magnitude."""
        return magnitude

    def store(self, magnitude: Tensor) -> Tensor:
        """The number that a parameter holds for a magnitude."""
        return magnitude

    def load(self, stored: Tensor) -> Tensor:
        """The magnitude of a parameter, always positive."""
        return stored.abs()

    def int_threshold(self, int_range: IntRange) -> int | Tensor:
        """The integer that the magnitude is mapped to."""
        return int_range.threshold

    def scale(self, magnitude: Tensor, int_range: IntRange) -> Tensor:
        """The allowed scale with which the integers reach a positive magnitude."""
        return self.restrict(magnitude) / self.int_threshold(int_range)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class LogScale(FloatScale):
    """Any positive scale; a learned range is stored as its base-2 logarithm, so that steps are relative.

    Example:
        >>> LogScale().load(LogScale().store(torch.tensor(0.25)))
        tensor(0.2500)
    """

    kind = "log"

    def store(self, magnitude: Tensor) -> Tensor:
        return torch.log2(magnitude)

    def load(self, stored: Tensor) -> Tensor:
        return torch.exp2(stored)


class PowerOfTwoScale(FloatScale):
    """Scales that are powers of two, so that hardware shifts instead of multiplying; exact, not by logarithms.

    Args:
        power_of_two_rounding: which power is taken, ``"ceil"`` (default: nothing more is clipped), ``"floor"`` or
            ``"round"`` (to nearest in the logarithm).

    Raises:
        SettingError: another way to round.

    Example:
        >>> PowerOfTwoScale().restrict(torch.tensor([0.3, 0.5, 3.0]))
        tensor([0.5000, 0.5000, 4.0000])
        >>> PowerOfTwoScale("floor").restrict(torch.tensor([0.3, 0.5, 3.0]))
        tensor([0.2500, 0.5000, 2.0000])
    """

    def __init__(self, power_of_two_rounding: str = "ceil") -> None:
        if power_of_two_rounding not in ("ceil", "floor", "round"):
            raise SettingError("power_of_two_rounding", power_of_two_rounding, "'ceil', 'floor' or 'round'")
        self.rounding = power_of_two_rounding
        self.kind = f"power of two ({power_of_two_rounding})"

    def restrict(self, magnitude: Tensor) -> Tensor:
        power = next_power_of_two(magnitude.detach(), self.rounding)
        return power + (magnitude - magnitude.detach()) * (power / magnitude.detach())

    def int_threshold(self, int_range: IntRange) -> int | Tensor:
        return int_range.power_of_two_threshold

    def __repr__(self) -> str:
        return f"PowerOfTwoScale({self.rounding!r})"


def next_power_of_two(magnitude: Tensor, rounding: str = "ceil") -> Tensor:
    """The power of two above, below or nearest to a positive magnitude, exactly.

    Example:
        >>> next_power_of_two(torch.tensor([4.0, 4.1, 5.7]), "round")
        tensor([4., 4., 8.])
    """
    mantissa, exponent = torch.frexp(magnitude)  # magnitude = mantissa * 2**exponent, mantissa in [0.5, 1)
    drop = {"ceil": mantissa <= 0.5, "floor": mantissa < 1, "round": mantissa < 0.7071067811865476}[rounding]
    return torch.ldexp(torch.ones_like(magnitude), exponent - drop.to(exponent.dtype))


RESTRICTIONS = register_choices("restriction", {"float": FloatScale, "log": LogScale, "power_of_two": PowerOfTwoScale})
