"""The clock of a quantizer: how many training forwards there were, for settings that change with them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ..scaling.calibrated import CalibratedScaling
from ..scaling.stored import LearnedScaling, in_backward
from ..tracing import counting, is_tracing, number
from .anneal import Anneal, Annealed, counted

__all__ = ["Clock", "clock_for"]


class Clock(nn.Module):
    """Counts the training forwards of a quantizer, in its state: ``clock.steps``.

    A forward in training counts before anything is asked, so that gradient checkpointing, which runs it again in the
    backward pass, finds the same numbers. Forwards of a calibration don't count.

    Args:
        after: training forwards before values are quantized.
        device: of the counter.

    Attributes:
        calls: of the quantizer in one forward of the model: one for each layer that shares it.
        settings: what changes with the clock.

    Raises:
        SettingError: ``after`` is no whole number from 0 on.

    Example:
        >>> clock = Clock(after=2)
        >>> [(clock.tick(), clock.position().item(), clock.waiting) for _ in range(3)]
        [(None, 0, True), (None, 1, True), (None, 2, False)]
    """

    steps: Tensor
    _read: Tensor | None

    def __init__(self, after: int = 0, device: Device = None) -> None:
        super().__init__()
        self.after = counted("after", after, 0)
        self.calls = 1
        self._read = None
        self.settings: list[Annealed] = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Count from the start again."""
        self.steps.zero_()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        left = self.steps.is_meta
        super()._apply(fn, recurse)
        if left and not self.steps.is_meta:
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    @property
    def length(self) -> int:
        """Training forwards of the model until nothing changes any more."""
        return max([self.after, *(each.anneal.length for each in self.settings)])

    @torch.no_grad()
    def tick(self) -> None:
        """Count a forward, if it is one of training."""
        if self.training and not in_backward() and counting():
            self.steps.add_(1)

    def counter(self) -> Tensor:
        """The count; in a graph a copy, as the backward pass must not work it out again from what has moved on."""
        if self._read is not None:
            return self._read
        return torch.ops.bitwright.snapshot(self.steps) if torch.compiler.is_compiling() else self.steps

    @contextmanager
    def reading(self, count: Tensor) -> Iterator[None]:
        """A block in which the count is that of a graph, which writes it to the state at its end."""
        vars(self)["_read"] = count
        try:
            yield
        finally:
            vars(self)["_read"] = None

    def position(self) -> Tensor:
        """Training forwards of the model before the one that is running, or, in evaluation, until now."""
        steps = self.counter()
        done = (steps - 1).clamp_min(0) if self.training else steps
        return done if self.calls == 1 else torch.div(done, self.calls, rounding_mode="floor")

    @property
    def waiting(self) -> bool:
        """Whether training has not begun to quantize."""
        taken = number(self.position())
        return taken is not None and taken < self.after

    def passed(self, x: Tensor, values: Tensor, relu: bool) -> Tensor:
        """The quantized values in training, or, as long as it has not begun to quantize, ``x`` itself."""
        position = self.position()
        if self._known(position, self.after):
            return values
        return torch.where(position < self.after, x.relu() if relu else x, values)

    @torch.no_grad()
    def renew(self, scaling: object) -> None:
        """Let a learned range start from what there is when training quantizes for the first time, and not before."""
        if not isinstance(scaling, LearnedScaling) or not scaling.renewed or not self.training or in_backward():
            return
        position = self.position()
        if not self._known(position, self.after + 1):
            again = (position <= self.after) & ((self.counter() - 1) % self.calls == 0)
            scaling.steps.mul_(~again)

    def _known(self, position: Tensor, least: int) -> bool:
        """Whether so many training forwards are known to be done, without waiting for a device."""
        if torch.compiler.is_compiling() or is_tracing() or position.device.type != "cpu":
            return False
        taken = number(position)
        return taken is not None and taken >= least

    def join(self, layer: nn.Module, calls: int) -> None:
        """Count for a layer, on its device."""
        self.calls = calls
        parameter = next(layer.parameters(recurse=False), None)
        if parameter is not None and parameter.device != self.steps.device:
            self.to(parameter.device)

    @torch.no_grad()
    def finish(self) -> None:
        """Go to the end of all that changes."""
        self.steps.clamp_(min=self.length * self.calls)

    def progress(self) -> str:
        """What is on its way, such as ``"bit_width=6 after 500 of 1000 steps"``; nothing at the end."""
        taken = number(self.steps)
        if taken is None:
            return ""
        taken = int(taken) // self.calls
        said = []
        if taken < self.after:
            said.append(f"not quantizing in training before step {self.after}, {taken} done")
        for each in self.settings:
            if taken < each.anneal.length:
                value = each.anneal.at(torch.tensor(taken)).item()
                shown = round(value) if each.name == "bit_width" else f"{value:g}"
                said.append(f"{each.name}={shown} after {taken} of {each.anneal.length} steps")
        return ", ".join(said)

    def extra_repr(self) -> str:
        return ", ".join([*([f"after={self.after}"] if self.after else []), *map(repr, self.settings)])


def clock_for(after: object, parts: Sequence[object], device: Device = None) -> Clock | None:
    """The clock that the parts of a quantizer go by: each `Anneal` they hold becomes the value in use.

    Args:
        after: training forwards before values are quantized, 0 for none.
        parts: the parts of the quantizer, which may hold others.
        device: of the counter.

    Returns:
        None if nothing changes.

    Raises:
        SettingError: ``after`` is no whole number from 0 on.

    Example:
        >>> from bitwright.qcore import MeanSigma
        >>> part = MeanSigma(sigma=Anneal(3.0, 2.0, steps=10))
        >>> clock = clock_for(0, [part])
        >>> clock, part.sigma()
        (Clock(Anneal(3.0, 2.0, steps=10)), 3.0)
    """
    start = counted("after", after, 0)
    found: list[Annealed] = []
    clock: Clock | None = Clock(start, device) if start else None
    for part in _all_of(parts):
        held: dict[str, object] = vars(part)
        for name, item in list(held.items()):
            if isinstance(item, Anneal):
                clock = Clock(start, device) if clock is None else clock
                annealed = Annealed(item, clock, _SETTINGS.get(name, name))
                held[name] = annealed  # past the bookkeeping of modules
                found.append(annealed)
    if clock is None:
        return None
    clock.settings = found
    for part in parts:
        if isinstance(part, CalibratedScaling):  # it is measured for as long as nothing is quantized
            part.calibration_steps = max(part.calibration_steps, start)
            vars(part)["clock"] = clock  # no module of its own
        elif start and isinstance(part, LearnedScaling):
            part.renewed = part.max_value is None
    return clock


_SETTINGS = {"width": "bit_width"}  # where an attribute has another name than its setting
_PARTS = ("int_range", "number_format", "scaling", "statistic", "restriction", "rounding", "zero_point")


def _all_of(parts: Sequence[object]) -> list[Any]:
    """Some parts and the parts of these, each once."""
    found: dict[int, Any] = {}
    queue = list(parts)
    for part in queue:  # which grows meanwhile
        if hasattr(part, "__dict__") and id(part) not in found:
            found[id(part)] = part
            held = {**getattr(part, "_modules", {}), **vars(part)}
            queue += [held[name] for name in _PARTS if name in held]
    return list(found.values())


# Graphs work out again in the backward pass what is cheap, from state that has been counted on since: not this
@torch.library.custom_op("bitwright::snapshot", mutates_args=())
def _snapshot(steps: Tensor) -> Tensor:
    return steps.clone()


@_snapshot.register_fake
def _(steps: Tensor) -> Tensor:
    return torch.empty_like(steps)
