"""What a target takes: one record for each, which exports, reports and tables read."""

from dataclasses import dataclass, field

from torch import nn

from ...qcore import NumberFormat
from ...qcore.models import shown
from ..errors import ExportError

__all__ = ["PLACES", "Accepts", "Target"]

PLACES = ("tensor", "axis", "group")  # one scale; one for each index of a dimension; one for each group along one


@dataclass(frozen=True)
class Accepts:
    """What a target takes of one kind of quantizer: that of weights, of activations, or of biases.

    Args:
        formats: number formats that it has. Others go in where one of these has all of their levels.
        tables: the most bits of codes that a table of levels may stand beside; 0 for no tables.
        any_levels: whether levels that none of the formats has are computed all the same, as float32 numbers.
        whole: whether levels must be all integers of a range, or one of ``formats``: -1 and 1 without 0 are no range.
        narrow_unsigned: whether unsigned integers may leave out their largest.
        exact: whether integers must be of a width in ``formats``; by default narrower ones go in, too.
        scales: who may share a scale: some of ``"tensor"``, ``"axis"``, ``"group"`` (along one dimension) and
            ``"other"``.
        scale_rules: the scales allowed, by the beginning of their names, such as ``"power of two"``; None for any.
        zero_points: whether there may be zero points.
        float_zero_points: whether these may lie between two integers.
        dynamic: whether scales may follow the input.
        saturates: whether what rounds past the ends of levels stops there; otherwise it may become infinite or NaN.
        computes: whether the target works the numbers out; otherwise it is handed codes, however they came about.
        roundings: the names of those it can do; None for all that are alike at every call.

    Raises:
        ExportError: something else.

    Example:
        >>> from bitwright.qcore import Integers
        >>> byte = Accepts((Integers(8), Integers(8, False)), scales=("tensor",))
        >>> byte.widest, byte.holds(Integers(3)), byte.holds(Integers(9))
        (8, True, False)
    """

    formats: tuple[NumberFormat, ...]
    tables: int = 0
    any_levels: bool = False
    whole: bool = False
    narrow_unsigned: bool = True
    exact: bool = False
    scales: tuple[str, ...] = PLACES
    scale_rules: tuple[str, ...] | None = None
    zero_points: bool = True
    float_zero_points: bool = False
    dynamic: bool = False
    saturates: bool = True
    computes: bool = True
    roundings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.formats, tuple) and all(isinstance(each, NumberFormat) for each in self.formats)):
            raise ExportError(
                f"Accepts(formats={_written(self.formats)}): write a tuple of number formats, such as (Integers(8), "
                "E4M3)."
            )
        if not self.formats and not (self.tables or self.any_levels):
            raise ExportError("Accepts(formats=()) takes nothing. Write the number formats, such as (Integers(8),).")
        unknown = [each for each in _tuple("scales", self.scales) if each not in (*PLACES, "other")]
        if unknown or not self.scales:
            raise ExportError(
                f"Accepts(scales={self.scales!r}): scales are shared by a 'tensor', an index of an 'axis' or a "
                "'group', or in a way that is none of these, 'other'."
            )
        for name in ("scale_rules", "roundings"):
            if getattr(self, name) is not None:
                _tuple(name, getattr(self, name))

    @property
    def widest(self) -> int:
        """The most bits of integers."""
        return max((each.bits for each in self.formats if each.whole), default=0)

    def holds(self, number_format: NumberFormat) -> bool:
        """Whether a tensor with these levels can be held."""
        if self.whole and not number_format.whole:
            return number_format in self.formats
        if self.any_levels and not number_format.whole:
            return True
        if self.exact:
            return any(_same(each, number_format) for each in self.formats)
        return any(each.holds(number_format) for each in self.formats) or (
            not number_format.whole and number_format.bits <= self.tables
        )


def _written(given: object) -> str:
    return str(given) if isinstance(given, NumberFormat) else shown(given)


def _tuple(name: str, given: object) -> tuple[str, ...]:
    if isinstance(given, tuple) and all(isinstance(each, str) for each in given):
        return given
    raise ExportError(f"Accepts({name}={given!r}): write a tuple of names, such as ({_EXAMPLES[name]!r},).")


_EXAMPLES = {"scales": "tensor", "scale_rules": "power of two", "roundings": "half_even"}


def _same(own: NumberFormat, asked: NumberFormat) -> bool:
    return own == asked or (own.bits == asked.bits and own.holds(asked))


@dataclass(frozen=True)
class Target:
    """Something that models go out to: a kind of file, a compiler, a chip. One of your own is one record.

    Args:
        name: for messages.
        weights: what it takes of weights.
        activations: what it takes of what flows.
        biases: what it takes of biases that are quantized.
        float_biases: whether biases may stay floats.
        accumulator_bits: of the sums of products; None where they are wide enough for all.
        refused_layers: types of layers that have no place in it, and for each what to write instead.
        call: the function that exports to it.
        elsewhere: the function that takes number formats that it lacks.

    Raises:
        ExportError: something else.

    Example:
        >>> from bitwright.qcore import Integers
        >>> int8, int32 = (Accepts((Integers(bits),), scales=("tensor",), zero_points=False) for bits in (8, 32))
        >>> npu = Target("my chip", weights=int8, activations=int8, biases=int32, accumulator_bits=24)
        >>> npu.weights.widest, npu.role("bias").widest
        (8, 32)
    """

    name: str
    weights: Accepts
    activations: Accepts
    biases: Accepts
    float_biases: bool = True
    accumulator_bits: int | None = None
    refused_layers: tuple[tuple[type[nn.Module], str], ...] = field(default=())
    call: str | None = None
    elsewhere: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name):
            raise ExportError(f"Target(name={shown(self.name)}): a target has a name, such as 'my chip'.")
        for role in ("weights", "activations", "biases"):
            if not isinstance(getattr(self, role), Accepts):
                raise ExportError(
                    f"Target({role}={shown(getattr(self, role))}): write what {self.name} takes of {role}, such as "
                    "Accepts((Integers(8),), scales=('tensor',))."
                )
        bits = self.accumulator_bits
        if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 64):
            raise ExportError(
                f"Target(accumulator_bits={shown(bits)}): {self.name} has accumulators of 2 to 64 bits, or None for "
                "any sum."
            )
        for each in self.refused_layers:
            pair = isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], str)
            if not (pair and isinstance(each[0], type) and issubclass(each[0], nn.Module)):
                raise ExportError(
                    f"Target(refused_layers=...) has {shown(each)}. Write a type of layers and what to write instead: "
                    "(nn.LSTM, 'it has no loops. Unroll it.')."
                )

    def role(self, role: str) -> Accepts:
        """What it takes of a ``"weight"``, an ``"activation"`` or a ``"bias"``."""
        return {"weight": self.weights, "activation": self.activations, "bias": self.biases}[role]
