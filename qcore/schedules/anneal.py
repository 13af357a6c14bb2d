"""Schedules: a number that moves from one value to another in training, in the place of a setting."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..declare.inject import Changing
from ..errors import SettingError
from ..tracing import is_tracing, number

__all__ = ["SHAPES", "Anneal", "Annealed", "checked_ends", "counted", "in_use"]

Share = Callable[[Tensor], Tensor]
Checked = TypeVar("Checked")


# How far a setting has come (0 to 1) after a share of the steps (0 to 1)
SHAPES: dict[str, Share] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - torch.cos(math.pi * progress)) / 2,
    "cubic": lambda progress: 1 - (1 - progress) ** 3,  # fast first, as in gradual pruning (Zhu, Gupta, 2017)
}


@dataclass(frozen=True, init=False, repr=False)
class Anneal(Changing):
    """A schedule for a numeric setting: ``weight_bit_width=Anneal(8, 4, steps=1000)``.

    Training forwards of the quantizer are counted in its state. The first one works with ``start``; after ``steps``
    of them the setting is at ``end``, and stays there. Evaluation works with the value as it stands. Bit widths are
    rounded to whole numbers, half to even.

    Args:
        start: the value at the start.
        end: the value at the end.
        steps: how many training forwards the way takes, 1 or more.
        shape: ``"linear"``, ``"cosine"`` (slow at both ends), ``"cubic"`` (fast first), or a function of your own from
            the share of the steps that are done to the share of the way, both 0-d float64 tensors from 0 to 1.
        after: training forwards before it begins.

    Raises:
        SettingError: ends that are no finite numbers, a number of steps that is not whole, or another shape.

    Example:
        >>> schedule = Anneal(8, 4, steps=1000)
        >>> schedule, [schedule.at(torch.tensor(step)).item() for step in (0, 250, 1000, 5000)]
        (Anneal(8, 4, steps=1000), [8.0, 7.0, 4.0, 4.0])
    """

    start: float
    end: float
    steps: int
    shape: str | Share
    after: int

    def __init__(self, start: float, end: float, steps: int, shape: str | Share = "linear", after: int = 0) -> None:
        for name, bound in (("start", start), ("end", end)):
            plain = isinstance(bound, (int, float)) and not isinstance(bound, bool)
            if not plain or not math.isfinite(bound):
                raise SettingError(name, bound, "a finite number")
        if not (isinstance(shape, str) and shape in SHAPES) and not callable(shape):
            names = ", ".join(map(repr, SHAPES))
            raise SettingError("shape", shape, f"one of {names}, or a function from progress to the share of the way")
        steps = counted("steps", steps, 1)
        vars(self).update(start=start, end=end, steps=steps, shape=shape, after=counted("after", after, 0))

    def __repr__(self) -> str:
        shape = self.shape if isinstance(self.shape, str) else getattr(self.shape, "__name__", repr(self.shape))
        given = repr(shape) if isinstance(self.shape, str) else shape
        more = "" if shape == "linear" else f", shape={given}"
        more += f", after={self.after}" if self.after else ""
        return f"Anneal({self.start!r}, {self.end!r}, steps={self.steps}{more})"

    @property
    def length(self) -> int:
        """Training forwards until it is at its end."""
        return self.after + self.steps

    def at(self, position: Tensor) -> Tensor:
        """The value after so many training forwards: a 0-d float64 tensor, never beyond the ends."""
        exact = torch.float32 if position.device.type == "mps" else torch.float64  # which has no float64
        progress = ((position - self.after).to(exact) / self.steps).clamp(0, 1)
        call = SHAPES[self.shape] if isinstance(self.shape, str) else self.shape
        share = torch.as_tensor(call(progress)).to(progress).clamp(0, 1)
        way = self.end - self.start
        return torch.where(share < 0.5, self.start + way * share, self.end - way * (1 - share))  # both ends exactly


class Annealed:
    """A setting that changes, as the parts of a quantizer hold it: called, it gives the value in use.

    Args:
        anneal: the schedule.
        clock: what counts the training forwards; with a method ``position``.
        name: of the setting.

    Example:
        >>> class Always:
        ...     def position(self):
        ...         return torch.tensor(500)
        >>> Annealed(Anneal(8, 4, steps=1000), Always(), "bit_width")()
        6.0
    """

    def __init__(self, anneal: Anneal, clock: Any, name: str) -> None:
        self.anneal = anneal
        self.clock = clock
        self.name = name

    def __call__(self) -> float | Tensor:
        """The value in use: a plain number, or a 0-d tensor in graphs and on other devices than the CPU."""
        position = self.clock.position()
        value = self.anneal.at(position)
        if torch.compiler.is_compiling() or is_tracing() or position.device.type != "cpu":
            return value
        found = number(value)
        return value if found is None else found

    def __repr__(self) -> str:
        return repr(self.anneal)


def in_use(setting: Any) -> Any:
    """The value of a setting in use, whether it is annealed or not.

    Parts of your own read a setting that may be annealed with it, and name the setting in a class attribute
    ``anneals``. Before the quantizer is built, an annealed setting is at its start.

    Returns:
        What was given, for a plain setting; of an annealed one a number, or a 0-d tensor in graphs.

    Example:
        >>> in_use(3.0), in_use(Anneal(3.0, 2.0, steps=10))
        (3.0, 3.0)
    """
    if isinstance(setting, Annealed):
        return setting()
    return float(setting.start) if isinstance(setting, Anneal) else setting


def checked_ends(setting: str, found: Any, check: Callable[[Any], Checked]) -> Checked | Anneal:
    """A setting as a check returns it; of an annealed one both ends are checked.

    Raises:
        SettingError: what the check raises, for the setting as it was written.

    Example:
        >>> checked_ends("sigma", Anneal(3, 2, steps=10), float)
        Anneal(3, 2, steps=10)
    """
    if not isinstance(found, Anneal):
        return check(found)
    for end in (found.start, found.end):
        try:
            check(end)
        except SettingError as error:
            raise SettingError(setting, found, f"{error.expected}, at both ends", error.remedy) from None
    return found


def counted(setting: str, found: object, least: int) -> int:
    """A number of training forwards.

    Raises:
        SettingError: no whole number, or too small.

    Example:
        >>> counted("after", 1000, 0)
        1000
    """
    try:
        steps = least - 1 if isinstance(found, bool) else index(found)  # type: ignore[arg-type]
    except TypeError:
        steps = least - 1
    if steps < least:
        raise SettingError(setting, found, f"a whole number of training forwards, {least} or more")
    return steps
