"""Scales that are kept as state: measured first, then learned."""

import itertools
import sys
import warnings
import weakref
from collections.abc import Sequence
from operator import index
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import QuantizerError, SettingError
from ..formats.number_format import NumberFormat
from ..granularity import Granularity, PerToken, granularity_of
from ..kernels.device import learned_on_device
from ..kernels.fused import MagnitudeFakeQuant, apply_eagerly
from ..locate import path_of
from ..protocols import Levels, Restriction, Statistic, checked
from ..rounding import Rounding
from ..tracing import constant, is_tracing, number
from .gradients import ScaleGradient, checked_gradient, scaled_gradient, sharing_one_scale
from .magnitude import WIDE, MagnitudeScaling, entries, finite, usable, whole
from .pooling import distributed
from .restriction import FloatScale
from .statistics import AbsMax, lower_end, measure, measured

__all__ = ["LearnedScaling", "StoredScaling", "in_backward", "scalings", "widest"]

_FORMER = {
    "collect_steps": "calibration_steps",
    "collecting": "calibrating",
    "finish_collecting": "finish_calibration",
    "observed": "calibrated",
    "start_collecting": "start_calibration",
}
_FLOAT_SCALE = FloatScale()
_ABS_MAX = AbsMax()


class StoredScaling(MagnitudeScaling):
    """A magnitude kept as state, with the lower end of the range where the statistic has one.

    What is measured goes to buffers (``magnitude_base``, ``low_base``), what is learned to parameters that are added to
    them and start at 0 (``magnitude_offset``, ``low_offset``): forward never writes to a parameter, which would be lost
    where parameters are sharded, nor is a measured range rounded where parameters are cast to half precision.

    Everything that decides the scale is in tensors. ``measured`` is 0 before there is a measurement and 1 afterwards,
    and the range is ``magnitude_base / measured``: a copy whose buffers are averaged (EMA) from 0 on has the average of
    what was measured, whatever its decay. ``steps`` counts the forwards that were measured. The Python attributes
    beside them, ``_whole`` and ``_settled``, only spare the look at a tensor where that would break a graph or wait for
    a device: they repeat what the tensors said.

    Invariant: the state dict has the same keys from construction on, and tensors are only ever changed in place.

    Args:
        number_format: the levels of the grid.
        statistic: what is measured.
        restriction: which scales are allowed, and the domain in which the magnitude is stored.
        min_scale: no scale is smaller.
        granularity: which values share a scale.
        channels: how many scales there are, where known.
        shape: of the tensor that is quantized, where known: it says the same.
        calibration_steps: training forwards that are measured.
        device: of the state.
        dtype: of what is learned.
        learned: whether there is something to learn.
        scale_gradient: what multiplies the gradient of the scale, see `LSQGradient`; None for nothing.

    Raises:
        SettingError: a number of channels or steps that is no whole number from 1 on.

    Example:
        >>> from bitwright.qcore import LearnedScaling
        >>> issubclass(LearnedScaling, StoredScaling)
        True
    """

    magnitude_base: Tensor
    magnitude_offset: nn.Parameter | None
    low_base: Tensor  # with has_low
    low_offset: nn.Parameter | None
    measured: Tensor
    steps: Tensor
    statistic: Statistic
    has_low: bool
    calls: int  # of the quantizer in one forward of the model: one for each layer that shares it
    _whole: bool  # the bases are a measurement, not an average of several copies'
    _settled: bool  # and calibration has ended
    _counted: bool  # whether the last forward was measured: gradient checkpointing may run it again
    _handle: int  # in `scalings`
    scale_gradient: ScaleGradient | None
    _of_parameter: bool  # whether the shape of what is quantized is known
    _zero_point: Any = None  # that learns the lower end in the place of this, see `hand_over_low`
    _loop: "_Loop | None" = None  # what the inputs are parts of, see `start_loop`

    def __init__(
        self,
        number_format: Levels,
        statistic: Statistic,
        restriction: Restriction,
        min_scale: float,
        granularity: Granularity,
        channels: int | None,
        shape: Sequence[int] | None,
        calibration_steps: int,
        device: Device,
        dtype: torch.dtype | None,
        learned: bool,
        scale_gradient: ScaleGradient | None = None,
    ) -> None:
        super().__init__(number_format, restriction, min_scale, None, granularity)
        self.scale_gradient = checked_gradient(scale_gradient, restriction)
        self._of_parameter = shape is not None
        if isinstance(granularity, PerToken):
            raise SettingError(
                "granularity",
                granularity,
                "one whose scales can be stored",
                "A scale for each token follows its values: write scaling='statistic'.",
            )
        if channels is not None:
            channels = whole("channels", channels, "a whole number of channels, 1 or more")
        self.statistic = checked("statistic", statistic)
        self.calibration_steps = calibration_steps
        self.has_low = hasattr(statistic, "low")
        state = {"calls": 1, "_whole": False, "_settled": False, "_counted": False, "_handle": _registered(self)}
        vars(self).update(state)  # past nn.Module's bookkeeping
        channels = channels if shape is None else granularity.count(shape)
        size = (1 if granularity.single else channels or 1,)  # not 0-d: such parameters can't be sharded
        wide = dtype if dtype in WIDE else torch.float32
        for name in self._ends:
            self.register_buffer(f"{name}_base", torch.zeros(size, device=device, dtype=wide))
            offset = nn.Parameter(torch.zeros(size, device=device, dtype=dtype)) if learned else None
            self.register_parameter(f"{name}_offset", offset)
        self.register_buffer("measured", torch.zeros(1, device=device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=device))

    @property
    def _ends(self) -> tuple[str, ...]:
        return ("magnitude", "low") if self.has_low else ("magnitude",)

    def _bases(self) -> list[Tensor]:
        return [getattr(self, f"{name}_base") for name in self._ends]

    def _offsets(self) -> list[nn.Parameter]:
        return [each for each in self._parameters.values() if each is not None]

    def __getattr__(self, name: str) -> Any:
        if name in _FORMER:
            said = f"{name} is now {_FORMER[name]}: the former name goes with version 0.3."
            warnings.warn(said, DeprecationWarning, stacklevel=2)
            return getattr(self, _FORMER[name])
        return super().__getattr__(name)

    # Phases: nothing measured, calibrating, calibrated

    @property
    def calibrated(self) -> bool:
        """Whether there is a measurement."""
        self._look()
        return self._whole or (self._share() or 0.0) > 0

    @property
    def calibrating(self) -> bool:
        """Whether training forwards still measure their input."""
        self._look()
        return not self._settled and self._remaining() > 0

    @property
    def phase(self) -> str:
        """``"empty"``, ``"calibrating"`` or ``"calibrated"``."""
        return ("calibrating" if self.calibrating else "calibrated") if self.calibrated else "empty"

    def progress(self) -> str:
        """The phase in words, such as ``"calibrating, 100 of 300 steps"``."""
        steps = self._limit()
        if self.phase != "calibrating" or steps >= sys.maxsize:
            return self.phase
        return f"calibrating, {int(self.steps)} of {steps} steps"

    @property
    def dynamic(self) -> bool:
        """Whether another input gets another scale in evaluation: nothing was measured yet."""
        return not self.calibrated

    @property
    def measuring(self) -> bool:
        """Whether this forward measures its input (see `prepare`)."""
        return self._counted if self.training else not self._whole and not (self._share() or 0.0) > 0

    def _look(self) -> None:
        """Ask the tensors for the phase: not where that would break a graph, or wait for a device to no purpose."""
        if _traced() or (self._settled and self.steps.device.type != "cpu"):
            return
        taken, share = number(self.steps), number(self.measured)
        if taken is not None and share is not None:
            self._whole = share == 1
            self._settled = self._whole and taken >= self._limit()

    def _limit(self) -> int:
        """Calls that are measured, of all the layers that share the quantizer."""
        return min(self.calibration_steps * self.calls, sys.maxsize)

    def _remaining(self) -> float:
        """Forwards that are still to be measured: at least one, where the tensor can't be asked."""
        taken = None if _traced() else number(self.steps)
        return 1 if taken is None else self._limit() - taken

    def _share(self) -> float | None:
        """1 with a measurement, 0 without, between them in an average of copies; None where a tensor can't be asked."""
        return None if _traced() or self.measured.device.type != "cpu" else number(self.measured)

    def start_calibration(self) -> None:
        """Measure anew: the next training forwards set the range, and what was learned is forgotten."""
        self.reset_parameters()

    def finish_calibration(self) -> None:
        """End the calibration now: from the next forward on the range is learned. Nothing measured, nothing ends."""
        if self.calibrated:
            self.steps.clamp_(min=self._limit())
            self._look()

    @torch.no_grad()
    def set_range(self, found: Sequence[Tensor], forwards: int = 1) -> None:
        """Take a range that was measured elsewhere for the calibrated one; what was learned is forgotten.

        Args:
            found: what the statistic would give: a number for each scale, with the lower end where it has one.
            forwards: of the model that it was measured on: a running mean goes on from them.

        Example:
            >>> from bitwright.qcore import IntRange, LearnedScaling
            >>> scaling = LearnedScaling(IntRange(8, signed=False))
            >>> scaling.set_range([torch.tensor([2.55])])
            >>> scaling.phase, scaling(torch.ones(2)).item()
            ('calibrated', 0.009999999776482582)
        """
        self.reset_parameters()
        self._fit(found[0].numel())
        self._set([self._stored_as(found[0].to(self.magnitude_base)), *found[1:]])
        limit = self._limit()
        self.steps.fill_(limit if limit < sys.maxsize else forwards * self.calls)  # a running average goes on
        self._forget()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the state to what it is before any data."""
        for each in (*self._bases(), *self._offsets(), self.measured, self.steps):
            each.zero_()
        if self._zero_point is not None:
            self._zero_point.reset_parameters()
        self._whole = self._settled = self._counted = False

    def _set(self, found: list[Tensor], share: Tensor | float = 1.0) -> None:
        """Replace what was measured."""
        for base, new in zip(self._bases(), found, strict=True):
            base.copy_(new)
        self.measured.fill_(share)

    # Loops: many calls for what is one tensor

    def start_loop(self, x: Tensor | None) -> None:
        """Until `end_loop` every input is a part of ``x``, which is measured in their place, and once.

        A quantizer that works on the steps of a recurrent layer is called once for each, and its range is that of all
        of them: forwards of the model count, and not steps.

        Args:
            x: all inputs together; None to measure nothing.

        Example:
            >>> from bitwright.qcore import CalibratedScaling, IntRange
            >>> scaling = CalibratedScaling(IntRange(8, signed=False))
            >>> steps = torch.tensor([[1.0], [2.55]])
            >>> scaling.start_loop(steps)
            >>> [round(scaling(step).item(), 4) for step in steps], scaling.steps.item()
            ([0.01, 0.01], 1)
            >>> scaling.end_loop()
        """
        self._loop = _Loop(x)

    def end_loop(self) -> None:
        """Take inputs for what they are again."""
        self._loop = None

    # Learned zero points

    def hand_over_low(self, zero_point: nn.Module) -> None:
        """Let a learned zero point have the lower end: it is measured here, and learned there."""
        if self.has_low:
            self.register_parameter("low_offset", None)
        vars(self)["_zero_point"] = zero_point  # past nn.Module: the quantizer has it

    def measured_all(self) -> Tensor:
        """Whether all forwards were measured that are to be, as a truth value in a tensor (1,)."""
        return (self.measured > 0) & (self.steps >= self._limit())

    # The range in use

    @property
    def magnitude(self) -> Tensor:
        """The magnitude in use, in the restriction's domain: what was measured, and what was learned since."""
        return self._in_use("magnitude")

    @property
    def low(self) -> Tensor | None:
        """The lower end of the range in use; None where the statistic has none."""
        return self._in_use("low") if self.has_low else None

    def _in_use(self, name: str) -> Tensor:
        base, offset = self._measurement(name), getattr(self, f"{name}_offset")
        return self._shaped(base if offset is None else base + offset)

    def _idle(self, name: str) -> Tensor:
        """What is not learned yet; distributed training wants a gradient from every parameter all the same: zero."""
        base, offset = self._measurement(name, counted=True), getattr(self, f"{name}_offset")
        if offset is None or not (offset.requires_grad and distributed()):
            return self._shaped(base)
        return self._shaped(base + 0.0 * offset)

    def _measurement(self, name: str, counted: bool = False) -> Tensor:
        """What was measured: 1 before there was anything (0 for the lower end)."""
        base = getattr(self, f"{name}_base")
        share = None if counted and _traced() else 1.0 if self._whole else self._share()  # one graph from the start
        if share is None:
            return torch.where(self.measured > 0, base / self.measured, self._nothing(name, base))
        if share == 1:
            return base
        return base / share if share > 0 else self._nothing(name, base)

    def _nothing(self, name: str, base: Tensor) -> Tensor:
        return torch.zeros_like(base) if name == "low" else self.restriction.store(torch.ones_like(base))

    def _shaped(self, state: Tensor) -> Tensor:
        return state.reshape(()) if self.granularity.single else state

    def _stored_as(self, magnitude: Tensor) -> Tensor:
        """What is stored for a measured magnitude, which is never below the smallest."""
        return self.restriction.store(torch.where(magnitude < self._floor(), self._floor(), magnitude))

    def _at_hand(self, name: str, x: Tensor) -> Tensor:
        """The end of the range of the tensor at hand, as it would be stored."""
        loop = self._loop
        if loop is not None and loop.x is not None:
            if name not in loop.ends:
                loop.ends[name] = self._end_of(name, loop.x)
            return loop.ends[name]
        return self._end_of(name, x)

    def _end_of(self, name: str, x: Tensor) -> Tensor:
        if name == "low":
            return self._shaped(usable(lower_end(self.statistic, x, self.granularity)))
        return self._shaped(self._stored_as(usable(measured(self.statistic, x, self.granularity))))

    def _evaluated(self, name: str, x: Tensor) -> Tensor:
        """The end of the range in evaluation: the one in use, or, before there is any, that of the tensor at hand."""
        share = 1.0 if self._whole else self._share()
        if share is None:
            return torch.where(self.measured.reshape(()) > 0, self._in_use(name), self._at_hand(name, x.detach()))
        return self._in_use(name) if share > 0 else self._at_hand(name, x.detach())

    def _stored(self, name: str, x: Tensor) -> Tensor:
        """The end of the range, as it is stored."""
        if not self.training:
            return self._evaluated(name, x)
        return self._idle(name) if self._counted else self._in_use(name)

    def prepare(self, x: Tensor, relu: bool = False) -> None:
        """Decide what this forward is, before anything is asked of the scale. Asked twice, the answer is the same.

        Args:
            x: the input.
            relu: the values are those of ``x`` above 0.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The scale in use; in training, while ranges are measured, ``x`` counts first."""
        self.prepare(x)
        self._measure_if_due(x)
        self._check(x)
        stored = self._stored("magnitude", x)
        if self.scale_gradient is not None:
            stored = scaled_gradient(stored, self._gradient_factor(x))
        return self.scale_of(self.restriction.load(stored), x)

    def _gradient_factor(self, x: Tensor) -> float | Tensor:
        """What the gradient of the magnitude is multiplied by."""
        assert self.scale_gradient is not None
        sharing = sharing_one_scale(self.granularity, x.shape, self._of_parameter)
        return self.scale_gradient.factor(sharing, self.number_format)

    def standing(self) -> Tensor:
        """The scale in use, one number for each that is stored."""
        return self.scale_for(self.restriction.load(self._in_use("magnitude")))

    def current(self, x: Tensor) -> Tensor:
        """The scale in use, shaped for ``x``, which is not measured."""
        return self.scale_of(self.restriction.load(self._in_use("magnitude")), x)

    def _measure_if_due(self, x: Tensor) -> None:
        """Take the input of a forward that counts into the state."""

    def low_of(self, x: Tensor) -> Tensor:
        """The lower end of the range that the last forward used, for a zero point."""
        low = self._stored("low", x)
        if self.scale_gradient is None:
            return low
        step = self._gradient_factor(x) / torch.as_tensor(self.number_format.threshold).detach() ** 2  # that of a step
        return scaled_gradient(low, step)

    def fused(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale where the scale is being learned."""
        offset = self.magnitude_offset
        if type(self.restriction) is not FloatScale or offset is None or not offset.requires_grad:
            return None
        if not self._settled or (self.training and self._counted):
            return None
        self._check(x)
        threshold, granularity = self.number_format.threshold, self.granularity
        if isinstance(threshold, Tensor):
            return None
        if self.scale_gradient is not None:
            offset = scaled_gradient(offset, self._gradient_factor(x))
        view, shape = x, None
        if not granularity.single:
            view = granularity.view(x)
            shape = [-1, 1] if view is not x else list(granularity.scales_shape(x.shape))
        rest = (shape, threshold, self.min_scale * threshold, levels, rounding, relu, clips)
        done = apply_eagerly(MagnitudeFakeQuant, view, self.magnitude_base, offset, rest)
        if done is None or view is x:
            return done
        return granularity.back(done[0], x), granularity.compact(done[1].reshape(-1), x.shape)

    def fused_on_device(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The same on a GPU."""
        offset, granularity = self._parameters["magnitude_offset"], self.granularity
        if offset is None or not self._settled or self._counted or self._loop is not None:
            return None
        threshold, floor = self._numbers()
        if type(self.restriction) is not FloatScale or isinstance(threshold, Tensor):
            return None
        if self.scale_gradient is not None:
            offset = scaled_gradient(offset, self._gradient_factor(x))
        view, shape = x, ()
        if not granularity.single:
            self._check(x)
            view = granularity.view(x)
            shape = granularity.scales_shape(x.shape) if view is x else (view.shape[0], 1)
        rest = (threshold, floor, levels, rounding, relu, clips)
        base: Any = self._buffers["magnitude_base"]
        done = learned_on_device(view, base, offset, shape, rest)
        if done is None or view is x:
            return done
        return granularity.back(done[0], x), granularity.compact(done[1].reshape(-1), x.shape)

    # Measuring

    def _check(self, x: Tensor) -> None:
        """Refuse an input of another length along the axis than the data that the state comes from."""
        if not self.granularity.single and (self.training or self.calibrated):
            self._sized(self.granularity.count(x.shape))

    def _sized(self, channels: int) -> None:
        """Let the state have its length; while a graph is being made, before the graph sees it."""
        if torch.compiler.is_compiling():
            _fitted(self._handle, index(channels))  # of this length only, where others are dynamic
        else:
            self._fit(channels)

    def _fit(self, channels: int, loading: bool = False) -> None:
        """Give the state its length along the axis, once the first data tells it. Tensors stay the same objects."""
        known, offset = self.magnitude_base.shape[0], self.magnitude_offset
        if known == channels:
            return
        if self.calibrated and not self._one_for_all():
            raise QuantizerError(
                f"{path_of(self)}: the input has {entries(self.granularity, channels)}, but the {known} scales "
                "were collected for as many. Use another quantizer for this input."
            )
        if offset is not None and (type(offset) is not nn.Parameter if loading else distributed()):
            raise QuantizerError(  # what splits or synchronizes parameters relies on their sizes
                f"{path_of(self)}: there are {entries(self.granularity, channels)}, and several processes train "
                f"together on a model that was made without that number. Give the quantizer channels={channels}."
            )
        following = () if self._zero_point is None else (self._zero_point.base, self._zero_point.offset)
        for tensor in (*self._bases(), *self._offsets(), *following):
            tensor.data = tensor.data[:1].repeat(channels)

    def _one_for_all(self) -> bool:
        """Whether the one magnitude that there is stands for every index of the axis."""
        return False

    # State

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation."""
        self._forget()
        return super().train(mode)

    def _forget(self) -> None:
        """Forget what was read from the tensors, and read it again."""
        self._whole = self._settled = self._counted = False
        self._look()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded = state_dict.get(prefix + "magnitude_base")
        if loaded is not None:
            self._adapt(state_dict, prefix)
            if not self.granularity.single and loaded.ndim == 1 and loaded.shape != self.magnitude_base.shape:
                self._reset_for(loaded, state_dict.get(prefix + "measured"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._forget()
        if self._learned() and not self._settled:
            self.finish_calibration()  # what was learned is not measured over

    def _adapt(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Let a range that another kind of scaling stored, such as a calibrated one, be loaded into this one."""
        base = state_dict[prefix + "magnitude_base"]
        for name in self._ends:
            key, offset = f"{prefix}{name}_offset", getattr(self, f"{name}_offset")
            if offset is not None and key not in state_dict:
                state_dict[key] = torch.zeros_like(base)
            elif offset is None and key in state_dict:
                base_key, learned = f"{prefix}{name}_base", state_dict.pop(key)
                share = state_dict.get(prefix + "measured", torch.ones(1))
                state_dict[base_key] = state_dict[base_key] + share * learned

    def _reset_for(self, loaded: Tensor, share: Tensor | None) -> None:
        """Make room for a file of another number of channels, where this one measured nothing or has one for all."""
        if not self.calibrated or self._one_for_all() or (share is not None and not bool(share > 0)):
            self.reset_parameters()
            self._fit(loaded.shape[0], loading=True)

    def _learned(self) -> bool:
        offsets = [each for each in self._offsets() if not each.is_meta and type(each) is nn.Parameter]
        return any(bool((each != 0).any()) for each in offsets)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_whole": False, "_settled": False, "_counted": False, "_loop": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._handle = _registered(self)  # copies and loaded models are scalings of their own
        self._look()

    def extra_repr(self) -> str:
        return f"{self.statistic!r}, {super().extra_repr()}, {self.progress()}"


class _Loop:
    """What the inputs of a loop are parts of, and what became of it."""

    def __init__(self, x: Tensor | None) -> None:
        self.x = None if x is None else x.detach()
        self.taken = x is None
        self.ends: dict[str, Tensor] = {}


class LearnedScaling(StoredScaling):
    """A scale that is a parameter from the start (LSQ), first set from a statistic of the weight or the first input.

    Until the first training forward a weight's scale follows the weight, so that weights may be initialised or loaded
    after construction. What is stored is the magnitude that the largest integer stands for, in the restriction's
    domain.

    Args:
        number_format: the levels of the grid.
        statistic: what the first value is measured by.
        restriction: which scales are allowed, and the domain of the parameter.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        granularity: which values share a scale, where ``axis`` can't say it.
        channels: how many scales there are, where known.
        shape: of the tensor that is quantized, where known.
        max_value: start from this magnitude instead of a statistic.
        scale_gradient: what multiplies the gradient of the scale: ``"lsq"`` for LSQ's factor, None for nothing.

    Raises:
        SettingError: a maximum that is not above 0.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> scaling = LearnedScaling(IntRange(4, signed=False), max_value=6.0)
        >>> scaling(torch.ones(2))
        tensor(0.4000, grad_fn=<DivBackward0>)
    """

    renewed = False  # whether it is measured more than once, as quantization is delayed: a graph has to go on asking

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
        max_value: float | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        scale_gradient: ScaleGradient | None = None,
    ) -> None:
        granularity = granularity_of(axis, granularity)
        super().__init__(
            number_format,
            statistic,
            restriction,
            min_scale,
            granularity,
            channels,
            shape,
            1,
            device,
            dtype,
            learned=True,
            scale_gradient=scale_gradient,
        )
        if max_value is not None and finite("max_value", max_value, "a number above 0") <= 0:
            raise SettingError("max_value", max_value, "a number above 0")
        self.max_value = max_value
        if max_value is not None:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the scale to what it is before any data."""
        super().reset_parameters()
        if self.max_value is not None:
            start = torch.full_like(self.magnitude_base, self.max_value)
            self._set([self.restriction.store(start), *self._bases()[1:]])
            self.steps.fill_(self.calls)
            self._look()

    def _one_for_all(self) -> bool:
        return self.max_value is not None and self.magnitude_base.shape[0] == 1

    def prepare(self, x: Tensor, relu: bool = False) -> None:
        """Measure the first input before all else, so that this forward does what it will do when it is run again."""
        self._look()
        loop = self._loop
        if loop is not None:
            if loop.taken:
                return
            loop.taken, x = True, loop.x if loop.x is not None else x
        if self.training and not self._settled and not in_backward() and (x.numel() > 0 or distributed()):
            self._measure((x.relu() if relu else x).detach())

    @torch.no_grad()
    def _measure(self, x: Tensor) -> None:
        if not self.granularity.single:
            self._sized(self.granularity.count(x.shape))
        found = [usable(each) for each in measure(self.statistic, x, self.granularity)]
        before = self._bases()
        known = [self.restriction.load(before[0]), *before[1:]]  # layers that share the quantizer add to one's range
        joined = widest(known, [each.to(known[0]) for each in found])
        stored = [[self._stored_as(each[0]), *each[1:]] for each in (found, joined)]
        first, done = self.steps % self.calls == 0, self.steps >= self.calls
        chosen = zip(before, *stored, strict=True)
        self._set([torch.where(done, old, torch.where(first, new, both)) for old, new, both in chosen])
        self.steps.add_(~done)  # `+=` assigns the buffer, which hooks of an exporter may watch
        if _traced():
            self._whole, self._settled = True, self.calls == 1 and not self.renewed
        else:
            self._look()


def widest(one: list[Any], other: list[Any]) -> list[Any]:
    """The range that holds two: magnitudes, or widths with their lower ends, as numbers or as tensors.

    Example:
        >>> widest([1.5, -1.0], [1.55, 0.0])
        [2.55, -1.0]
    """
    largest: Any = max if isinstance(one[0], float) else torch.maximum
    smallest: Any = min if isinstance(one[0], float) else torch.minimum
    if len(one) == 1:
        return [largest(one[0], other[0])]
    low = smallest(one[1], other[1])
    return [largest(one[0] + one[1], other[0] + other[1]) - low, low]


# By a number, which is all that a graph may hold of a module.
scalings: "weakref.WeakValueDictionary[int, StoredScaling]" = weakref.WeakValueDictionary()
_handles = itertools.count()


def _registered(scaling: StoredScaling) -> int:
    handle = next(_handles)
    scalings[handle] = scaling
    return handle


@constant  # runs while the graph is made: in a graph no parameter can change its length
def _fitted(handle: int, channels: int) -> None:
    scalings[handle]._fit(channels)


def _traced() -> bool:
    """Whether a graph is being made, which can't depend on what tensors hold."""
    return torch.compiler.is_compiling() or is_tracing()


def in_backward() -> bool:
    """Whether autograd is at work: a forward in there repeats one, for gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
