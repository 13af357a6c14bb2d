"""Quantization to a grid of levels: the module that declared quantizers resolve into."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import protocols
from .declare.inject import possible_settings, resolve
from .errors import QuantizerError, ReadOnlyError, SettingError, UncalibratedWarning
from .formats.int_range import check_flag
from .formats.learned_codebook import LearnedCodebook
from .formats.number_format import NumberFormat
from .formats.unaligned import UnalignedIntegers
from .granularity import Granularity, granularity_of
from .grid import Grid
from .kernels.dispatch import as_real, quantize_to_int, to_levels
from .kernels.fused import runs_eagerly
from .locate import path_of
from .protocols import checked
from .rounding import HalfEven, HalfUp, Rounding
from .scaling import (
    CalibratedScaling,
    FixedScaling,
    FixedZeroPoint,
    MagnitudeScaling,
    RunningScaling,
    StoredScaling,
)
from .scaling.restriction import FloatScale
from .scaling.zero_point import RangeZeroPoint
from .schedules.clock import Clock, clock_for
from .tensor_quant import Kept, TensorQuant
from .tracing import is_tracing

__all__ = ["FLOAT_BITS", "Declared", "GridQuant", "ScaleFloor", "exact_codes", "resting"]

_HALF_EVEN = HalfEven()
_WIDE = (torch.float32, torch.float64)
FLOAT_BITS = 22  # bits of integers that float32 values give back exactly


class Declared(TensorQuant):
    """What quantizers to a grid share: attributes that follow from the declaration, and don't change afterwards."""

    rounding: protocols.Rounding

    def __setattr__(self, name: str, item: Any) -> None:
        if name in _DECLARED and (name in self.__dict__ or name in self._modules or name in _PROPERTIES):
            raise ReadOnlyError(_settled_message(self, name, item))
        if "quantizer" in self.__dict__ and not name.startswith("_"):
            self._check_setting(name, item)
        super().__setattr__(name, item)

    def _check_setting(self, name: str, item: object) -> None:
        """A part may be exchanged for its like; what only served to make the parts can't be set any more."""
        if name in _EXCHANGED and (name in self.__dict__ or name in self._modules):
            if item is not None or name != "zero_point":
                checked(name, item)
        elif not any(name in held for held in (self.__dict__, self._modules, self._parameters, self._buffers)):
            assert self.quantizer is not None
            if name in possible_settings(self.quantizer):
                raise ReadOnlyError(_settled_message(self, name, item))

    def extra_repr(self) -> str:
        return f"{self.scheme()}, {_name(self.rounding)}"


_PROPERTIES = {"signed", "narrow_range", "axis", "number_format"}
_EXCHANGED = {"rounding", "scaling", "zero_point"}
_DECLARED = {"bit_width", "granularity", "transform", *_PROPERTIES}


def _settled_message(quant: TensorQuant, name: str, item: object) -> str:
    declared = "Q" if quant.quantizer is None else repr(quant.quantizer(**{name: item}))
    return (
        f"{type(quant).__name__}: {name}={item!r} can't be set on a quantizer that is built: its other parts were made "
        f"for another value. Give the layer another one: layer.{_slot_of(quant)}_quant = {declared}."
    )


def _slot_of(quant: TensorQuant) -> str:
    return next((slot for ref, slot in quant._served if ref() is not None), "weight" if quant.of_parameter else "act")


class ScaleFloor(NamedTuple):
    """The smallest scales that a weight may have: worked out only where one of them might be smaller.

    Args:
        bound: a number that none of the smallest scales exceeds; None where a graph is made, which can't ask.
        scales: what works them out: 0-d, or one for each index of the axis.

    Example:
        >>> ScaleFloor(0.5, lambda: torch.tensor(0.25)).binds(torch.tensor(1.0))
        False
    """

    bound: float | None
    scales: Callable[[], Tensor]

    def binds(self, scale: Tensor) -> bool:
        """Whether a scale may have to be raised."""
        return self.bound is None or scale.amin().item() < self.bound


class GridQuant(Declared):
    """Quantization to a grid: to the levels of a number format times a scale, and back to values.

    Args:
        number_format: the levels.
        scaling: module ``x -> scale``.
        rounding: callable on ``x / scale``.
        zero_point: callable ``(x, scale) -> zero point``, or None for 0; of integers only.
        axis: the dimension that has a scale for each index, or None.
        granularity: which values share a scale, where ``axis`` can't say it.
        pass_clipped: let gradients through where values were clipped, too.
        transform: module ``(weight, inputs) -> weight``: what a weight becomes before all else, or None.
        clip_first: clip values to the ends of the range before they are rounded, as PACT, DoReFa and WRPN do it:
            gradients end exactly at the ends, not half a step farther out, and a learned scale is moved by what is
            clipped alone.
        after: training forwards that pass values unquantized, while the range is measured; evaluation quantizes.

    Attributes:
        clock: counts training forwards, where a setting changes with them; else None.

    Raises:
        SettingError: something that is no number format, a zero point for levels that are no integers, or
            ``clip_first`` with ``pass_clipped`` or a zero point.

    Example:
        >>> from bitwright.quantizers import Fp8e4m3WeightPerTensor
        >>> from bitwright.qcore import resolve
        >>> quant = resolve(Fp8e4m3WeightPerTensor, {"channel_axis": 0})
        >>> quant(torch.tensor([0.2, -0.6, 1.0])), quant.number_format.high
        (tensor([ 0.1964, -0.5714,  1.0000]), 448.0)
    """

    granularity: Granularity
    scaling: protocols.Scaling
    zero_point: protocols.ZeroPoint | None
    transform: protocols.Transform | None
    clips: bool
    clip_first: bool
    number_format: NumberFormat
    _format: NumberFormat | None  # what grids say; None where it changes in training
    _levels: NumberFormat | None  # what the arithmetic works with; None where a setting changes in training
    _timed: NumberFormat | None = None  # the same where a clock counts; None where the levels change
    _plain: bool  # whether the fast forms may take it
    _single: bool
    _broadcasts: bool
    _scale_format: NumberFormat | None  # what the scales are held in, where they are quantized themselves
    _warned = False
    clock: Clock | None
    counts_steps = True  # settings may be annealed

    def __init__(
        self,
        number_format: NumberFormat,
        scaling: protocols.Scaling,
        rounding: protocols.Rounding = _HALF_EVEN,
        zero_point: protocols.ZeroPoint | None = None,
        axis: int | None = None,
        granularity: Granularity | None = None,
        pass_clipped: bool = False,
        transform: protocols.Transform | None = None,
        clip_first: bool = False,
        after: int = 0,
    ) -> None:
        if not isinstance(number_format, NumberFormat):
            raise SettingError("number_format", number_format, "a number format such as E4M3 or Integers(8)")
        if zero_point is not None and not number_format.whole:
            expected = f"None: zero points are integers', and {number_format} has other levels"
            raise SettingError("zero_point", zero_point, expected, "Write zero_point=None.")
        super().__init__()
        fixed = None if number_format.learned else number_format
        vars(self).update(number_format=number_format, _levels=fixed, _format=fixed, _plain=fixed is not None)
        if isinstance(number_format, LearnedCodebook):
            self.levels = number_format.module
        self._set_clock(after, [scaling, rounding, zero_point, transform])
        self._set_parts(scaling, rounding, zero_point, axis, granularity, pass_clipped, transform, clip_first)

    def _set_clock(self, after: int, parts: list[object]) -> None:
        clock = clock_for(after, parts)
        vars(self)["clock"] = None
        if clock is not None:
            self.clock = clock
            vars(self).update(_levels=None, _timed=self._levels)  # the slow way, which counts

    def _set_parts(
        self,
        scaling: protocols.Scaling,
        rounding: protocols.Rounding,
        zero_point: protocols.ZeroPoint | None,
        axis: int | None,
        granularity: Granularity | None,
        pass_clipped: bool,
        transform: protocols.Transform | None,
        clip_first: bool = False,
    ) -> None:
        where, plain = granularity_of(axis, granularity), vars(self)  # where it can be, past nn.Module's bookkeeping
        plain.update(granularity=where, _single=where.single, _broadcasts=where.broadcasts)
        self.scaling = checked("scaling", scaling)
        self.rounding = checked("rounding", rounding)
        for name, part in (("zero_point", zero_point), ("transform", transform)):
            if part is None:
                plain[name] = None
            else:
                setattr(self, name, checked(name, part))
        plain["clips"] = not (check_flag("pass_clipped", pass_clipped) or self._covered())
        plain["clip_first"] = _checked_clip(clip_first, pass_clipped, zero_point)

    def __setattr__(self, name: str, item: Any) -> None:
        super().__setattr__(name, item)
        if name == "scaling":
            vars(self)["_scale_format"] = getattr(getattr(item, "restriction", None), "scale_format", None)

    def _covered(self) -> bool:
        """Can nothing be clipped? Then the gradient needs no mask."""
        levels = self._range()
        if not levels.symmetric or levels.learned or self.zero_point is not None:
            return False
        nearest = type(self.rounding) in (HalfEven, HalfUp)  # the others may round the largest magnitude past its level
        return nearest and getattr(self.scaling, "covers", False)

    def _range(self) -> protocols.Levels:
        """The levels as the parts know them."""
        return self.number_format

    @property
    def axis(self) -> int | None:
        """The dimension that has a scale for each index; None for one scale, and for other granularities."""
        return self.granularity.axis

    @property
    def calibrated(self) -> bool:
        """Whether the grid is known: a weight's always is, an activation's once there was data, if it needs any."""
        return self.of_parameter or getattr(self.scaling, "calibrated", True)

    @property
    def calibrating(self) -> bool:
        """Whether training forwards still measure their input: the range is not learned yet."""
        return not self.of_parameter and getattr(self.scaling, "calibrating", False)

    def progress(self) -> str:
        """What there is to say of the calibration, such as ``"calibrating, 100 of 300 steps"``, and of schedules."""
        said = [] if self.clock is None else [self.clock.progress()]
        if isinstance(self.scaling, StoredScaling) and (self.calibrating or not self.calibrated):
            said.insert(0, self.scaling.progress())
        return ", ".join(filter(None, said))

    @property
    def dynamic(self) -> bool:
        """Whether another input gets another grid in evaluation."""
        parts = (self.scaling,) if self.zero_point is None else (self.scaling, self.zero_point)
        return any(getattr(part, "dynamic", True) for part in parts)

    @property
    def folds_relu(self) -> bool:
        """Whether a ReLU before it costs nothing: the clamp at the lowest level does it."""
        return False

    def serve(self, layer: nn.Module, slot: str) -> None:
        """Count a layer among those that use this quantizer; a stored range is measured over all of them."""
        super().serve(layer, slot)
        if self.transform is not None and len(self._served) > 1:
            self._check_one_weight(layer)
        scaling = self.scaling
        count = len(self._served)
        if self.clock is not None:
            self.clock.join(layer, count)
        if isinstance(scaling, StoredScaling) and not self.of_parameter and count != scaling.calls:
            phase = scaling.phase
            if count > scaling.calls or phase == "empty":  # layers that are gone count no more
                scaling.calls = count
            if phase == "calibrated" and not isinstance(scaling, RunningScaling):  # joining starts no calibration anew
                scaling.finish_calibration()

    def _check_one_weight(self, layer: nn.Module) -> None:
        """Refuse a second weight: what a transform learned is one weight's."""
        first, *others = self._parameters_served()
        if any(each is not first and each.data_ptr() != first.data_ptr() for each in others):
            raise QuantizerError(
                f"{type(layer).__name__}: {self.quantizer!r} transforms the weight of another layer "
                f"(transform={type(self.transform).__name__}), and can't be shared. Pass the class, not the module."
            )

    def _quantize(
        self,
        x: Tensor,
        relu: bool = False,
        floor: "ScaleFloor | None" = None,
        inputs: Grid | None = None,
        bias: Tensor | None = None,
        levels: NumberFormat | None = None,
    ) -> tuple[Tensor, Grid]:
        """Values and grid; no scale is below ``floor``, where there is one.

        Args:
            x: the values.
            relu: they are those of ``x`` above 0.
            floor: the smallest scales.
            inputs: for a transform, the grid of what a weight is multiplied with.
            bias: for a transform, what is added to the products on their scale.
            levels: where they change in training: as they are now.
        """
        if x.dtype not in _WIDE:
            real = x if x.is_floating_point() else as_real(x, path_of(self))
            values, grid = self._quantize(real.float(), *_given(relu, floor, inputs, bias))
            return values.to(real.dtype), grid
        granularity = self.granularity
        if not (self._single or granularity.fits(x.ndim)):
            raise QuantizerError(_misfit(self, x))
        if levels is None:
            levels = self._levels
            if levels is None:
                return self._quantize_timed(x, relu, floor, inputs, bias)
        transform = limit = None
        if self.transform is not None:
            transform, limit = self.transform, getattr(self.transform, "limit", None)
            x = transform(x, inputs)
        kept = None
        if not torch.compiler.is_compiling() and self._kept is not None and transform is None:
            kept = self._kept_grid(x, self._kept)
        if kept is not None and floor is None:
            return self._moved(x, kept.scale, levels, kept.zero_point, relu, True), kept
        scaling = self.scaling
        seen, measuring = x, True
        if isinstance(scaling, StoredScaling):
            seen = self._together(x) if self.of_parameter and transform is None else x
            scaling.prepare(seen, relu)
            measuring = scaling.measuring
            if measuring and not self.training:
                self._warn()
        elif isinstance(scaling, MagnitudeScaling):
            measuring = scaling.measuring
        fusible = isinstance(scaling, MagnitudeScaling) and limit is None and not (relu and measuring)
        if fusible and self._fusible(x):
            fused = scaling.fused(x, levels, self.rounding, relu, self.clips)  # type: ignore[arg-type]
            if fused is not None and (floor is None or not floor.binds(fused[1])):
                return fused[0], self._grid(fused[1], None)
        if relu and measuring:
            seen = (
                x.detach() if isinstance(scaling, StoredScaling) else seen
            ).relu()  # what is measured is the activation
        scale, raised = self._scale(seen), False
        if floor is not None and floor.binds(scale):
            least = granularity.compact(floor.scales(), x.shape)
            scale, raised = torch.where(scale < least, least, scale), True
        zero_point = None if self.zero_point is None else self._zero_of(seen, scale)
        if limit is not None:
            x = limit(x, scale, inputs, bias)
        grid = self._grid(scale, zero_point)
        grid = grid.replace(scale_format=None) if raised else grid
        return self._moved(x, scale, levels, zero_point, relu, self.clips), grid

    def _quantize_timed(
        self, x: Tensor, relu: bool, floor: "ScaleFloor | None", inputs: Grid | None, bias: Tensor | None
    ) -> tuple[Tensor, Grid]:
        """`_quantize` where something changes in training: the levels, or another setting that a clock counts for."""
        clock = self.clock
        if clock is not None:
            clock.tick()
            if clock.after:
                clock.renew(self.scaling)
        levels = self._levels_for(x) if self._timed is None else self._timed
        values, grid = GridQuant._quantize(self, x, relu, floor, inputs, bias, levels)
        if clock is None or not (clock.after and clock.training):
            return values, grid
        if self.transform is not None and not getattr(self.transform, "rounds", False):
            x = self.transform(x, inputs)
        return clock.passed(x, values, relu), grid

    def _moved(
        self,
        x: Tensor,
        scale: Tensor,
        levels: NumberFormat,
        zero_point: Tensor | None,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        """The values moved onto the grid."""
        granularity = self.granularity
        if self.clip_first:
            x, relu, clips = self._clipped(x, scale, levels, relu), False, False
            scale = scale.detach()
        if zero_point is not None and not getattr(self.zero_point, "whole", True):
            view, step = granularity.view(x), granularity.beside(scale, x)
            zero = granularity.beside(zero_point, x)
            reached = to_levels(view / step + zero, step.new_ones(()), levels, None, self.rounding, clips=clips)
            return granularity.back((reached - zero) * step, x)
        if self._broadcasts:
            return to_levels(x, scale, levels, zero_point, self.rounding, relu=relu, clips=clips)
        zero_point = None if zero_point is None else granularity.beside(zero_point, x)
        view, beside = granularity.view(x), granularity.beside(scale, x)
        values = to_levels(view, beside, levels, zero_point, self.rounding, relu=relu, clips=clips)
        return granularity.back(values, x)

    def _clipped(self, x: Tensor, scale: Tensor, levels: NumberFormat, relu: bool) -> Tensor:
        """The values clipped to the ends of the range; what lies at the upper end counts as clipped, as in PACT."""
        view = self.granularity.view(x)
        beside = scale if self._broadcasts else self.granularity.beside(scale, x)
        if relu:
            view = torch.where(view <= 0, 0.0, view)  # as torch's ReLU, which has no gradient at 0
        else:
            low = levels.low * beside
            view = torch.where(view < low, low, view)
        high = levels.high * beside
        return self.granularity.back(torch.where(view >= high, high, view), x)

    def _levels_for(self, x: Tensor) -> NumberFormat:
        """The levels for a tensor, where they change in training."""
        return self.number_format

    def _scale(self, x: Tensor) -> Tensor:
        if isinstance(self.scaling, MagnitudeScaling):
            return self.scaling(x)
        granularity = self.granularity
        if x.numel() == 0:
            return granularity.compact(x.new_ones(granularity.count(x.shape)), x.shape)
        scale = self.scaling(x)  # of the user's own
        return scale if granularity.broadcasts else granularity.compact(scale.reshape(-1), x.shape)

    def _zero_of(self, x: Tensor, scale: Tensor) -> Tensor:
        assert self.zero_point is not None
        if x.numel() == 0 and not isinstance(self.zero_point, RangeZeroPoint):  # a function of the user's own
            return torch.zeros_like(scale)
        return self.zero_point(x, scale)

    def _kept_grid(self, x: Tensor, kept: Kept) -> Grid | None:
        """The grid that is kept while the model is frozen, for an input of that rank."""
        if self.training or not kept.live or torch.is_grad_enabled():
            return None
        key = None if self.granularity.single else x.shape
        found = kept.get(key)
        if found is None and not self.dynamic:
            kept[key] = found = self.grid(x)
        return found

    def _together(self, x: Tensor) -> Tensor:
        """What a stored range is measured on: all the weights that it is for, where layers share the quantizer."""
        if not self.of_parameter or len(self._served) < 2 or not self._measures():
            return x
        tensors = [each.detach() for each in self._parameters_served()]
        if self.granularity.single:
            return torch.cat([each.reshape(-1) for each in tensors])
        if self.axis is None:
            raise QuantizerError(
                f"{path_of(self)} has a stored scale for each of {self.granularity}, which layers can't share. Give "
                "each layer a quantizer of its own: pass the class, not the module."
            )
        axis = self.axis % x.ndim
        lengths = {each.shape[axis] if axis < each.ndim else 0 for each in tensors}
        if len(lengths) > 1:
            raise QuantizerError(
                f"{path_of(self)} has a scale for each index of axis {self.axis}, and the tensors of the layers that "
                f"share it have {' and '.join(map(str, sorted(lengths)))} of them. Share a quantizer with axis=None, "
                "or give each layer its own."
            )
        rows = torch.cat([each.movedim(axis, 0).flatten(1) for each in tensors], 1)
        if axis == 0:
            return rows.reshape(*rows.shape, *[1] * (x.ndim - 2))
        shape = [1] * x.ndim
        shape[0], shape[axis] = rows.shape[1], rows.shape[0]
        return rows.t().reshape(shape)

    def _measures(self) -> bool:
        """Whether the range is measured, or may be: it was not yet, or this forward in training adds to an average."""
        scaling = self.scaling
        if not isinstance(scaling, StoredScaling):
            return False
        averaged = self.training and isinstance(scaling, CalibratedScaling)
        return not scaling.calibrated or (averaged and (isinstance(scaling, RunningScaling) or scaling.calibrating))

    def _fusible(self, x: Tensor) -> bool:
        """Whether a scaling may do the whole work in one step: fixed levels, nothing of the user's own."""
        plain = self._plain and self.zero_point is None and not self.clip_first
        return plain and isinstance(self.rounding, Rounding) and runs_eagerly(x)

    def _grid(self, scale: Tensor, zero_point: Tensor | None) -> Grid:
        number_format = self._number_format() if self._format is None else self._format
        if zero_point is not None and not getattr(self.zero_point, "whole", True):
            number_format = UnalignedIntegers(int(number_format.bit_width))
        return Grid(
            scale.detach() if scale.requires_grad or is_tracing() else scale,
            None if zero_point is None else zero_point.detach(),
            number_format,
            self.granularity,
            self.source if self._one_scale() else None,
            scale_format=self._scale_format,
        )

    def _number_format(self) -> NumberFormat:
        """What grids say, where it changes in training."""
        return self.number_format.snapshot()

    def _one_scale(self) -> bool:
        """Whether one stored scale makes every grid: a scale that follows each tensor is shared by none."""
        if isinstance(self.scaling, StoredScaling):
            return self.training or torch.compiler.is_compiling() or self.scaling.calibrated
        return not getattr(self.scaling, "dynamic", True)

    def _warn(self) -> None:
        if self._warned or self.of_parameter or torch.compiler.is_compiling():
            return
        self._warned = True
        warnings.warn(
            f"{path_of(self)} is evaluated before it saw any data: it uses the range of the tensor at hand "
            "and learns nothing from it. Calibrate the model, `with bitwright.graph.calibrate(model): model(batch)`, "
            "train it, or load a checkpoint.",
            UncalibratedWarning,
            stacklevel=2,
        )

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """The grid that ``x`` would be moved to in evaluation; nothing is measured or learned from it."""
        with resting(self):
            kept, self._kept = self._kept, None
            try:
                return self._quantize(x)[1]
            finally:
                self._kept = kept

    def scale(self) -> Tensor:
        """The scale as it stands, where it depends on no input: constant, learned or calibrated. () or (channels,).

        Raises:
            QuantizerError: the scale is dynamic, or has seen no data yet.
        """
        state = getattr(self.scaling, "magnitude_base", getattr(self.scaling, "scale", None))
        if getattr(self.scaling, "dynamic", True) or not isinstance(state, Tensor):
            raise QuantizerError(
                f"{self.scheme()}: the scale follows the input, or has seen none yet. Ask for the grid of an input, "
                "quant.grid(x).scale, or run some batches in training mode first."
            )
        with resting(self), torch.no_grad():
            scale = self.scaling.standing() if isinstance(self.scaling, StoredScaling) else state.clone()
        return scale.reshape(() if self.granularity.single else -1)

    # Grids that stay

    @property
    def fixed(self) -> bool:
        """Whether the scales were fixed by `fix`."""
        return isinstance(self.scaling, FixedScaling)

    def fix(self, grid: Grid) -> None:
        """Keep a grid from now on, whatever becomes of the weight; its scales and zero points become state.

        Algorithms that choose the codes of a weight need it: what they found lies on this grid, and a scale that is
        measured anew on the result would be another. A file says that a grid is fixed, and a model takes that over
        when it loads one; `release`, a new parameter or a float checkpoint end it.

        Args:
            grid: of the weight, with the levels and granularity of this quantizer.

        Raises:
            QuantizerError: the quantizer transforms weights, or is for activations, or for several weights; or the
                grid is that of another quantizer or weight.

        Example:
            >>> import bitwright.nn as qnn
            >>> layer = qnn.QuantLinear(2, 1, bias=False, weight_bit_width=4)
            >>> with torch.no_grad():
            ...     _ = layer.weight.copy_(torch.tensor([[7.0, 1.0]]))
            >>> layer.weight_quant.fix(layer.quant_weight().grid)
            >>> with torch.no_grad():
            ...     _ = layer.weight.copy_(torch.tensor([[5.0, 1.4]]))
            >>> layer.int_weight()
            tensor([[5, 1]], dtype=torch.int8)
        """
        if not self.of_parameter or self.transform is not None or len(self._served) > 1:
            why = (
                "it transforms weights, which have no grid before"
                if self.transform is not None
                else "it serves several weights"
                if self.of_parameter
                else "only a weight has a grid that can be fixed"
            )
            raise QuantizerError(f"{path_of(self)}: the grid can't be fixed: {why}.")
        self._check_fits(grid)
        if not self.fixed and self._covered():
            vars(self)["clips"] = True  # other weights may lie beyond the ends
        restriction = getattr(self.scaling, "restriction", FloatScale())
        self._fix(grid.scale, grid.zero_point, restriction)

    def _check_fits(self, grid: Grid) -> None:
        """Refuse a grid that isn't one of this quantizer's weight."""
        served = self._parameters_served()
        if not served:
            return
        own = self.grid(served[0].detach())
        for what, asked, here in (
            ("levels", grid.number_format, own.number_format),
            ("granularity", grid.granularity, own.granularity),
            ("shape of scales", tuple(grid.scale.shape), tuple(own.scale.shape)),
            ("zero points", grid.zero_point is not None, own.zero_point is not None),
        ):
            if asked != here:
                raise QuantizerError(
                    f"{path_of(self)}: the grid can't be fixed: its {what}: {asked}, and the weight's: {here}. Take "
                    "the grid that the weight has, layer.quant_weight().grid, and replace its scales."
                )

    def _fix(self, scale: Tensor, zero_point: Tensor | None, restriction: FloatScale) -> None:
        self._stale = False
        if self.zero_point is not None:
            assert zero_point is not None
            fixed = FixedZeroPoint(zero_point, getattr(self.zero_point, "whole", True))
            self.zero_point = fixed.train(self.training)
        scaling = FixedScaling(scale, self._range(), self.granularity, restriction)
        self.scaling = scaling.train(self.training)

    def release(self) -> None:
        """Let the scales follow the weight again, or be learned, as the declaration says.

        Learned scales start from the fixed ones; those with a zero point of their own start from the weight.

        Raises:
            QuantizerError: the quantizer was built by hand, so that nothing says where scales came from.
        """
        if not self.fixed:
            return
        if self.quantizer is None:
            raise QuantizerError(f"{path_of(self)}: no declaration says where the scales came from. Set `scaling`.")
        fresh = resolve(self.quantizer, self.provided)
        assert isinstance(fresh, GridQuant)
        fixed: Tensor = self.scaling.fixed_scale  # type: ignore[attr-defined]
        if self.zero_point is not None:
            self._modules.pop("zero_point")
            again: Any = fresh.zero_point  # a module, or a function of the user's own
            nn.Module.__setattr__(self, "zero_point", again)
        self.scaling = scaling = fresh.scaling
        vars(self)["clips"] = fresh.clips
        self.to(fixed.device).train(self.training)
        if isinstance(scaling, StoredScaling) and not scaling.has_low:
            threshold = scaling.restriction.int_threshold(scaling.number_format)
            scaling.set_range([fixed.reshape(-1) * threshold])
        else:
            super().rederive()

    @torch.no_grad()
    def codes(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid]:
        """The codes that ``x`` is moved to, exactly, in the smallest type that holds them; and the grid."""
        wide = x if x.dtype == torch.float64 else as_real(x).float()
        values, grid = self._quantize(wide, *context)
        if self.transform is None and grid.number_format.whole and int(grid.bit_width) > FLOAT_BITS:
            return exact_codes(wide, grid, self.rounding), grid
        return grid.to_int(values), grid

    def rederive(self) -> None:
        """Measure a stored range anew at the next use; a fixed grid follows the weight again."""
        if self.fixed and self.quantizer is not None:
            self.release()
        super().rederive()
        for part in (
            self.scaling if isinstance(self.scaling, StoredScaling) else None,
            self.zero_point,
            self.rounding,
            self.transform,
        ):
            reset = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        scales, steps = f"{prefix}scaling.", f"{prefix}clock.steps"
        self._fix_as_saved(state_dict, prefix)
        if self.clock is None:
            state_dict.pop(steps, None)  # of a delay, which says nothing of the numbers
        elif prefix + "scheme" in state_dict and steps not in state_dict:
            state_dict[steps] = torch.zeros_like(self.clock.steps)
        if (
            self.of_parameter
            and prefix + "scheme" in state_dict
            and not any(key.startswith(scales) for key in state_dict)
        ):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self.rederive()  # the file's scale followed the weight
            self._absent = scales
        else:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _fix_as_saved(self, state_dict: dict[str, Tensor], prefix: str) -> None:
        """Be ready for the grid of a file: a fixed one, or one that the file's weights say."""
        scale = state_dict.get(f"{prefix}scaling.fixed_scale")
        if scale is not None and self.of_parameter:
            zero_point = state_dict.get(f"{prefix}zero_point.fixed_zero_point")
            now = getattr(self.scaling, "fixed_scale", None)
            fits = self.transform is None and (zero_point is None) == (self.zero_point is None)
            if fits and (now is None or now.shape != scale.shape):
                device: Any = self.provided.get("device")
                zero = None if zero_point is None else torch.empty_like(zero_point, device=device)
                restriction = getattr(self.scaling, "restriction", FloatScale())
                self._fix(torch.empty_like(scale, device=device), zero, restriction)
        elif self.fixed and prefix + "scheme" in state_dict and self.quantizer is not None:
            self.release()

    def scheme(self) -> str:
        """What the numbers mean, such as ``int4 narrow, axis 0, float scale``."""
        where = str(self.granularity)
        restriction = getattr(self.scaling, "restriction", None)
        allowed = getattr(restriction, "kind", FloatScale.kind)
        zero = "" if self.zero_point is None else ", zero point"
        zero = zero if getattr(self.zero_point, "whole", True) else ", float zero point"
        said = "" if self.transform is None else f", {_scheme_of(self.transform)}"
        return f"{self._range()}, {where}, {allowed} scale{zero}{said}"


@contextmanager
def resting(quant: nn.Module) -> Iterator[None]:
    """A quantizer that neither measures nor draws random numbers for the time of the block, as in evaluation."""
    modes = [(module, module.training) for module in quant.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _checked_clip(clip_first: object, pass_clipped: bool, zero_point: object) -> bool:
    """The flag, or a `SettingError` where something else says another thing of what is clipped."""
    flag = check_flag("clip_first", clip_first)
    if flag and pass_clipped:
        raise SettingError("clip_first", flag, "False where gradients pass what is clipped", "Leave out pass_clipped.")
    if flag and zero_point is not None:
        raise SettingError("clip_first", flag, "False with a zero point: its gradient comes from what is clipped")
    return flag


def _given(relu: bool, floor: ScaleFloor | None, inputs: Grid | None, bias: Tensor | None) -> tuple[Any, ...]:
    """The arguments that say something: `_quantize` of a subclass may take none of them."""
    if inputs is not None or bias is not None:
        return (relu, floor, inputs, bias)
    return (relu, floor) if floor is not None else (True,) if relu else ()


def _scheme_of(transform: protocols.Transform) -> str:
    """What a file says of a transform: never the name of a class, which may change."""
    said = getattr(transform, "scheme", None)
    return "transformed" if said is None else said()


def exact_codes(x: Tensor, grid: Grid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The integers of values, worked out with as many digits as wide integers have."""
    scale = grid.along(grid.scale, x.shape).double()
    zero_point = None if grid.zero_point is None else grid.along(grid.zero_point, x.shape)
    return quantize_to_int(x.double(), scale, *grid.bounds, zero_point, rounding).to(grid.number_format.dtype)


def _misfit(quant: GridQuant, x: Tensor) -> str:
    granularity = quant.granularity
    if granularity.axis is None:
        remedy = f"Write a group_axis from {-x.ndim} to {x.ndim - 1}." if x.ndim else "Quantize it per tensor."
        return f"{path_of(quant)}: an input of {x.ndim} dimensions can't have {granularity}. {remedy}"
    return (
        f"{path_of(quant)}: axis={quant.axis} is not a dimension of an input of {x.ndim} dimensions. Write one "
        f"from {-x.ndim} to {x.ndim - 1}, or axis=None for one scale."
    )


def _name(rounding: object) -> str:
    return getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
