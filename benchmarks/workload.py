"""A workload: one piece of work that several libraries do."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Workload", "WorkloadError", "absolute", "difference", "ratio"]

Sampler = Callable[[], float]


def ratio(sample: float, base: float) -> float:
    """The number as a multiple of float's."""
    return sample / base


def difference(sample: float, base: float) -> float:
    """The number minus float's."""
    return sample - base


def absolute(sample: float, base: float) -> float:
    """The number itself."""
    return sample


class WorkloadError(Exception):
    """A library failed: the message is its error, with the error's type."""


@dataclass(frozen=True)
class Workload:
    """One piece of work, which each library does with the same shapes and the same network.

    Attributes:
        title: what it is, for tables.
        libraries: those that can do it, apart from float torch.
        prepare: ``library -> sampler``, for "float" too; each call of the sampler gives one number.
        compare: ``(sample, float's sample of the same round) -> number``.
        unit: the unit of that number; none for ratios.
        scale: the factor that converts a number to that unit.
        repeats: whether samples differ; a count is taken once.
    """

    title: str
    libraries: tuple[str, ...]
    prepare: Callable[[str], Sampler]
    compare: Callable[[float, float], float] = ratio
    unit: str = ""
    scale: float = 1.0
    repeats: bool = True
