"""Scales that are a running average over training forwards."""

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.types import Device

from ..errors import QuantizerError, SettingError
from ..granularity import Granularity, granularity_of
from ..locate import path_of
from ..protocols import Levels, Restriction, Statistic
from ..schedules.anneal import Anneal, Annealed, checked_ends, in_use
from ..tracing import exporting, number
from .gradients import ScaleGradient
from .magnitude import finite, whole
from .pooling import distributed
from .restriction import FloatScale
from .statistics import AbsMax, measure
from .stored import StoredScaling, in_backward, scalings, widest

__all__ = ["CalibratedScaling", "RunningScaling"]

_FLOAT_SCALE = FloatScale()
_ABS_MAX = AbsMax()


class CalibratedScaling(StoredScaling):
    """A scale calibrated on the first training batches, then learned: the default for activations.

    For ``calibration_steps`` training forwards the range is a running average of the statistic, in use as it stands
    after each batch, in training and evaluation alike; from then on it is learned. Batches whose statistic is not
    finite are left out and don't count. Layers that share the quantizer are measured together: the average is that of
    the widest range among as many forwards as there are layers.

    Args:
        number_format: the levels of the grid.
        statistic: what is measured.
        restriction: which scales are allowed, and the domain of the parameter.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        granularity: which values share a scale, where ``axis`` can't say it.
        channels: how many scales there are; found from the first input otherwise.
        shape: of the tensor that is quantized, where known.
        calibration_steps: training forwards that are averaged, 1 or more.
        momentum: weight of each new batch in the average; None for the plain mean.
        scale_gradient: what multiplies the gradient of the scale: ``"lsq"`` for LSQ's factor, None for nothing.

    Raises:
        SettingError: a number of steps below 1, or a momentum outside (0, 1].

    Example:
        >>> from bitwright.qcore import IntRange
        >>> scaling = CalibratedScaling(IntRange(8, signed=False), calibration_steps=1)
        >>> _ = scaling(torch.tensor([0.0, 2.55]))
        >>> scaling(torch.ones(2)), scaling.phase
        (tensor(0.0100, grad_fn=<DivBackward0>), 'calibrated')
    """

    learned = True
    _window: tuple[list[Any] | None, list[Any]] | None = None
    momentum: float | Anneal | Annealed | None
    anneals = ("momentum",)
    clock: Any = None  # of the quantizer, where a setting changes in training

    def __init__(
        self,
        number_format: Levels,
        statistic: Statistic = _ABS_MAX,
        restriction: Restriction = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        granularity: Granularity | None = None,
        channels: int | None = None,
        shape: Sequence[int] | None = None,
        calibration_steps: int = 300,
        momentum: float | None = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
        scale_gradient: ScaleGradient | None = None,
    ) -> None:
        steps = whole("calibration_steps", calibration_steps, "a whole number of training steps, 1 or more")
        checked_momentum = None if momentum is None else checked_ends("momentum", momentum, _checked_momentum)
        super().__init__(
            number_format,
            statistic,
            restriction,
            min_scale,
            granularity_of(axis, granularity),
            channels,
            shape,
            steps,
            device,
            dtype,
            self.learned,
            scale_gradient,
        )
        self.momentum = checked_momentum

    def prepare(self, x: Tensor, relu: bool = False) -> None:
        """Decide whether this forward is one of the calibration."""
        self._look()
        if self._loop is not None and self._loop.taken:
            return
        if self.training and not exporting():  # which warns of every attribute that is set
            self._counted = self._counted if in_backward() else not self._settled and self._remaining() > 0

    def _measure_if_due(self, x: Tensor) -> None:
        loop = self._loop
        if loop is not None:
            if loop.taken:
                return
            loop.taken, x = True, loop.x if loop.x is not None else x
        if self.training and self._counted and not in_backward() and (x.numel() > 0 or distributed()):
            self._measure(x.detach())

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        if not self.granularity.single:
            self._sized(self.granularity.count(x.shape))
        state = [*self._bases(), self.measured, self.steps]
        if torch.compiler.is_compiling():
            count = None if self.clock is None else self.clock.counter()
            torch.ops.bitwright.calibrate.default(state, x, self._handle, count)
        else:
            self._average(state, x)

    def _average(self, state: list[Tensor], x: Tensor) -> None:
        """One step of the running average, in place, and of the counter: plain numbers cost less than small tensors."""
        *bases, share, steps = state
        taken, held = number(steps), number(share)
        if taken is None or held is None:
            raise QuantizerError(
                f"{path_of(self)}: ranges can't be calibrated under torch.func.vmap, whose tensors hold no one number. "
                "Run the calibration steps without it first, or call finish_calibration()."
            )
        taken = int(taken)
        if taken >= self._limit():  # compiled code finds out in here
            self._forget()
            return
        found: list[Any] = measure(self.statistic, x, self.granularity)
        alone = (
            self.granularity.single and steps.device.type == "cpu" and type(self.restriction).store is FloatScale.store
        )
        numbers = [each.item() for each in found] if alone else []
        if not all(map(math.isfinite, numbers) if alone else (bool(each.isfinite().all()) for each in found)):
            return
        before: list[Any] | None = None
        if held > 0:
            before = [each.item() / held for each in bases] if alone else [each / held for each in bases]
            before[0] = abs(before[0]) if alone else self.restriction.load(before[0])
        before, found = self._windowed(taken, before, numbers if alone else found)
        part = 1 / (taken // self.calls + 1) if self.momentum is None else float(in_use(self.momentum))
        average = found
        if before is not None:
            average = [old + part * (new - old) for old, new in zip(before, found, strict=True)]
        if alone:
            average[0] = max(average[0], float(self._floor()))
        else:
            average[0] = self._stored_as(average[0])
        for base, new in zip(bases, average, strict=True):
            base.fill_(new) if alone else base.copy_(new)
        share.fill_(1)
        steps += 1
        self._whole, self._settled = True, taken + 1 >= self._limit()

    def _windowed(self, taken: int, before: list[Any] | None, found: list[Any]) -> tuple[list[Any] | None, list[Any]]:
        """The average before this forward of the model, and the widest range that it has brought so far."""
        if self.calls == 1:
            return before, found
        if taken % self.calls and self._window is not None:
            before, so_far = self._window
            found = widest(so_far, found)
        self._window = (before, found)
        return before, found

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_window": None}


class RunningScaling(CalibratedScaling):
    """A running average of the statistic, as in batch normalisation: updated by every training forward, never learned.

    Args are those of `CalibratedScaling`, without ``calibration_steps`` and ``scale_gradient``.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> scaling = RunningScaling(IntRange(8, signed=False), momentum=0.5)
        >>> _ = scaling(torch.tensor([1.0])), scaling(torch.tensor([2.0]))
        >>> scaling.magnitude
        tensor(1.5000)
    """

    learned = False

    @property
    def calibrating(self) -> bool:
        """False: the average goes on for as long as there is training, and nothing comes after it."""
        return False

    def __init__(
        self,
        number_format: Levels,
        statistic: Statistic = _ABS_MAX,
        restriction: Restriction = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        granularity: Granularity | None = None,
        channels: int | None = None,
        shape: Sequence[int] | None = None,
        momentum: float | None = 0.1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            number_format,
            statistic,
            restriction,
            min_scale,
            axis,
            granularity,
            channels,
            shape,
            sys.maxsize,
            momentum,
            device,
            dtype,
        )


def _checked_momentum(momentum: object) -> float:
    share = "a number above 0, up to 1, or None for the plain mean"
    found = finite("momentum", momentum, share)
    if not 0 < found <= 1:
        raise SettingError("momentum", momentum, share)
    return found


# Under torch.compile the average is one opaque operation: its Python can end the calibration without a graph break.
@torch.library.custom_op("bitwright::calibrate", mutates_args=("state",))
def _calibrate(state: list[Tensor], x: Tensor, handle: int, count: Tensor | None) -> None:
    if in_backward():
        return
    scaling: Any = scalings[handle]
    with nullcontext() if count is None else scaling.clock.reading(count):
        scaling._average(state, x)
