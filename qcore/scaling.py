"""Where a scale comes from.

A scaling is a module ``x -> scale``: the scale is positive, and 0-d or broadcastable to ``x``. One of your own needs
nothing else; ask in its ``__init__`` for whatever attributes of the quantizer it depends on.
"""

import itertools
import math
import sys
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from .attributes import assign, keep, reset_off_meta
from .errors import BitwrightWarning, QuantizerError, SettingError
from .fused import AbsMaxFakeQuant, AbsMaxRowsFakeQuant, MagnitudeFakeQuant, apply_eagerly
from .grid import along_axis
from .inject import register_choices
from .int_range import IntRange, check_flag
from .locate import path_of
from .pooling import distributed
from .restriction import FloatScale
from .rounding import Rounding
from .statistic import AbsMax, Statistic, measure

__all__ = ["SCALINGS", "CalibratedScaling", "ConstantScaling", "LearnedScaling", "RunningScaling", "StatisticScaling"]

_FLOAT_SCALE = FloatScale()
_ABS_MAX = AbsMax()


class MagnitudeScaling(nn.Module):
    """What the shipped scalings share: a magnitude (in units of ``x``) becomes a scale."""

    measuring = True  # whether the next forward measures its input
    follows = False  # whether the first forward sets the scale from its input, though there is one already
    int_range: IntRange
    restriction: FloatScale
    min_scale: float
    axis: int | None

    def __init__(self, int_range: IntRange, restriction: FloatScale, min_scale: float, axis: int | None) -> None:
        super().__init__()
        if isinstance(min_scale, bool) or not isinstance(min_scale, (int, float)) or not min_scale > 0:
            raise SettingError("min_scale", min_scale, "a number above 0")
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
            raise SettingError("axis", axis, "a dimension such as 1, or None for one scale per tensor")
        assign(self, int_range=int_range, restriction=restriction, min_scale=float(min_scale), axis=axis)

    def _scale(self, magnitude: Tensor, ndim: int) -> Tensor:
        """The scale that maps a magnitude to the largest integer; never below the minimum, never half precision."""
        magnitude = magnitude if magnitude.dtype in (torch.float32, torch.float64) else magnitude.float()
        threshold = self.restriction.int_threshold(self.int_range)
        floor = self.min_scale * threshold
        at_least = torch.maximum(magnitude, floor) if isinstance(floor, Tensor) else torch.clamp_min(magnitude, floor)
        return along_axis(self.restriction.restrict(at_least) / threshold, self.axis, ndim)

    def settled(self) -> tuple[Tensor, ...]:
        """The tensors that alone determine the scale; none where it depends on the input."""
        return ()

    def reset_parameters(self) -> None:
        """Set the state to what it is before any data, as torch's layers do with theirs."""

    def _apply(self, fn: Any, recurse: bool = True) -> "MagnitudeScaling":
        return reset_off_meta(self, super()._apply, fn, recurse)

    def prepare(self, x: Tensor, relu: bool) -> None:
        """What comes before anything is asked of the scale; ``relu``: the values are those of ``x`` above 0."""

    def fused(
        self, x: Tensor, low: int, high: int, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale in one step where there is a fast form for this scaling, else None."""
        return None

    def _floor(self) -> float:
        return self.min_scale * float(self.restriction.int_threshold(self.int_range))

    def extra_repr(self) -> str:
        restriction = "" if type(self.restriction) is FloatScale else f", {self.restriction!r}"
        return ("per tensor" if self.axis is None else f"per index of axis {self.axis}") + restriction


class ConstantScaling(MagnitudeScaling):
    """A scale that is given and stays: ``scale=2**-7``, or from the range that it must cover.

    Args:
        int_range: the integers of the grid.
        scale: the scale itself: a number, or one for each index of ``axis``.
        max_value: with ``min_value``, the range to cover instead; the larger magnitude sets the scale.
        min_value: lower end of that range; by default ``-max_value``, or 0 where integers are unsigned.
        restriction: which scales are allowed.
        axis: the dimension of several scales.

    Raises:
        SettingError: neither or both of scale and max_value, or numbers that are not positive and finite.

    Example:
        >>> ConstantScaling(IntRange(8, signed=True), scale=2**-7)(torch.ones(3))
        tensor(0.0078)
    """

    measuring = False
    scale: Tensor

    def __init__(
        self,
        int_range: IntRange,
        scale: Any = None,
        max_value: float | None = None,
        min_value: float | None = None,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        device: Any = None,
    ) -> None:
        super().__init__(int_range, restriction, min_scale, axis)
        if scale is None and max_value is None:
            raise SettingError("scale", None, "a positive number such as 2**-7", "Or give the range: max_value=1.0.")
        for name, bound in (("max_value", max_value), ("min_value", min_value)):
            if scale is not None and bound is not None:
                raise SettingError("scale", scale, f"a scale or a range, not both ({name}={bound})")
        if scale is not None:
            constant = self._positive("scale", scale)
            allowed = restriction.restrict(constant)
            if not torch.equal(allowed, constant):
                remedy = f"Write scale={allowed.tolist()}."
                raise SettingError("scale", scale, f"a scale that {restriction!r} allows", remedy)
        else:
            reach = max(abs(_finite("max_value", max_value)), abs(_finite("min_value", min_value or 0.0)))
            constant = self._scale(self._positive("max_value", reach), 1).detach()
        if axis is None and constant.numel() != 1:
            raise SettingError("scale", scale, "one number", "Say which dimension the numbers are for: axis=1.")
        self._given = constant.reshape(() if axis is None else -1)
        there = self._given.to(device or torch.get_default_device(), copy=True)
        self.register_buffer("scale", there, persistent=False)

    def _positive(self, setting: str, number: Any) -> Tensor:
        try:
            found = torch.as_tensor(number, dtype=torch.float32, device="cpu").detach().clone()
        except (TypeError, ValueError, RuntimeError):
            raise SettingError(setting, number, "a positive number such as 2**-7") from None
        if not bool(((found > 0) & found.isfinite()).all()):
            raise SettingError(setting, number, "a positive, finite number")
        return found

    def extra_repr(self) -> str:
        number = f"{self._given.item():g}" if self._given.numel() == 1 else f"{self._given.numel()} numbers"
        return f"{number}, {super().extra_repr()}"

    def reset_parameters(self) -> None:
        """Set the constant to what was given."""
        self.scale.copy_(self._given)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)
        if self.scale.is_meta and local_metadata.get("assign_to_params_buffers", False):
            self.scale = self._given.clone()  # a constant is in no file

    def settled(self) -> tuple[Tensor, ...]:
        """The constant."""
        return (self.scale,)

    def forward(self, x: Tensor) -> Tensor:
        """The constant, shaped for ``x``."""
        if self.axis is not None and self.scale.numel() not in (1, x.shape[self.axis]):
            raise QuantizerError(
                f"{path_of(self)}: the input has {x.shape[self.axis]} entries along axis {self.axis}, and "
                f"{self.scale.numel()} scales are given. Give one scale, or one for each entry."
            )
        return along_axis(self.scale, self.axis, x.ndim)


class StatisticScaling(MagnitudeScaling):
    """The scale follows a statistic of the tensor at hand, at each forward: the default for weights.

    Args:
        int_range: the integers of the grid.
        statistic: what is measured, see `STATISTICS`.
        restriction: which scales are allowed.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        detach_scale: no gradient through the statistic: training is faster, the largest weight gets no extra pull.

    Example:
        >>> StatisticScaling(IntRange(8, signed=True, narrow_range=True))(torch.tensor([0.5, -1.27]))
        tensor(0.0100)
    """

    replayable = True
    statistic: Statistic
    detach_scale: bool

    def __init__(
        self,
        int_range: IntRange,
        statistic: Statistic = _ABS_MAX,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        detach_scale: bool = False,
    ) -> None:
        super().__init__(int_range, restriction, min_scale, axis)
        assign(self, statistic=statistic, detach_scale=check_flag("detach_scale", detach_scale))

    def fused(
        self, x: Tensor, low: int, high: int, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale of a weight whose largest magnitude sets the scale."""
        if clips or type(self.statistic) is not AbsMax or type(self.restriction) is not FloatScale:
            return None
        if x.numel() == 0 or self.axis not in (None, 0) or high >= 1 << 20:
            return None
        function = AbsMaxFakeQuant if self.axis is None else AbsMaxRowsFakeQuant
        return apply_eagerly(function, x, self._floor(), high, rounding, self.detach_scale)

    def forward(self, x: Tensor) -> Tensor:
        """The scale of ``x``."""
        source = x.detach() if self.detach_scale else x
        return self._scale(_usable(self.statistic(source, self.axis)), x.ndim)

    def low_of(self, x: Tensor) -> Tensor:
        """The lower end of the range of ``x``, for a zero point."""
        return _usable(self.statistic.low(x.detach(), self.axis))  # type: ignore[attr-defined]

    def extra_repr(self) -> str:
        return f"{self.statistic!r}, {super().extra_repr()}"


class _StoredScaling(MagnitudeScaling):
    """A magnitude kept as state, with the lower end of the range where the statistic has one.

    What is measured goes to buffers (``magnitude_base``, ``low_base``), what is learned to parameters that are added to
    them and start at 0 (``magnitude_offset``, ``low_offset``): forward never writes to a parameter, which would be lost
    where parameters are sharded, nor is a measured range rounded where parameters are cast to half precision.

    Invariant: the state dict has the same keys from construction on, and tensors are only ever changed in place.
    """

    magnitude_base: Tensor
    magnitude_offset: nn.Parameter | None
    low_base: Tensor  # with has_low
    low_offset: nn.Parameter | None
    has_low: bool
    steps: Tensor
    _made: tuple[Any, ...]
    statistic: Statistic
    calibrated: bool

    def __init__(
        self,
        int_range: IntRange,
        statistic: Statistic,
        restriction: FloatScale,
        min_scale: float,
        axis: int | None,
        channels: int | None,
        device: Any,
        dtype: torch.dtype | None,
        learned: bool,
    ) -> None:
        super().__init__(int_range, restriction, min_scale, axis)
        if channels is not None and (isinstance(channels, bool) or not isinstance(channels, int) or channels < 1):
            raise SettingError("channels", channels, "a whole number of channels, 1 or more")
        has_low = hasattr(statistic, "low")
        assign(self, statistic=statistic, has_low=has_low, calibrated=False)  # state is from data, or a file
        shape = (1 if axis is None else channels or 1,)  # not 0-d: such parameters can't be sharded
        assign(self, _made=(shape, device, dtype, learned))
        self.renew()

    def renew(self) -> None:
        """Make the tensors, as they are before any data."""
        shape, device, dtype, learned = self._made
        parameters: dict[str, nn.Parameter | None] = {}
        buffers = {"magnitude_base": self.restriction.store(torch.ones(shape, device=device, dtype=dtype))}
        if self.has_low:
            buffers["low_base"] = torch.zeros(shape, device=device, dtype=dtype)
        for name in ("magnitude_offset", "low_offset") if self.has_low else ("magnitude_offset",):
            zeros = torch.zeros(shape, device=device, dtype=dtype) if learned else None
            parameters[name] = None if zeros is None else nn.Parameter(zeros)
        buffers["steps"] = torch.zeros((), dtype=torch.int64, device=device)
        keep(self, parameters, buffers)

    @property
    def magnitude(self) -> Tensor:
        """The magnitude in use, in the restriction's domain: what was measured, and what was learned since."""
        return self._in_use("magnitude")

    @property
    def low(self) -> Tensor | None:
        """The lower end of the range in use; None where the statistic has none."""
        return self._in_use("low") if self.has_low else None

    def _in_use(self, name: str) -> Tensor:
        base, offset = getattr(self, f"{name}_base"), getattr(self, f"{name}_offset")
        return self._shaped(base if offset is None else base + offset)

    def _shaped(self, state: Tensor) -> Tensor:
        return state.reshape(()) if self.axis is None else state

    def _measured(self) -> list[Tensor]:
        """The buffers that hold what was measured."""
        return [self.magnitude_base, self.low_base] if self.has_low else [self.magnitude_base]

    @torch.no_grad()
    def _set(self, *measured: Tensor) -> None:
        """Replace what was measured, and forget what was learned."""
        for tensor, new in zip(self._measured(), measured, strict=True):
            tensor.copy_(new)
        for offset in self.parameters():
            offset.zero_()

    def reset_parameters(self) -> None:
        """Set the state to what it is before any data."""
        zeros = [torch.zeros_like(each) for each in self._measured()[1:]]
        self._set(self.restriction.store(torch.ones_like(self.magnitude_base)), *zeros)
        self.steps.zero_()
        self.calibrated = False

    @property
    def measuring(self) -> bool:
        """Whether the next forward measures its input."""
        return not self.calibrated

    def _fit(self, channels: int, loading: bool = False) -> None:
        """Give the state its length along the axis, once the first data tells it. Tensors stay the same objects."""
        known, offset = self.magnitude_base.shape[0], self.magnitude_offset
        if known == channels:
            return
        if self.calibrated:
            raise QuantizerError(
                f"{path_of(self)}: the input has {channels} entries along axis {self.axis}, but the {known} scales "
                "were collected for as many. Use another quantizer for this input."
            )
        if offset is not None and (type(offset) is not nn.Parameter if loading else distributed()):
            raise QuantizerError(  # what splits or synchronizes parameters relies on their sizes
                f"{path_of(self)}: there are {channels} entries along axis {self.axis}, and several processes train "
                f"together on a model that was made without that number. Give the quantizer channels={channels}."
            )
        for tensor in (*self._measured(), *self.parameters()):
            tensor.data = tensor.data[:1].repeat(channels)

    def _check(self, x: Tensor) -> None:
        """Refuse an input of another length along the axis than the data that the state comes from."""
        if self.axis is not None and self.calibrated:
            self._fit(x.shape[self.axis])

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set the state from one tensor."""
        if self.axis is not None:
            self._fit(x.shape[self.axis])
        measured = [self.restriction.store(_usable(self.statistic(x, self.axis)).clamp_min(self._floor()))]
        if self.has_low:
            measured.append(_usable(self.statistic.low(x, self.axis)))  # type: ignore[attr-defined]
        self._set(*measured)
        self.steps.fill_(1)
        self.calibrated = True

    def settled(self) -> tuple[Tensor, ...]:
        """The state, once there is any."""
        if not self.calibrated:
            return ()
        return (*self._measured(), *[each for each in self._parameters.values() if each is not None])

    def stored(self, x: Tensor) -> Tensor:
        """The magnitude in use, as it is stored; counts ``x`` where data is collected."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The scale in use; where data is collected, ``x`` counts first."""
        self._check(x)
        return self._scale(self.restriction.load(self.stored(x)), x.ndim)

    def fused(
        self, x: Tensor, low: int, high: int, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale where the scale is being learned."""
        offset = self.magnitude_offset
        if type(self.restriction) is not FloatScale or self.measuring or offset is None or not offset.requires_grad:
            return None
        self._check(x)
        shape = None
        if self.axis is not None:
            shape = [1] * x.ndim
            shape[self.axis] = -1
        threshold = -low if self.int_range.signed else high
        rest = (shape, threshold, self.min_scale * threshold, low, high, rounding, relu, clips)
        return apply_eagerly(MagnitudeFakeQuant, x, self.magnitude_base, offset, rest)

    def _at_hand(self, x: Tensor) -> Tensor:
        """The magnitude of the tensor at hand, for a quantizer that saw no data yet."""
        if not getattr(self, "_warned", False) and not torch.compiler.is_compiling():
            self._warned = True
            warnings.warn(
                f"{path_of(self)} is evaluated before it saw any data: it uses the range of the tensor at hand. "
                "Run some batches in training mode first, or load a checkpoint.",
                BitwrightWarning,
                stacklevel=2,
            )
        return _usable(self.statistic(x.detach(), self.axis))

    def low_of(self, x: Tensor) -> Tensor:
        """The lower end of the range, for a zero point."""
        if not self.training and not self.calibrated:
            return _usable(self.statistic.low(x.detach(), self.axis))  # type: ignore[attr-defined]
        return self._in_use("low")

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded, steps = (state_dict.get(prefix + name) for name in ("magnitude_base", "steps"))
        if loaded is not None and self.axis is not None and loaded.ndim == 1:
            self.calibrated = self.calibrated and (steps is None or bool(steps > 0))
            if not self.calibrated:
                self._fit(loaded.shape[0], loading=True)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if loaded is not None and prefix + "steps" in state_dict:
            self.calibrated = bool(self.steps > 0)

    def extra_repr(self) -> str:
        return f"{self.statistic!r}, {super().extra_repr()}"


class LearnedScaling(_StoredScaling):
    """A scale that is a parameter from the start (LSQ), first set from a statistic of the weight or the first input.

    A weight's scale follows the weight until the first forward, so that weights may be initialised or loaded after
    construction. What is stored is the magnitude that the largest integer stands for, in the restriction's domain.

    Args:
        int_range: the integers of the grid.
        statistic: what the first value is measured by.
        restriction: which scales are allowed, and the domain of the parameter.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        channels: how many indices the axis has, where known.
        max_value: start from this magnitude instead of a statistic.

    Example:
        >>> scaling = LearnedScaling(IntRange(4, signed=False), max_value=6.0)
        >>> scaling(torch.ones(2))
        tensor(0.4000, grad_fn=<DivBackward0>)
    """

    def __init__(
        self,
        int_range: IntRange,
        statistic: Statistic = _ABS_MAX,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        channels: int | None = None,
        max_value: float | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(int_range, statistic, restriction, min_scale, axis, channels, device, dtype, learned=True)
        if max_value is not None and _finite("max_value", max_value) <= 0:
            raise SettingError("max_value", max_value, "a number above 0")
        self.max_value = max_value
        self.follows = max_value is None
        if max_value is not None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the scale to what it is before any data."""
        super().reset_parameters()
        self.follows = self.max_value is None
        if self.max_value is not None:
            self.magnitude_base.copy_(self.restriction.store(torch.full_like(self.magnitude_base, self.max_value)))
            self.steps.fill_(1)
            self.calibrated = True

    def settled(self) -> tuple[Tensor, ...]:
        """The state, once the first forward has settled it."""
        return () if self.follows else super().settled()

    def prepare(self, x: Tensor, relu: bool) -> None:
        """Measure the first input before all else, so that this forward does what it will do when it is run again."""
        if self.follows:
            self._start(x.clamp_min(0) if relu else x)

    def _start(self, x: Tensor) -> None:
        if self.follows and x.numel() > 0 and (self.calibrated or self.training):
            self.observe(x.detach())
            self.follows = False

    def stored(self, x: Tensor) -> Tensor:
        """The magnitude in use, as it is stored."""
        self._start(x)
        if self.calibrated or self.training:
            return self.magnitude
        return self.restriction.store(self._at_hand(x))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if prefix + "magnitude_base" in state_dict:
            self.follows = not self.calibrated


class CalibratedScaling(_StoredScaling):
    """A scale collected from the first training batches, then learned: the default for activations.

    For ``calibration_steps`` training forwards the state is a running average of the statistic (used as it stands
    after each batch, in training and evaluation alike); from then on it is an ordinary parameter. Batches whose
    statistic is not finite are left out of the average.

    Args:
        int_range: the integers of the grid.
        statistic: what is measured.
        restriction: which scales are allowed, and the domain of the parameter.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        channels: how many indices the axis has; found from the first input otherwise.
        calibration_steps: training forwards that are averaged, 1 or more.
        momentum: weight of each new batch in the average; None for the plain mean.

    Raises:
        SettingError: a number of steps below 1, or a momentum outside (0, 1].

    Example:
        >>> scaling = CalibratedScaling(IntRange(8, signed=False), calibration_steps=1)
        >>> _ = scaling(torch.tensor([0.0, 2.55]))
        >>> scaling(torch.ones(2)), scaling.calibrating
        (tensor(0.0100, grad_fn=<DivBackward0>), False)
    """

    replayable = True
    learned = True
    calibration_steps: int
    momentum: float | None
    measured = False  # whether the last forward was one of the collection, as the one that ends it is
    calibrating: bool
    _just_ended: bool  # the last forward ended the collection: gradient checkpointing may run it again
    _forwards: int
    _handle: int

    def __init__(
        self,
        int_range: IntRange,
        statistic: Statistic = _ABS_MAX,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        channels: int | None = None,
        calibration_steps: int = 300,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(int_range, statistic, restriction, min_scale, axis, channels, device, dtype, self.learned)
        if isinstance(calibration_steps, bool) or not isinstance(calibration_steps, int) or calibration_steps < 1:
            raise SettingError("calibration_steps", calibration_steps, "a whole number of training steps, 1 or more")
        number = isinstance(momentum, (int, float)) and not isinstance(momentum, bool)
        if momentum is not None and not (number and 0 < momentum <= 1):
            raise SettingError("momentum", momentum, "a number above 0, up to 1, or None for the plain mean")
        # `calibrating` is the one flag that traced code branches on; it flips once
        assign(self, calibration_steps=calibration_steps, momentum=momentum, calibrating=True)
        assign(self, _just_ended=False, _forwards=0)

    def renew(self) -> None:
        """Make the tensors, as they are before any data."""
        super().renew()
        vars(self)["_handle"] = _registered(self)

    @property
    def measuring(self) -> bool:
        """Whether the next forward measures its input."""
        return (self.training and self._in_collection()) or not self.calibrated

    def _in_collection(self) -> bool:
        """Whether a training forward is one of the collection; run again in backward, it is what it was before."""
        if not torch.compiler.is_compiling() and self._just_ended:
            self._just_ended = _in_backward()
            return self._just_ended
        return self.calibrating

    def stored(self, x: Tensor) -> Tensor:
        """The magnitude in use, as it is stored; in training, while collecting, ``x`` counts first."""
        measured = self.training and self._in_collection()
        if not torch.compiler.is_exporting():  # which warns of every attribute that is set
            self.measured = measured
        if measured:
            if not _in_backward():
                with torch.no_grad():
                    self._collect(x)
            return self._idle("magnitude")
        if not self.training and not self.calibrated:
            return self.restriction.store(self._at_hand(x))
        return self.magnitude

    def low_of(self, x: Tensor) -> Tensor:
        """The lower end of the range, for a zero point."""
        return self._idle("low") if self.measured else super().low_of(x)

    def _idle(self, name: str) -> Tensor:
        """What is not learned yet; distributed training wants a gradient from every parameter all the same: zero."""
        base, offset = getattr(self, f"{name}_base"), getattr(self, f"{name}_offset")
        if offset is None or not (offset.requires_grad and distributed()):
            return self._shaped(base)
        return self._shaped(base + 0.0 * offset)

    def _collect(self, x: Tensor) -> None:
        if x.numel() == 0 and not distributed():
            return
        if self.axis is not None:
            self._fit(x.shape[self.axis])
        if torch.compiler.is_compiling():
            _collect_op()(self._measured(), self.steps, x.detach(), self._handle)
        else:
            self._average(self._measured(), self.steps, x.detach())

    def _average(self, state: list[Tensor], steps: Tensor, x: Tensor) -> None:
        """One step of the running average, in place, and of the counter; ends the collection when it is due."""
        found = measure(self.statistic, x, self.axis)
        if self.axis is None and steps.device.type == "cpu" and type(self.restriction).store is FloatScale.store:
            seen = self._average_numbers(state, steps, [each.item() for each in found])
        else:
            seen = self._average_tensors(state, steps, found)
        assign(self, calibrated=self.calibrated or seen, _forwards=self._forwards + 1)
        if self._forwards >= self.calibration_steps:
            assign(self, calibrating=False, _just_ended=True)

    def _average_numbers(self, state: list[Tensor], steps: Tensor, found: list[float]) -> bool:
        """The step with plain numbers, which cost less than small tensors; whether anything was ever counted."""
        before = int(steps.item())
        if not all(map(math.isfinite, found)):
            return before > 0
        share = 1 / (before + 1) if self.momentum is None else self.momentum
        for index, (tensor, new) in enumerate(zip(state, found, strict=True)):
            old = tensor.item() if index else abs(tensor.item())
            average = old + share * (new - old) if before else new
            tensor.fill_(average if index else max(average, self._floor()))
        steps.fill_(before + 1)
        return True

    def _average_tensors(self, state: list[Tensor], steps: Tensor, found: list[Tensor]) -> bool:
        """The step without a word to the host but one; whether anything was ever counted."""
        finite = torch.stack([each.isfinite().all() for each in found]).all()
        mean = 1 / (steps + 1) if self.momentum is None else torch.full_like(steps, self.momentum, dtype=torch.float32)
        for index, (tensor, new) in enumerate(zip(state, found, strict=True)):
            old = self.restriction.load(tensor) if index == 0 else tensor
            new = new.to(old.dtype)
            average = torch.where(steps == 0, new, old + mean * (new - old))
            average = torch.where(finite, average, old)
            floored = average.clamp_min(self._floor()) if index == 0 else average
            tensor.copy_(self.restriction.store(floored) if index == 0 else floored)
        steps += finite.to(steps.dtype)
        return self.calibrated or bool(steps > 0)

    def finish_calibration(self) -> None:
        """End the collection now: from the next forward on the scale is learned."""
        self.calibrating = False
        if self.calibrated:
            self.steps.clamp_(min=self.calibration_steps)  # also in a file

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if prefix + "steps" in state_dict:
            self._forwards = int(self.steps)
            self.calibrating, self._just_ended = self._forwards < self.calibration_steps, False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = _registered(self)  # copies and loaded models count for themselves

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {'calibrating' if self.calibrating else 'learned'}"


class RunningScaling(CalibratedScaling):
    """A running average of the statistic, as in batch normalisation: updated by every training forward, never learned.

    Args are those of `CalibratedScaling`, without ``calibration_steps``.

    Example:
        >>> scaling = RunningScaling(IntRange(8, signed=False), momentum=0.5)
        >>> _ = scaling(torch.tensor([1.0])), scaling(torch.tensor([2.0]))
        >>> scaling.magnitude
        tensor(1.5000)
    """

    replayable = True
    learned = False

    def __init__(
        self,
        int_range: IntRange,
        statistic: Statistic = _ABS_MAX,
        restriction: FloatScale = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        channels: int | None = None,
        momentum: float | None = 0.1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            int_range, statistic, restriction, min_scale, axis, channels, sys.maxsize, momentum, device, dtype
        )


def _in_backward() -> bool:
    """Whether autograd is at work: a forward in there repeats one, for gradient checkpointing."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _usable(statistic: Tensor) -> Tensor:
    """A statistic fit to set a scale by: one that is not finite (from NaN or infinite values) counts as 1."""
    return torch.where(statistic.isfinite(), statistic, 1.0)


def _finite(setting: str, number: object) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise SettingError(setting, number, "a finite number")
    return float(number)


# Under torch.compile the average is one opaque operation: its Python can end the collection without a graph break.
_collecting: "weakref.WeakValueDictionary[int, CalibratedScaling]" = weakref.WeakValueDictionary()
_handles = itertools.count()


def _registered(scaling: CalibratedScaling) -> int:
    handle = next(_handles)
    _collecting[handle] = scaling
    return handle


def _collect_op() -> Any:
    return torch.ops.bitwright.collect.default


@torch.library.custom_op("bitwright::collect", mutates_args=("state", "steps"))
def _collect(state: list[Tensor], steps: Tensor, x: Tensor, handle: int) -> None:
    if not _in_backward():
        _collecting[handle]._average(state, steps, x)


SCALINGS = register_choices(
    "scaling",
    {
        "constant": ConstantScaling,
        "statistic": StatisticScaling,
        "learned": LearnedScaling,
        "calibrated": CalibratedScaling,
        "running": RunningScaling,
    },
)
