"""How a file computes an activation at run time: by QuantizeLinear, or by the traced arithmetic of its format."""

from collections.abc import Sequence
from typing import NamedTuple

from ....qcore import GridQuant, Integers
from ....qcore.formats.number_format import NumberFormat
from ....qcore.granularity import Granularity
from ...capture.grid import place_of
from ...capture.record import Call
from ..dialects import BLOCKS, EXPORTER_OPSET, Dialect, Storage

__all__ = ["Plan", "needs_clipping", "plan_of", "static_shape"]


class Plan(NamedTuple):
    """How one call of a quantizer is computed.

    Args:
        storage: the type that holds its codes; None where its levels stay float32 numbers.
        native: whether QuantizeLinear rounds to them itself; otherwise the arithmetic of the format is traced.
        follows: whether the scale follows the input, and is computed in the file.
        axis: the dimension along which scales vary, None for one scale.
        block: how many neighbours along it share a scale, None where a whole index does.
    """

    storage: Storage | None
    native: bool
    follows: bool = False
    axis: int | None = None
    block: int | None = None

    @property
    def opset(self) -> int:
        """The oldest opset that has what it takes."""
        stored = EXPORTER_OPSET if self.storage is None else self.storage.opset
        return max(EXPORTER_OPSET, stored, BLOCKS if self.block is not None else 0)


def plan_of(call: Call, dialect: Dialect) -> Plan:
    """How a call of an activation's quantizer is computed.

    Args:
        call: the call.
        dialect: the dialect.
    """
    number_format = call.grid.number_format
    own = _own_type(number_format, dialect)
    if call.follows_input:
        axis, block = _place(call.grid.granularity, call.codes.shape)
        native = own is not None and call.half_even and axis != -1
        return Plan(own, True, True, axis, block) if native else Plan(None, False, True)
    axis, _ = place_of(call.grid, call.codes.shape)
    if own is not None:
        return Plan(own, call.half_even, axis=axis)
    return Plan(_wider_type(number_format, dialect), False, axis=axis)


def _place(granularity: Granularity, shape: Sequence[int]) -> tuple[int | None, int | None]:
    """Axis and block of scales that follow the input, for all sizes that are left open; axis -1 where none fits."""
    if granularity.single or granularity.axis is not None:
        return (None if granularity.axis is None else granularity.axis % len(shape)), None
    block = granularity.block(shape)
    shared = [dim for dim, size in enumerate(block) if size > 1] or [len(shape) - 1]
    return (shared[0], block[shared[0]]) if len(shared) == 1 else (-1, None)


def _own_type(number_format: NumberFormat, dialect: Dialect) -> Storage | None:
    """The type to which QuantizeLinear rounds as the format does."""
    if isinstance(number_format, Integers):
        return dialect.storage(number_format.bits, number_format.signed)
    return next((each for each in dialect.types if each.levels == number_format), None)


def _wider_type(number_format: NumberFormat, dialect: Dialect) -> Storage | None:
    """A type that has all levels, of the oldest opset; None where there is none."""
    fitting = (each for each in dialect.types if each.holds(number_format))
    return min(fitting, key=lambda each: each.opset, default=None)


def needs_clipping(call: Call, storage: Storage, dialect: Dialect) -> bool:
    """Whether values have to be clipped before QuantizeLinear, whose type has more integers that might be reached."""
    number_format = call.grid.number_format
    if not isinstance(number_format, Integers) or number_format.bounds == storage.bounds():
        return False
    covered = isinstance(call.quantizer, GridQuant) and call.quantizer._covered()
    return not (covered or (dialect.clips_integers and storage.clips))


def static_shape(plan: Plan, shape: Sequence[object]) -> bool:
    """Whether the size of blocks is known while the model is traced."""
    return plan.block is None or plan.axis is None or isinstance(shape[plan.axis], int)
