"""One forward of a model on the example input: what every quantizer was asked for, and the grid it answered with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import intercepted
from ...nn.embeddings.table import check_fixed
from ...nn.embeddings.ties import check_ties
from ...qcore import Grid, GridQuant, HalfEven, QuantizerError, TensorQuant
from ...qcore.aliases import Arguments
from ...qcore.grid_quant import FLOAT_BITS
from ...qcore.scaling import MagnitudeScaling
from ...qcore.tensor_quant import Intercept
from ..errors import ExportError, with_causes
from .caveats import silent_quantizers, unreached
from .grid import IntegerGrid
from .numbering import Counts, numbered

__all__ = ["Call", "Recording", "codes_of", "quantized", "record"]


@dataclass(frozen=True)
class Call:
    """One call of a quantizer; in a loop over time, the same call of every step.

    Attributes:
        path: of the quantizer in the model.
        index: how many calls of it came before; the steps of a loop count as one.
        quantizer: the module.
        grid: the grid it answered with.
        codes: the integers, or codes of other levels, shaped like the input; of the first step.
        dtype: of the input.
        stored: whether the input is a parameter or buffer of the model, or worked out of one.
        parameter: the input in the memory of a parameter or buffer, where it is there.
        on_grid: whether the values it answered with lie on that grid.
        follows_input: whether another input would get another grid, although the quantizer has seen data.
        steady: whether all steps of a loop got the same grid.
    """

    path: str
    index: int
    quantizer: TensorQuant
    grid: Grid
    codes: Tensor
    dtype: torch.dtype
    stored: bool
    parameter: Tensor | None = None
    on_grid: bool = True
    follows_input: bool = False
    steady: bool = True

    @property
    def name(self) -> str:
        """What its tensors are called in the file."""
        return numbered(self.path, self.index)

    @cached_property
    def plain(self) -> IntegerGrid:
        """The grid as plain integers and floats."""
        return IntegerGrid.of(self.name, self.grid, self.codes.shape)

    @property
    def half_even(self) -> bool:
        """Whether it rounds as QuantizeLinear does."""
        return type(getattr(self.quantizer, "rounding", None)) is HalfEven


@dataclass
class Recording:
    """All calls of one forward, in order, by the path of the quantizer; and what the model answered."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    outputs: object = None

    def __iter__(self) -> Iterator[Call]:
        return (call for calls in self.calls.values() for call in calls)


def record(
    module: nn.Module, quantizers: dict[str, TensorQuant], args: tuple[object, ...], kwargs: Mapping[str, object] | None
) -> Recording:
    """Run a model once, without gradients, and write down every call of its quantizers.

    Args:
        module: the model, in evaluation mode.
        quantizers: by path, see `quantizers_of`.
        args: positional arguments.
        kwargs: keyword arguments, or None.

    Raises:
        ExportError: nothing to record, values on no grid, or a table that changes, or that two layers quantize in
            different ways.
    """
    try:
        check_ties(module)
        check_fixed(module)
    except QuantizerError as error:
        raise ExportError(str(error)) from None
    recording, gridless, counts = Recording(), dict[str, str](), Counts()
    held = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers()) if tensor.numel()}

    def recorder(path: str) -> Intercept:
        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            values, grid = quantizer._quantize(x, *context)
            if grid is None:
                gridless[path] = type(quantizer).__name__
                return values, None
            calls, index = recording.calls.setdefault(path, []), counts.next(path)
            if index < len(calls):  # a later step of a loop
                former = calls[index]
                if former.steady and not _equal(former.grid, grid):
                    calls[index] = replace(former, steady=False)
                return values, grid
            parameter = x.detach() if type(x) in (Tensor, nn.Parameter) and x.data_ptr() in held else None
            stored = parameter is not None or quantizer.of_parameter
            codes = codes_of(quantizer, x, context, values, grid)
            calls.append(
                Call(
                    path,
                    index,
                    quantizer,
                    grid,
                    codes,
                    x.dtype,
                    stored,
                    parameter,
                    on_grid=_lie_on(grid, codes, values.detach()),
                    follows_input=not stored and _follows_input(quantizer, x),
                )
            )
            return values, grid

        return call

    with torch.no_grad(), intercepted(quantizers, recorder), silent_quantizers():
        recording.outputs = module(*args, **(kwargs or {}))
    if gridless:
        count = f"{len(gridless)} quantizer{'s' * (len(gridless) > 1)}"
        raise ExportError(
            with_causes(
                f"{type(module).__name__}: {count} of this model put values on no grid of integers, so there is "
                "nothing to write:",
                [f"{path}: return a Grid from {kind}._quantize where there is one." for path, kind in gridless.items()],
            )
        )
    if quantizers and not recording.calls:
        first = next(iter(quantizers))
        raise ExportError(
            with_causes(
                f"{type(module).__name__}: the example input reached no quantizer, so no scale is known. Pass the args "
                "of a whole forward.",
                [f"{first}: {unreached(first, module, ())}"],
            )
        )
    return recording


def quantized(quantizer: TensorQuant, x: Tensor, context: Arguments) -> tuple[Tensor, Grid]:
    """What a quantizer does, one that has a grid: recording has refused all others."""
    values, grid = quantizer._quantize(x, *context)
    assert grid is not None
    return values, grid


def codes_of(quantizer: TensorQuant, x: Tensor, context: Arguments, values: Tensor, grid: Grid) -> Tensor:
    """The integers, or codes, that a quantizer moves ``x`` to: float32 values don't tell wide integers apart."""
    wide = grid.number_format.whole and int(grid.bit_width) > FLOAT_BITS
    return quantizer.codes(x, *context)[0] if wide else grid.to_int(values.detach())


def _equal(one: Grid, other: Grid) -> bool:
    if one.zero_point is None or other.zero_point is None:
        return one.zero_point is other.zero_point and torch.equal(one.scale, other.scale)
    return torch.equal(one.scale, other.scale) and torch.equal(one.zero_point, other.zero_point)


def _lie_on(grid: Grid, codes: Tensor, values: Tensor) -> bool:
    steps = (grid.from_int(codes) - values).abs() / grid.along(grid.scale, codes.shape)
    return not bool((steps > 1e-3 * grid.number_format.decode(codes).abs().clamp_min(1)).any())


def _follows_input(quantizer: TensorQuant, x: Tensor) -> bool:
    """Does another input get another grid? A quantizer that saw no data yet is expected to, see `caveats`."""
    if not isinstance(quantizer, GridQuant) or not quantizer.calibrated:
        return False
    if isinstance(quantizer.scaling, MagnitudeScaling):
        return quantizer.dynamic
    one, two = quantizer.grid(x), quantizer.grid(2 * x)  # a scaling of the user's own
    return not torch.equal(one.scale, two.scale)
