"""Which statistic chooses the range of which quantizer."""

from typing import Any

from torch import Tensor

from ...qcore import AbsMax, GridQuant, MinMax, RangeZeroPoint
from ...qcore.errors import SettingError
from ...qcore.protocols import Statistic, checked
from ..errors import GraphError
from .levels import Levels
from .thresholds import DataStatistic, Entropy, Percentile, SquaredError

__all__ = ["statistic_of"]

_OF_DATA = {"percentile": Percentile, "mse": SquaredError, "kl": Entropy}
_EXTREMES = ("min_max", "abs_max")


class _Extremes:
    """The smallest interval that holds every value and 0; in float64, so that all batches give that of all data."""

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.amax(1).double().clamp(min=0) - self.low(rows)

    def low(self, rows: Tensor) -> Tensor:
        return rows.amin(1).double().clamp(max=0)

    def __repr__(self) -> str:
        return "MinMax()"


class _Largest:
    """The largest value of each row, for integers that are never negative; 0 where all are."""

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.amax(1).clamp(min=0)

    def __repr__(self) -> str:
        return "Max()"


def statistic_of(given: Any, path: str, quant: GridQuant) -> Statistic | DataStatistic:
    """The statistic that measures a quantizer, from what `calibrate` was given.

    Args:
        given: None for the quantizer's own, a name, or a statistic.
        path: of the quantizer.
        quant: the quantizer.

    Raises:
        GraphError: it is none, or it can't serve this quantizer.

    Example:
        >>> import bitwright.nn as qnn
        >>> statistic_of("min_max", "act_quant", qnn.QuantIdentity().act_quant)
        AbsMax()
    """
    levels = Levels(quant)
    if given is None:
        own = levels.scaling.statistic
        return _Extremes() if type(own) is MinMax else own
    found: Any = _OF_DATA[given]() if isinstance(given, str) and given in _OF_DATA else given
    extremes = type(given) in (AbsMax, MinMax) or (isinstance(given, str) and given in _EXTREMES)
    if not (extremes or isinstance(found, DataStatistic)):
        _check(given)
    if quant.zero_point is not None and not isinstance(quant.zero_point, RangeZeroPoint):
        raise GraphError(
            f"calibrate: {path} has a zero point of your own, so only its own statistic knows which range it needs. "
            f"Leave out statistic={given!r}."
        )
    if extremes:
        return _Extremes() if levels.interval else AbsMax() if levels.signed else _Largest()
    if levels.interval and not isinstance(found, DataStatistic) and not hasattr(found, "low"):
        raise GraphError(
            f"calibrate: statistic={given!r} knows no lower end (`low`), which {path} needs for its zero point. Write "
            "statistic='min_max' or statistic=Percentile(99.9), which serve quantizers with and without one."
        )
    if isinstance(found, DataStatistic) and not quant._range().settled().whole:
        raise GraphError(
            f"calibrate: statistic={given!r} compares ranges of integers, and the levels of {path} are "
            f"{quant.number_format}. Write statistic='min_max' or statistic=Percentile(99.9), or leave it out."
        )
    return found


def _check(given: object) -> None:
    try:
        if isinstance(given, str):
            raise SettingError("statistic", given, "")
        checked("statistic", given)
    except SettingError:
        names = ", ".join(map(repr, (*_EXTREMES, *_OF_DATA)))
        raise GraphError(
            f"calibrate: statistic={given!r} is not possible: expected None for each quantizer's own, one of {names}, "
            "or an instance of a statistic, such as Percentile(99.9)."
        ) from None
