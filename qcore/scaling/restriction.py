"""Which scales are allowed, for integers and other levels: any float, powers of two, or two levels of scales.

A restriction is a small object without state; the scaling calls it. Gradients are straight through where it rounds. It
also says in which domain a learned range is stored.
"""

import torch
from torch import Tensor

from ..declare.inject import register_choices
from ..errors import SettingError
from ..formats.minifloat import E4M3
from ..formats.number_format import NumberFormat
from ..kernels.fused import runs_eagerly
from ..protocols import Levels
from ..rounding import HalfEven
from ..tracing import exporting, is_tracing

__all__ = ["RESTRICTIONS", "FloatScale", "LogScale", "MXScale", "PowerOfTwoScale", "TwoLevel", "next_power_of_two"]


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

    def int_threshold(self, number_format: Levels) -> float | Tensor:
        """The integer, or the level, that the magnitude is mapped to."""
        return number_format.threshold

    def scale(self, magnitude: Tensor, number_format: Levels) -> Tensor:
        """The allowed scale with which the levels reach a positive magnitude."""
        return self.restrict(magnitude) / self.int_threshold(number_format)

    def covers(self, number_format: Levels) -> bool:
        """Whether no magnitude up to the one that the scale is made for is clipped, where the ends are symmetric."""
        return True

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

    def int_threshold(self, number_format: Levels) -> float | Tensor:
        return number_format.power_of_two_threshold

    def covers(self, number_format: Levels) -> bool:
        return isinstance(number_format, NumberFormat) and self.rounding == "ceil" and not number_format.whole

    def __repr__(self) -> str:
        return f"PowerOfTwoScale({self.rounding!r})"


_MX_RULES = ("floor", "ceil", "even", "rceil")


class MXScale(FloatScale):
    """Powers of two from 2**-127 to 2**127, which an E8M0 number holds: the scales of microscaling formats.

    The elements of an integer format are its integers over the power of two below the largest: of MXINT8, 64ths.

    Args:
        mx_rule: how the scale X follows from the largest magnitude A of a block, for elements whose highest level is
            M, with the power of two ``2**emax`` below it. ``"floor"``: ``X = 2**floor(log2(A)) / 2**emax`` (OCP
            Microscaling 1.0, 6.3), where the largest values may be clipped; ``"even"``: the same after A was rounded to
            the digits of an element; ``"ceil"``: ``2**ceil(log2(A)) / 2**emax``; ``"rceil"``: ``2**ceil(log2(A / M))``,
            the smallest with which nothing is clipped.

    Raises:
        SettingError: another rule.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> [MXScale(rule).scale(torch.tensor(7.0), E2M1).item() for rule in ("floor", "ceil", "even", "rceil")]
        [1.0, 2.0, 2.0, 2.0]
    """

    def __init__(self, mx_rule: str = "floor") -> None:
        if mx_rule not in _MX_RULES:
            raise SettingError("mx_rule", mx_rule, f"{', '.join(map(repr, _MX_RULES[:-1]))} or {_MX_RULES[-1]!r}")
        self.rule = mx_rule
        self.kind = f"MX ({mx_rule})"

    def restrict(self, magnitude: Tensor) -> Tensor:
        return _straight(magnitude, next_power_of_two(magnitude.detach(), "floor").clamp(_E8M0_LOW, _E8M0_HIGH))

    def int_threshold(self, number_format: Levels) -> float | Tensor:
        return number_format.power

    def scale(self, magnitude: Tensor, number_format: Levels) -> Tensor:
        known, levels = magnitude.detach(), number_format.settled()
        unit = number_format.power if levels.whole else 1
        power = number_format.power / unit
        if self.rule == "rceil":
            found = next_power_of_two((known / (levels.high / unit)).clamp_min(_TINY), "ceil")
        else:
            known = (known / power).clamp_min(_TINY)  # first, so that what follows neither overflows nor vanishes
            if self.rule == "even":
                known = known + next_power_of_two(known, "floor") * 2.0 ** -(number_format.mantissa_bits + 1)
            found = next_power_of_two(known, "ceil" if self.rule == "ceil" else "floor")
        found = found.clamp(_E8M0_LOW, _E8M0_HIGH)
        return _straight(magnitude, found if unit == 1 else found / unit)

    def covers(self, number_format: Levels) -> bool:
        return self.rule in ("ceil", "rceil")

    def __repr__(self) -> str:
        return f"MXScale({self.rule!r})"


_E8M0_LOW, _E8M0_HIGH = 2.0**-127, 2.0**127
_TINY = 2.0**-129  # whatever is rounded from here is below the lowest


class TwoLevel(FloatScale):
    """Scales that are themselves quantized: small floats under one float32 scale of the tensor, as in NVFP4.

    The tensor's scale maps the largest block scale to the highest level of ``scale_format``; a block's scale is never
    below its smallest level above 0.

    Args:
        scale_format: what the scales of blocks are held in.

    Raises:
        SettingError: something that is no number format.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> steps, tensor_scale = TwoLevel().split(torch.tensor([6.0, 3.1]), E2M1)
        >>> steps, tensor_scale
        (tensor([448., 224.]), tensor(0.0022))
        >>> torch.equal(TwoLevel().scale(torch.tensor([6.0, 3.1]), E2M1), steps * tensor_scale)
        True
    """

    def __init__(self, scale_format: NumberFormat = E4M3) -> None:
        if not isinstance(scale_format, NumberFormat):
            raise SettingError("scale_format", scale_format, "a number format such as E4M3")
        self.scale_format = scale_format
        self.kind = f"two-level ({scale_format})"
        self._least = min(level for level in scale_format.levels if 0 < level < float("inf"))
        self._high = scale_format.high

    def split(self, magnitude: Tensor, number_format: Levels) -> tuple[Tensor, Tensor]:
        """The scales of blocks as levels of ``scale_format``, and the scale of the tensor that they are multiples of.

        Args:
            magnitude: one for each block of the tensor, all of them.
            number_format: of the elements.
        """
        if not is_tracing() and magnitude.numel() == 0:
            return magnitude, magnitude.new_ones(())
        threshold = number_format.threshold
        tensor_scale = magnitude.reshape(-1).amax(0) / (threshold * self._high)
        steps = (magnitude / threshold / tensor_scale).clamp_min(self._least)
        return self.scale_format.nearest(steps, _HALF_EVEN), tensor_scale

    def scale(self, magnitude: Tensor, number_format: Levels) -> Tensor:
        steps, tensor_scale = self.split(magnitude.detach(), number_format)
        return _straight(magnitude, steps * tensor_scale)

    def covers(self, number_format: Levels) -> bool:
        return False

    def __repr__(self) -> str:
        return f"TwoLevel({self.scale_format})"


_HALF_EVEN = HalfEven()


def _straight(magnitude: Tensor, scale: Tensor) -> Tensor:
    """The scale, whose gradient is that of the magnitude times their ratio."""
    if not magnitude.requires_grad:
        return scale
    known = magnitude.detach()
    return scale + (magnitude - known) * (scale / known)


def next_power_of_two(magnitude: Tensor, rounding: str = "ceil") -> Tensor:
    """The power of two above, below or nearest to a positive magnitude, exactly.

    Example:
        >>> next_power_of_two(torch.tensor([4.0, 4.1, 5.7]), "round")
        tensor([4., 4., 8.])
    """
    if exporting():  # frexp is no operator of ONNX, and logarithms are inexact: corrected, they are exact
        power = torch.exp2(torch.floor(torch.log2(magnitude)))
        power = torch.where(power > magnitude, power * 0.5, power)
        power = torch.where(power * 2 <= magnitude, power * 2, power)
        if rounding == "round":
            return torch.where(magnitude / power >= 1.4142135623730951, power * 2, power)
        return torch.where(power < magnitude, power * 2, power) if rounding == "ceil" else power
    if magnitude.dtype == torch.float32 and runs_eagerly(magnitude):
        bits = magnitude.double().view(torch.int64)  # where no float32 is subnormal; half the time of `frexp`
        return bits.add_(_CARRY[rounding]).bitwise_and_(_EXPONENT).view(torch.float64).float()
    mantissa, exponent = torch.frexp(magnitude)  # magnitude = mantissa * 2**exponent, mantissa in [0.5, 1)
    drop = {"ceil": mantissa <= 0.5, "floor": mantissa < 1, "round": mantissa < 0.7071067811865476}[rounding]
    return torch.ldexp(torch.ones_like(magnitude), exponent - drop.to(exponent.dtype))


_EXPONENT = 0x7FF0000000000000  # of a double
_CARRY = {"floor": 0, "ceil": (1 << 52) - 1, "round": (1 << 52) - (0x3504F3 << 29)}  # from the mantissa: 1.4142135...

RESTRICTIONS = register_choices(
    "restriction",
    {"float": FloatScale, "log": LogScale, "power_of_two": PowerOfTwoScale, "mx": MXScale, "two_level": TwoLevel},
)
