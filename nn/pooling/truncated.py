"""Average pooling as integer hardware does it: sums of integers, divided and rounded, on the input's grid."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from ...qcore import (
    ROUNDINGS,
    Grid,
    QuantizerError,
    QuantTensor,
    TensorQuant,
    int_bounds,
    path_of,
    round_straight_through,
)
from ...qcore.errors import SettingError
from ...qcore.formats.integers import Integers
from ...qcore.grid import integers_of
from ...qcore.protocols import Rounding, checked
from ...qcore.quant_tensor import grid_lost
from ...qcore.tracing import exporting
from ..layer import QuantLayer
from ..slots import Described, QuantizerLike, Slot, checked_flag
from .windows import adaptive_counts, adaptive_windows, each_dimension, lengths_of, sums_between, sums_of_windows

__all__ = ["TruncAdaptiveAvgPool2d", "TruncAvgPool2d", "TruncatedAverage"]

_EXACT = 2**23  # quotients of integers up to here are rounded in float32 as they would be exactly


class TruncatedAverage(QuantLayer):
    """What truncating average pools share: integers in, sums of integers, integers out.

    A `QuantTensor` comes in, or a tensor that ``input_quant`` quantizes. Its integers, minus the zero point, are summed
    over each window, divided by the number of elements, and rounded. Padding is 0. Gradients are those of the average.

    Args:
        bit_width: None leaves the averages on the grid of the input. A number of bits keeps the most significant bits
            of the sum, as a shift to the right does: the sum has as many bits as the largest one needs, and the step of
            the result is the input's times ``2**shift / elements``, which is the input's own where the number of
            elements is a power of two and the widths are the same.
        rounding: how the quotient is rounded: ``"half_even"``, ``"half_up"``, ``"floor"`` (a plain shift),
            ``"ceil"``, ``"toward_zero"``, or a function of your own.
        input_quant: quantizer of the input, or None for an input that comes on a grid.
        return_quant_tensor: return a `QuantTensor` that carries the result's grid.
        device: of the quantizer's state.
        dtype: of the quantizer's state.
        **overrides: settings of ``input_quant``: ``input_bit_width=4``.

    A plain tensor, as it comes where quantizers are switched off (`bitwright.nn.unquantized`), is averaged as by torch,
    in floats.

    Raises:
        QuantizerError: in the constructor, for an unused or impossible setting; in forward, for a grid that averages
            leave, and for a plain tensor with ``return_quant_tensor=True`` unless a quantized one came before.
    """

    slots: tuple[Slot, ...] = (Slot("input"),)

    input_quant: TensorQuant | None
    bit_width: int | None
    rounding: Rounding
    return_quant_tensor: bool
    intercept: Callable[[Any, Tensor], Tensor] | None = None  # what stands in for forward
    seen: Grid | None = None  # of the last quantized input
    divisor_override: int | None = None

    def _attach(
        self,
        bit_width: int | None,
        rounding: object,
        input_quant: QuantizerLike,
        return_quant_tensor: bool,
        device: Device,
        dtype: torch.dtype | None,
        overrides: Mapping[str, object],
    ) -> None:
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        whole = isinstance(bit_width, int) and not isinstance(bit_width, bool) and 1 <= bit_width <= 32
        if bit_width is not None and not whole:
            raise QuantizerError(
                f"{Described(self)}: bit_width={bit_width!r} is not possible: expected None, or a number from 1 to 32."
            )
        self.bit_width = bit_width
        self.rounding = _rounding_of(self, rounding)
        self._where = {"device": device, "dtype": dtype}
        self.fill_slots(input_quant=input_quant, **overrides)

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        options: dict[str, Any] = dict(given)
        self._attach(
            options.pop("bit_width", None),
            options.pop("rounding", "half_even"),
            options.pop("input_quant", None),
            options.pop("return_quant_tensor", False),
            device,
            dtype,
            options,
        )

    def _provided(self, slot: Slot) -> Mapping[str, object]:
        return self._where

    # What the kinds of pooling differ in

    def _sums(self, steps: Tensor) -> Tensor:
        """The sum over each window."""
        raise NotImplementedError

    def _divisor(self, sizes: Sequence[int]) -> int | list[list[int]]:
        """What sums are divided by: one number, or for each dimension one for each window, which multiply."""
        raise NotImplementedError

    def _elements(self, sizes: Sequence[int]) -> int:
        """How many elements a window has at most."""
        raise NotImplementedError

    # Forward

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """The averages; a `QuantTensor` with ``return_quant_tensor=True``."""
        if self.intercept is not None:
            return self.intercept(self, input)
        x, grid = self.pass_through("input", input)
        grid = self._known(input, grid)
        if grid is None:
            return super().forward(x)
        values, after = self.averaged(x, grid)
        return QuantTensor.wrap(values, after) if self.return_quant_tensor and not exporting() else values

    def averaged(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """The averages of values on a grid, and the grid that these lie on."""
        self.check(x, grid)
        steps = round_straight_through(x.to(torch.promote_types(x.dtype, torch.float32)) / grid.scale)
        after = self.grid_after(grid, x.shape)
        codes = self.rounded(self.sums(steps, grid), grid, x.shape)
        return (codes * after.scale).to(x.dtype), after

    def _known(self, given: Tensor, grid: Grid | None) -> Grid | None:
        """The grid of the input; None where it is plain."""
        if exporting():
            return self.seen if grid is None else grid  # torch.export carries plain tensors: the grid is recorded
        lost = grid is None and self.seen is None and self.input_quant is None
        if lost and self.return_quant_tensor:
            raise QuantizerError(
                f"{path_of(self)}: return_quant_tensor=True needs a quantized input, and the input is a plain tensor. "
                f"{grid_lost(given)} Or give this layer input_quant=Int8Act."
            )
        if grid is not None and not torch.compiler.is_compiling():
            vars(self)["seen"] = grid  # past nn.Module's bookkeeping
        return grid

    def check(self, x: Tensor, grid: Grid) -> None:
        """Refuse grids that averages are not on."""
        if not isinstance(grid.number_format, Integers):
            raise QuantizerError(
                f"{path_of(self)}: averages on a grid are of integers, and the levels of the input are "
                f"{grid.number_format}. Quantize the input to integers (Int8Act), or average floats: QuantAvgPool2d."
            )
        granularity = grid.granularity
        if not granularity.single and (granularity.axis is None or granularity.axis % x.ndim >= x.ndim - 2):
            raise QuantizerError(
                f"{path_of(self)}: the input has {grid.scale.numel()} scales ({granularity}), so what a window holds "
                "lies on no common grid. Quantize the input per tensor (axis=None), or per channel (axis=1)."
            )
        if self.bit_width is None:
            return
        if grid.zero_point is not None:
            raise QuantizerError(
                f"{path_of(self)}: bit_width={self.bit_width} shifts sums of integers to the right, and the input has "
                "a zero point, which a shift makes a fraction. Leave bit_width out, or quantize the input without a "
                "zero point (Int8Act, Uint8Act)."
            )
        if not isinstance(self._divisor(x.shape[-2:]), int):
            raise QuantizerError(
                f"{path_of(self)}: bit_width={self.bit_width} shifts all sums by the same number of bits, and windows "
                f"of an input of {x.shape[-2]} x {x.shape[-1]} have different numbers of elements. Leave bit_width out."
            )

    def sums(self, steps: Tensor, grid: Grid) -> Tensor:
        """The sum over each window of integers minus the zero point, in floats that hold it."""
        low, high = _bounds(grid)
        large = (high - low) * self._elements(steps.shape[-2:]) >= _EXACT
        return self._sums(steps.double() if large else steps)

    def rounded(self, sums: Tensor, grid: Grid, shape: Sequence[int]) -> Tensor:
        """The integers of the averages, minus the zero point, from the sums for an input on a grid."""
        sizes = shape[-2:]
        if self.bit_width is not None:
            smallest, largest = int_bounds(self.bit_width, grid.number_format.signed, False)
            shifted = round_straight_through(sums / 2 ** self._shift(grid, sizes), self.rounding)
            return shifted.clamp(smallest, largest)
        divisor = self._divisor(sizes)
        if isinstance(divisor, int):
            return round_straight_through(sums / divisor, self.rounding)
        rows, columns = (torch.tensor(each, dtype=sums.dtype, device=sums.device) for each in divisor)
        return round_straight_through(sums / (rows[:, None] * columns), self.rounding)

    def grid_after(self, grid: Grid, shape: Sequence[int]) -> Grid:
        """The grid of the averages of an input on a grid."""
        sizes = shape[-2:]
        if self.bit_width is not None:
            divisor = self._divisor(sizes)
            assert isinstance(divisor, int)
            number_format = Integers(self.bit_width, grid.number_format.signed)
            factor = 2 ** self._shift(grid, sizes) / divisor
            if factor == 1:
                return grid.replace(number_format=number_format)
            source = None if grid.source is None else ("truncated", factor, grid.source)
            return grid.replace(scale=grid.scale * factor, number_format=number_format, source=source)
        override, elements = self.divisor_override, self._elements(sizes)
        if override is None or override >= elements:
            return grid
        low, high = _bounds(grid)
        if grid.zero_point is not None:
            low, high = low - high, high - low
        bits = max(
            math.ceil(high * elements / override).bit_length(), math.ceil(-low * elements / override).bit_length()
        )
        signed = low < 0
        return grid.replace(zero_point=None, number_format=Integers(max(bits + signed, 2), signed))

    def _shift(self, grid: Grid, sizes: Sequence[int]) -> int:
        """By how many bits a sum is shifted to the right: what it has beyond those that are kept."""
        low, high = (each * self._elements(sizes) for each in _bounds(grid))
        bits = max(high.bit_length(), (-low - 1).bit_length() if low else 0) + (low < 0)
        assert self.bit_width is not None
        return max(bits - self.bit_width, 0)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "seen": None}

    def extra_repr(self) -> str:
        name = getattr(self.rounding, "name", None) or getattr(self.rounding, "__name__", type(self.rounding).__name__)
        own = ["" if self.bit_width is None else f"bit_width={self.bit_width}", f"rounding={name}"]
        flag = "return_quant_tensor=True" if self.return_quant_tensor else ""
        return ", ".join(each for each in (super().extra_repr(), *own, flag) if each)


class TruncAvgPool2d(TruncatedAverage, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` in integers; input (N, C, H, W), a `QuantTensor`.

    Positional arguments are torch's. `TruncatedAverage` documents the keyword-only ones.

    Example:
        >>> import bitwright.nn as qnn
        >>> quantize = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
        >>> q = quantize(torch.tensor([[[1.0, 2.0], [4.0, 9.0]]]))
        >>> q.int(), TruncAvgPool2d(2, return_quant_tensor=True)(q).int()
        (tensor([[[ 2,  4],
                 [ 8, 18]]], dtype=torch.int8), tensor([[[8]]], dtype=torch.int8))
        >>> four = TruncAvgPool2d(2, bit_width=4, rounding="floor", return_quant_tensor=True)(q)
        >>> four.int(), four.scale
        (tensor([[[0]]], dtype=torch.int8), tensor(8.))
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        bit_width: int | None = None,
        rounding: str | Rounding | type = "half_even",
        input_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        flags = (checked_flag(self, "ceil_mode", ceil_mode), checked_flag(self, "count_include_pad", count_include_pad))
        super().__init__(kernel_size, stride, padding, *flags, divisor_override)
        self._attach(bit_width, rounding, input_quant, return_quant_tensor, device, dtype, overrides)

    def _window(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride and padding, along both dimensions."""
        return each_dimension(self.kernel_size, 2), each_dimension(self.stride, 2), each_dimension(self.padding, 2)

    def _sums(self, steps: Tensor) -> Tensor:
        return sums_of_windows(steps, *self._window(), self.ceil_mode)

    def _divisor(self, sizes: Sequence[int]) -> int | list[list[int]]:
        if self.divisor_override is not None:
            return self.divisor_override
        window = self._window()
        if not self.ceil_mode and (self.count_include_pad or not any(window[2])):
            return math.prod(window[0])  # of any input
        each = zip(sizes, *window, strict=True)
        return _common([lengths_of(*one, self.ceil_mode, self.count_include_pad) for one in each])

    def _elements(self, sizes: Sequence[int]) -> int:
        return math.prod(self._window()[0])


class TruncAdaptiveAvgPool2d(TruncatedAverage, nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` in integers; input (N, C, H, W), a `QuantTensor`.

    Positional arguments are torch's. `TruncatedAverage` documents the keyword-only ones.

    Example:
        >>> import bitwright.nn as qnn
        >>> quantize = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
        >>> q = quantize(torch.tensor([[[1.0, 2.0, 4.0]]]))
        >>> q.int(), TruncAdaptiveAvgPool2d((1, 2), return_quant_tensor=True)(q).int()
        (tensor([[[2, 4, 8]]], dtype=torch.int8), tensor([[[3, 6]]], dtype=torch.int8))
    """

    def __init__(
        self,
        output_size: int | tuple[int | None, int | None] | None,
        *,
        bit_width: int | None = None,
        rounding: str | Rounding | type = "half_even",
        input_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        super().__init__(output_size)
        self._attach(bit_width, rounding, input_quant, return_quant_tensor, device, dtype, overrides)

    def _sums(self, steps: Tensor) -> Tensor:
        for dim, count in zip((-2, -1), adaptive_counts(self.output_size, steps.shape[-2:]), strict=True):
            size = steps.shape[dim]
            if count == 1:
                steps = steps.sum(dim, keepdim=True)
            elif count != size:
                steps = sums_between(steps, dim, *adaptive_windows(size, count))
        return steps

    def _lengths(self, sizes: Sequence[int]) -> list[list[int]]:
        counts = adaptive_counts(self.output_size, sizes)
        pairs = (adaptive_windows(size, count) for size, count in zip(sizes, counts, strict=True))
        return [[end - start for start, end in zip(starts, ends, strict=True)] for starts, ends in pairs]

    def _divisor(self, sizes: Sequence[int]) -> int | list[list[int]]:
        return _common(self._lengths(sizes))

    def _elements(self, sizes: Sequence[int]) -> int:
        return math.prod([max([1, *each]) for each in self._lengths(sizes)])


def _common(lengths: list[list[int]]) -> int | list[list[int]]:
    """The one number of elements that all windows have; else their lengths along each dimension."""
    same = [len({*each}) == 1 for each in lengths]
    return math.prod([each[0] for each in lengths]) if all(same) else lengths


def _bounds(grid: Grid) -> tuple[int, int]:
    """The ends of a grid, by fields alone: torch 2.9 compiles no properties of named tuples."""
    levels = integers_of(grid)
    return int_bounds(int(levels.bit_width), levels.signed, levels.narrow_range)


def _rounding_of(layer: nn.Module, given: object) -> Rounding:
    """The rounding that a name, a class or a function says."""
    found = ROUNDINGS.get(given) if isinstance(given, str) else given
    try:
        return checked("rounding", found() if isinstance(found, type) else given if found is None else found)
    except SettingError as error:
        raise QuantizerError(f"{type(layer).__name__}: {error}") from None
