"""Quantization to integers: the modules that integer quantizers resolve into."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import protocols
from .declare.inject import possible_settings
from .errors import BitwrightWarning, QuantizerError, ReadOnlyError, UncalibratedWarning
from .formats.int_range import IntRange, check_flag
from .formats.number_format import Integers
from .granularity import Granularity, PerAxis, PerTensor, granularity_of
from .grid import Grid
from .kernels.dispatch import as_real, fake_quant, quantize_to_int
from .kernels.fused import runs_eagerly
from .locate import path_of
from .protocols import checked
from .rounding import HalfEven, HalfUp, Rounding
from .scaling import CalibratedScaling, MagnitudeScaling, RunningScaling, StatisticScaling, StoredScaling
from .scaling.restriction import FloatScale, LogScale
from .tensor_quant import Kept, TensorQuant
from .tracing import is_tracing, transformed
from .zero_point import RangeZeroPoint

__all__ = ["FLOAT_BITS", "BiasQuant", "IntQuant", "resting"]

_HALF_EVEN = HalfEven()
_WIDE = (torch.float32, torch.float64)
FLOAT_BITS = 22  # bits of integers that float32 values give back exactly


class _Integers(TensorQuant):
    """What quantizers to integers share: attributes that follow from the declaration, and don't change afterwards."""

    int_range: IntRange
    bit_width: int | nn.Module
    rounding: protocols.Rounding
    _format: Integers | None  # of the range; None where the bit width is learned
    _ends: tuple[int, int] | None

    @property
    def signed(self) -> bool:
        """Whether integers may be negative."""
        return self.int_range.signed

    @property
    def narrow_range(self) -> bool:
        """Whether the range leaves out one end."""
        return self.int_range.narrow_range

    def __setattr__(self, name: str, item: Any) -> None:
        if name in _DECLARED and (name in self.__dict__ or name in self._modules or name in _PROPERTIES):
            raise ReadOnlyError(_settled_message(self, name, item))
        if "quantizer" in self.__dict__ and not name.startswith("_"):
            self._check_setting(name, item)
        super().__setattr__(name, item)
        if name == "int_range":
            fixed = None if item.learned else _format_of(item)
            vars(self).update(_format=fixed, _ends=None if fixed is None else fixed.bounds)  # asked at every forward

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


_PROPERTIES = {"signed", "narrow_range", "axis"}
_EXCHANGED = {"rounding", "scaling", "zero_point"}
_DECLARED = {"bit_width", "granularity", *_PROPERTIES}


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


class IntQuant(_Integers):
    """Quantization to integers: ``clamp(round(x / scale) + zero_point)``, and back to values.

    Args:
        int_range: the integers of the grid.
        scaling: module ``x -> scale``.
        rounding: callable on ``x / scale``.
        zero_point: callable ``(x, scale) -> zero point``, or None for 0.
        axis: the dimension that has a scale for each index, or None.
        granularity: which values share a scale, where ``axis`` can't say it.
        pass_clipped: let gradients through where values were clipped, too.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> from bitwright.qcore import resolve
        >>> quant = resolve(Int8WeightPerTensor(bit_width=2), {"channel_axis": 0})
        >>> quant(torch.tensor([0.2, -0.6, 1.0]))
        tensor([ 0., -1.,  1.])
    """

    granularity: Granularity
    scaling: protocols.Scaling
    zero_point: protocols.ZeroPoint | None
    clips: bool
    _single: bool
    _broadcasts: bool
    _warned = False

    def __init__(
        self,
        int_range: IntRange,
        scaling: protocols.Scaling,
        rounding: protocols.Rounding = _HALF_EVEN,
        zero_point: protocols.ZeroPoint | None = None,
        axis: int | None = None,
        granularity: Granularity | None = None,
        pass_clipped: bool = False,
    ) -> None:
        super().__init__()
        self.int_range = int_range
        self.bit_width = int_range.width
        self.granularity = granularity_of(axis, granularity)
        vars(self).update(_single=self.granularity.single, _broadcasts=self.granularity.broadcasts)
        self.scaling = checked("scaling", scaling)
        self.rounding = checked("rounding", rounding)
        self.zero_point = None if zero_point is None else checked("zero_point", zero_point)
        self.clips = not (check_flag("pass_clipped", pass_clipped) or _covers(int_range, scaling, zero_point, rounding))

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
        """What there is to say of the calibration, such as ``"calibrating, 100 of 300 steps"``; else nothing."""
        if isinstance(self.scaling, StoredScaling) and (self.calibrating or not self.calibrated):
            return self.scaling.progress()
        return ""

    @property
    def dynamic(self) -> bool:
        """Whether another input gets another grid in evaluation."""
        parts = (self.scaling,) if self.zero_point is None else (self.scaling, self.zero_point)
        return any(getattr(part, "dynamic", True) for part in parts)

    @property
    def folds_relu(self) -> bool:
        """Whether a ReLU before it costs nothing: the clamp at the smallest integer does it."""
        return not self.signed and self.zero_point is None

    def serve(self, layer: nn.Module, slot: str) -> None:
        """Count a layer among those that use this quantizer; a stored range is measured over all of them."""
        super().serve(layer, slot)
        scaling = self.scaling
        count = len(self._served)
        if isinstance(scaling, StoredScaling) and not self.of_parameter and count != scaling.calls:
            phase = scaling.phase
            if count > scaling.calls or phase == "empty":  # layers that are gone count no more
                scaling.calls = count
            if phase == "calibrated" and not isinstance(scaling, RunningScaling):  # joining starts no calibration anew
                scaling.finish_calibration()

    def _quantize(self, x: Tensor, relu: bool = False, floor: "ScaleFloor | None" = None) -> tuple[Tensor, Grid]:
        """Values and grid; no scale is below ``floor``, where there is one."""
        if x.dtype not in _WIDE:
            real = x if x.is_floating_point() else as_real(x, path_of(self))
            values, grid = self._quantize(real.float(), *_given(relu, floor))
            return values.to(real.dtype), grid
        granularity = self.granularity
        if not (self._single or granularity.fits(x.ndim)):
            raise QuantizerError(_misfit(self, x))
        low, high = self._ends or self._bounds(x)
        kept = None if torch.compiler.is_compiling() or self._kept is None else self._kept_grid(x, self._kept)
        if kept is not None and floor is None:
            return self._moved(x, kept.scale, low, high, kept.zero_point, relu, True), kept
        scaling = self.scaling
        seen, measuring = x, True
        if isinstance(scaling, StoredScaling):
            seen = self._together(x)
            scaling.prepare(seen, relu)
            measuring = scaling.measuring
            if measuring and not self.training:
                self._warn()
        elif isinstance(scaling, MagnitudeScaling):
            measuring = scaling.measuring
        if isinstance(scaling, MagnitudeScaling) and not (relu and measuring) and self._fusible(x, high):
            fused = scaling.fused(x, low, high, self.rounding, relu, self.clips)  # type: ignore[arg-type]
            if fused is not None and (floor is None or not floor.binds(fused[1])):
                return fused[0], self._grid(fused[1], None)
        if relu and measuring:
            seen = (
                x.detach() if isinstance(scaling, StoredScaling) else seen
            ).relu()  # what is measured is the activation
        scale = self._scale(seen)
        if floor is not None and floor.binds(scale):
            least = granularity.compact(floor.scales(), x.shape)
            scale = torch.where(scale < least, least, scale)
        zero_point = None if self.zero_point is None else self._zero_of(seen, scale)
        return self._moved(x, scale, low, high, zero_point, relu, self.clips), self._grid(scale, zero_point)

    def _moved(
        self,
        x: Tensor,
        scale: Tensor,
        low: int | Tensor,
        high: int | Tensor,
        zero_point: Tensor | None,
        relu: bool,
        clips: bool,
    ) -> Tensor:
        """The values moved onto the grid."""
        granularity = self.granularity
        if self._broadcasts:
            return fake_quant(x, scale, low, high, zero_point, self.rounding, relu=relu, clips=clips)
        zero_point = None if zero_point is None else granularity.beside(zero_point, x)
        view, beside = granularity.view(x), granularity.beside(scale, x)
        values = fake_quant(view, beside, low, high, zero_point, self.rounding, relu=relu, clips=clips)
        return granularity.back(values, x)

    def _bounds(self, x: Tensor) -> tuple[int | Tensor, int | Tensor]:
        """The ends of integers of a learned width, shaped to broadcast against what `_moved` works on."""
        return self.int_range.bounds(lambda widths: self._beside(widths, x))

    def _beside(self, widths: Tensor, x: Tensor) -> Tensor:
        """Bit widths, one for each scale."""
        scales = self.granularity.count(x.shape)
        if widths.numel() != scales:
            name = type(self.int_range.width).__name__
            raise QuantizerError(
                f"{name} gives {widths.numel()} bit widths, and the quantizer has one scale. Give it one for each "
                "channel, too: weight_quant=Int8WeightPerChannel, or axis=0."
                if self.granularity.single
                else f"{name} gives {widths.numel()} bit widths, and the quantizer has {scales} scales "
                f"({self.granularity}). Give one bit width, or one for each scale."
            )
        return self.granularity.beside(widths, x)

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

    def _fusible(self, x: Tensor, high: int | Tensor) -> bool:
        """Whether a scaling may do the whole work in one step: plain integers, nothing of the user's own."""
        if self.zero_point is not None or not isinstance(high, int) or high >= 1 << 23:
            return False
        return isinstance(self.rounding, Rounding) and runs_eagerly(x)

    def _grid(self, scale: Tensor, zero_point: Tensor | None) -> Grid:
        return Grid(
            scale.detach() if scale.requires_grad or is_tracing() else scale,
            None if zero_point is None else zero_point.detach(),
            self._format or _format_of(self.int_range),
            self.granularity,
            self.source if self._one_scale() else None,
        )

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

    @torch.no_grad()
    def codes(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid]:
        """The integers that ``x`` is moved to, exactly, in the smallest type that holds their range; and the grid."""
        wide = x if x.dtype == torch.float64 else as_real(x).float()
        values, grid = self._quantize(wide, *context)
        return grid.to_int(values) if int(grid.bit_width) <= FLOAT_BITS else _exact(wide, grid, self.rounding), grid

    def rederive(self) -> None:
        """Measure a stored range anew at the next use."""
        super().rederive()
        if isinstance(self.scaling, StoredScaling):
            self.scaling.reset_parameters()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        scales = f"{prefix}scaling."
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

    def scheme(self) -> str:
        """What the numbers mean, such as ``int4 narrow, axis 0, float scale``."""
        where = str(self.granularity)
        restriction = getattr(self.scaling, "restriction", None)
        allowed = getattr(restriction, "kind", FloatScale.kind)
        zero = "" if self.zero_point is None else ", zero point"
        return f"{self.int_range}, {where}, {allowed} scale{zero}"


class BiasQuant(_Integers):
    """Quantization of a bias to integers on the scale of the products it is added to: input scale x weight scale.

    A bias that its integers can't hold is clipped, and the first time a warning names the channels.

    Args:
        int_range: the integers of the grid.
        rounding: callable on ``bias / scale``.

    Raises:
        QuantizerError: in forward, where the products have no common scale.

    Example:
        >>> quant = BiasQuant(IntRange(32, signed=True))
        >>> inputs, weights = Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25))
        >>> quant(torch.tensor([0.3]), inputs, weights)
        tensor([0.2500])
    """

    follows_input = True
    _warned = False

    def __init__(self, int_range: IntRange, rounding: protocols.Rounding = _HALF_EVEN) -> None:
        super().__init__()
        self.int_range = int_range
        self.bit_width = int_range.width
        self.rounding = checked("rounding", rounding)

    def floor(self, bias: Tensor, inputs: Grid, by_channel: bool) -> ScaleFloor | None:
        """The smallest scales of the weight with which the bias is not clipped; None where that is no matter.

        A dead channel has tiny weights and a bias all the same. From 24 bits on, weights below such a scale add less to
        the sum than the bias's own rounding to 22 bits; a narrower bias would push weights away that do count.

        Args:
            bias: the bias.
            inputs: grid of the input, with one scale or one for each entry of the bias.
            by_channel: whether the weight has a scale for each entry of the bias, or one.
        """
        width = self.int_range.width
        if not isinstance(width, int) or width < 24 or bias.numel() == 0:
            return None
        steps = 2.0 ** (width - 2)

        def scales() -> Tensor:
            least = bias.detach().abs().to(inputs.scale.dtype) / (inputs.scale.reshape(-1) * steps)
            return least if by_channel else least.amax()

        if torch.compiler.is_compiling() or transformed() or bias.device.type != "cpu":
            return ScaleFloor(None, scales)
        return ScaleFloor(bias.detach().abs().amax().item() / (inputs.scale.amin().item() * steps), scales)

    def _quantize(self, bias: Tensor, inputs: Grid | None = None, weights: Grid | None = None) -> tuple[Tensor, Grid]:
        grid = self._grid(bias, inputs, weights)
        low, high = self.int_range.bounds()
        wide = bias.double() if isinstance(high, int) and high >= 1 << FLOAT_BITS else bias
        values = fake_quant(wide, grid.scale.to(wide.dtype), low, high, None, self.rounding).to(bias.dtype)
        if not self._warned and bias.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed()):
            self._warn(bias, grid.scale, low, high)
        return values, grid

    def _grid(self, bias: Tensor, inputs: Grid | None, weights: Grid | None) -> Grid:
        if inputs is None or weights is None:
            lacking = "the input is a plain tensor" if inputs is None else "the weight lies on no grid of integers"
            remedy = (
                "Set return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act, or choose a "
                "bias with a scale of its own: bias_quant=Int8BiasOwnScale."
                if inputs is None
                else "Set weight_quant=Int8WeightPerTensor, or bias_quant=Int8BiasOwnScale."
            )
            raise QuantizerError(
                f"{path_of(self)}: this bias quantizer needs the scales of input and weight, and {lacking}. {remedy}"
            )
        if inputs.scale.numel() != 1:
            raise QuantizerError(
                f"{path_of(self)}: the input has {inputs.scale.numel()} scales ({inputs.granularity}), so its products "
                "with the weight have no common one for the bias. Quantize the input per tensor (axis=None), or "
                "choose bias_quant=Int8BiasOwnScale."
            )
        scale = inputs.scale.reshape(()) * weights.scale.reshape(-1)
        scale = scale.reshape(()) if scale.numel() == 1 else scale
        granularity = PerTensor() if scale.ndim == 0 else PerAxis(0)
        return Grid(scale, None, _format_of(self.int_range), granularity)

    def _warn(self, bias: Tensor, scale: Tensor, low: int | Tensor, high: int | Tensor) -> None:
        if not isinstance(high, int) or bias.numel() == 0:
            return
        if bias.detach().abs().amax().item() <= scale.amin().item() * high:  # the short way: usually all is well
            return
        codes = bias.detach() / scale
        beyond = (codes >= high + 1) | (codes <= low - 1)
        if bool(beyond.any()):
            self._warned = True
            channels = beyond.reshape(-1).nonzero().reshape(-1).tolist()
            wider = "" if high == 2**31 - 1 else "bias_quant=Int32Bias, or "
            named = ", ".join(map(str, channels[:8])) + (f" and {len(channels) - 8} more" if len(channels) > 8 else "")
            warnings.warn(
                f"{path_of(self)}: the bias of channel{'s' * (len(channels) > 1)} {named} lies outside the range of "
                f"{self.int_range} on the scale of the products and is clipped. Write {wider}"
                "bias_quant=Int8BiasOwnScale for a scale of its own.",
                BitwrightWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def codes(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid]:
        """The integers of a bias, exactly, in the smallest type that holds their range; and the grid."""
        grid = self._grid(x, *context)
        return _exact(x, grid, self.rounding), grid

    def scheme(self) -> str:
        """What the numbers mean, such as ``int32, scale of the products``."""
        return f"{self.int_range}, scale of the products"


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


def _given(relu: bool, floor: ScaleFloor | None) -> tuple[Any, ...]:
    """The arguments that say something: `_quantize` of a subclass may take none of them."""
    return (relu, floor) if floor is not None else (True,) if relu else ()


def _exact(x: Tensor, grid: Grid, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """The integers of values, worked out with as many digits as wide integers have."""
    scale = grid.along(grid.scale, x.shape).double()
    zero_point = None if grid.zero_point is None else grid.along(grid.zero_point, x.shape)
    return quantize_to_int(x.double(), scale, *grid.bounds, zero_point, rounding).to(grid.number_format.dtype)


def _format_of(int_range: IntRange) -> Integers:
    width = int_range.widest
    return Integers(width.detach() if isinstance(width, Tensor) else width, int_range.signed, int_range.narrow_range)


def _misfit(quant: IntQuant, x: Tensor) -> str:
    granularity = quant.granularity
    if granularity.axis is None:
        return (
            f"{path_of(quant)}: an input of {x.ndim} dimensions can't have {granularity}. Write a group_axis from "
            f"{-x.ndim} to {x.ndim - 1}."
        )
    return (
        f"{path_of(quant)}: axis={quant.axis} is not a dimension of an input of {x.ndim} dimensions. Write one "
        f"from {-x.ndim} to {x.ndim - 1}, or axis=None for one scale."
    )


def _covers(int_range: IntRange, scaling: object, zero_point: object, rounding: object) -> bool:
    """Can nothing be clipped? Then the gradient needs no mask."""
    symmetric = int_range.signed and int_range.narrow_range and zero_point is None and not int_range.learned
    nearest = type(rounding) in (HalfEven, HalfUp)  # the others may round the largest magnitude past its integer
    if not symmetric or not nearest or type(scaling) is not StatisticScaling:
        return False
    return getattr(scaling.statistic, "covers", False) and type(scaling.restriction) in (FloatScale, LogScale)


def _name(rounding: object) -> str:
    return getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
