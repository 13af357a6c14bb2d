"""Plots of a quantizer and of a quantized model. They need matplotlib: ``pip install bitwright[plot]``."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..export.capture.model_state import evaluating
from ..nn.contexts.intercepting import intercepted, quantizers_of
from ..qcore import BitwrightError, BitwrightWarning, Grid, QuantizerError, TensorQuant, values_of
from ..qcore.declare.inject import QuantizerType
from ..qcore.models import require_model, shown
from ..qcore.reporting.pictures import figure_class
from .places import Places
from .subject import Subject

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..qcore.tensor_quant import Intercept

__all__ = ["plot_model", "plot_quantizer"]

_BLUE, _RED, _GREY, _LIGHT = "#1f5fa8", "#c23b22", "#777777", "#d9e4f2"


def plot_quantizer(quantizer: Any, *, scale: float | None = None, role: str | None = None) -> "Figure":
    """Staircase, error, gradient and grid of a quantizer on one page.

    Args:
        quantizer: a quantizer class, or the quantizer module of a layer, such as ``layer.weight_quant``.
        scale: for a class, the approximate scale; by default the one that makes the range -1 to 1.
        role: for a class, as in `check_quantizer`.

    Returns:
        A matplotlib figure: ``figure.savefig("quantizer.png")``.

    Raises:
        BitwrightError: not a quantizer, or matplotlib is not installed.

    Example:
        >>> from bitwright.quantizers import Int4Act
        >>> figure = plot_quantizer(Int4Act)
        >>> [axes.get_title() for axes in figure.axes]
        ['Staircase', 'Error', 'Gradient', 'Grid: 16 integers, -8 to 7']
    """
    picture = figure_class("plot_quantizer")
    module, context, grid = _ready(quantizer, scale, role)
    step, shift = float(grid.scale.reshape(-1)[0]), _first(grid.zero_point)
    low, high = ((end - shift) * step for end in _ends(grid))
    margin = 0.15 * (high - low) if _stays(module, context, grid) else 0.0  # else values beyond the range would move it
    x, y, slope, grid = _curve(module, context, torch.linspace(low - margin, high + margin, 4001))
    step, shift = float(grid.scale.reshape(-1)[0]), _first(grid.zero_point)
    low, high = ((end - shift) * step for end in _ends(grid))
    gap = Places(grid.number_format).gap(torch.as_tensor(x) / step + shift).numpy()

    figure = picture(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(_title(quantizer, grid), fontsize=12)
    staircase, error, gradient, levels = figure.subplots(2, 2).reshape(-1)
    for axes in (staircase, error, gradient):
        axes.axvspan(low, high, color=_LIGHT, zorder=0, label="range")
        axes.set_xlabel("x")
        axes.margins(x=0)
        axes.grid(alpha=0.25)
    staircase.plot(x, x, color=_GREY, linewidth=0.8, label="x")
    staircase.plot(x, y, color=_BLUE, linewidth=1.2, label="quantized")
    staircase.set(title="Staircase", ylabel="value")
    staircase.legend(loc="upper left", fontsize=8)
    error.plot(x, (y - x) / step, color=_BLUE, linewidth=0.8)
    error.fill_between(x, -gap / 2, gap / 2, color=_GREY, alpha=0.15, linewidth=0)
    error.set(title="Error", ylabel="steps (band: half the distance of levels)")
    gradient.plot(x, slope, color=_RED, linewidth=1.2)
    gradient.set(
        title="Gradient", ylabel="d value / d x", ylim=(min(-0.1, slope.min()) - 0.05, max(1.1, slope.max()) + 0.05)
    )
    _draw_grid(levels, grid, step, shift)
    return figure


def plot_model(model: nn.Module, batch: object, *, columns: int = 3) -> "Figure":
    """Every quantizer of a model on one page: its input values, its range, and how often each level occurs.

    The bars count integers, or levels in their order. The titles give the share of clipped values and of
    those that never occur.

    Args:
        model: a model with quantized layers; it is evaluated on the batch, and its mode is restored.
        batch: its input, or a tuple of positional arguments.
        columns: panels side by side.

    Returns:
        A matplotlib figure.

    Raises:
        BitwrightError: not a model, matplotlib is not installed, or nothing in the model quantizes.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=4), qnn.QuantReLU(max_value=6.0))
        >>> figure = plot_model(model, torch.randn(16, 8))
        >>> [axes.get_title().splitlines()[0] for axes in figure.axes]
        ['0.weight_quant: int4 narrow', '1.act_quant: uint8']
    """
    picture = figure_class("plot_model")
    require_model("plot_model", model, BitwrightError)
    seen = _watched(model, batch)
    if not seen:
        raise BitwrightError(
            f"plot_model: nothing in {type(model).__name__} quantizes. Give it a model of bitwright.nn."
        )
    columns = min(columns, len(seen))
    rows = -(-len(seen) // columns)
    figure = picture(figsize=(4.2 * columns, 2.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, (path, (values, grid)) in zip(panels, seen.items(), strict=False):
        _draw_codes(axes, path, values, grid)
    for axes in panels[len(seen) :]:
        axes.remove()
    return figure


def _ready(quantizer: Any, scale: float | None, role: str | None) -> tuple[TensorQuant, tuple[Grid, ...], Grid]:
    """A module in evaluation with a known range, its context, and its grid."""
    if isinstance(quantizer, TensorQuant):
        probe = torch.linspace(-1, 1, 64).reshape(1, -1)
        with torch.no_grad():
            grid = quantizer.quantize(probe)[1]
        assert grid is not None
        return quantizer, (), grid
    if not isinstance(quantizer, QuantizerType):
        raise QuantizerError(
            f"plot_quantizer: {shown(quantizer)} is not a quantizer. Pass a class such as Int8Act, or the quantizer "
            "module of a layer, such as layer.weight_quant."
        )
    subject = Subject(quantizer, role)
    unit = scale or 1 / max(-subject.number_format.low, subject.number_format.high)
    shape = (1,) * (len(subject.example) - 1) + (64,) if len(subject.example) > 1 else (1,)
    module, context = subject.build(shape), subject.context(shape, unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)  # the ends of the range may be clipped
        subject.settle(module, subject.range_to_cover(shape, unit), *context)
    with torch.no_grad():
        grid = module.quantize(subject.range_to_cover(shape, unit), *context)[1]
    assert grid is not None
    return module, context, grid


def _stays(module: TensorQuant, context: tuple[Grid, ...], grid: Grid) -> bool:
    """Whether a larger input leaves the grid unchanged."""
    low, high = (float(end) for end in (grid.scale.min(), grid.scale.max()))
    x = torch.full((1, 8) if not context else (1,), 1e3 * high * max(map(abs, _ends(grid))))
    with torch.no_grad():
        after = module.eval().quantize(x, *context)[1]
    return after is not None and float(after.scale.max()) == high and float(after.scale.min()) == low


def _curve(
    module: TensorQuant, context: tuple[Grid, ...], x: Tensor
) -> tuple["np.ndarray", "np.ndarray", "np.ndarray", Grid]:
    """Inputs, values, slope, and the grid for these inputs."""
    wanted = (x if context else x.reshape(1, -1)).clone().requires_grad_()
    was = module.training
    module.eval()
    values, grid = module.quantize(wanted, *context)
    assert grid is not None
    (slope,) = torch.autograd.grad(values.sum(), wanted, allow_unused=True) if values.requires_grad else (None,)
    module.train(was)
    slope = torch.zeros_like(wanted) if slope is None else slope
    found = [each.detach().reshape(-1).numpy() for each in (wanted, values, slope)]
    return found[0], found[1], found[2], grid


def _draw_grid(axes: "Axes", grid: Grid, step: float, shift: float) -> None:
    """The levels and the values they represent, as many as can be distinguished."""
    places, kind = Places(grid.number_format), _kind(grid)
    low, high = _ends(grid)
    count = places.high - places.low + 1
    if count <= 257:
        values = (places.steps(torch.arange(places.low, places.high + 1)) - shift) * step
        axes.vlines(values.numpy(), 0, 1, color=_BLUE, linewidth=1.5 if count <= 64 else 0.5)
    else:  # closer than the plot can resolve
        axes.fill_between([(low - shift) * step, (high - shift) * step], 0, 1, color=_BLUE)
    sides = {low: "left", high: "right"}
    for code in {low, shift, high}:
        place = (code - shift) * step
        axes.annotate(f"{code:.9g}\n{place:.4g}", (place, 1.05), ha=sides.get(code, "center"), va="bottom", fontsize=8)
    title = f"Grid: {count} {kind}, {low:.10g} to {high:.10g}"
    axes.set(title=title, xlabel=f"value (scale {step:.6g})", ylim=(0, 1.6), yticks=[])


def _draw_codes(axes: "Axes", path: str, values: Tensor, grid: Grid) -> None:
    places = Places(grid.number_format)
    low, high = places.low, places.high
    steps = values.double() / grid.along(grid.scale, values.shape)
    shift = 0 if grid.zero_point is None else grid.along(grid.zero_point, values.shape)
    codes = (places.of(steps) + shift).round()
    clipped = float(((codes < low) | (codes > high)).double().mean()) if codes.numel() else 0.0
    codes = codes.clamp(low, high).reshape(-1)
    kind, counted = str(grid.number_format), _kind(grid)
    if high - low < 1 << 12:
        used = torch.bincount((codes - low).long(), minlength=high - low + 1)
        dead = f"{int((used == 0).sum())} of {len(used)} {counted} dead"
        axes.bar(range(low, high + 1), used.numpy(), width=1.0, color=_BLUE)
    else:
        dead = f"{int(codes.unique().numel())} of {high - low + 1} {counted} used"
        axes.hist(codes.numpy(), bins=64, color=_BLUE)
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (low, high)
    axes.axvspan(low - 0.5, high + 0.5, color=_LIGHT, zorder=0)
    axes.set_xlim(low - 0.03 * (high - low) - 0.5, high + 0.03 * (high - low) + 0.5)
    axes.set_title(f"{path}: {kind}\n{100 * clipped:.3g} % clipped, {dead}", fontsize=9)
    numbers = values.double()
    found = f"values {numbers.min():.3g} to {numbers.max():.3g}" if values.numel() else "no values"
    axis = "integer" if grid.number_format.whole else "level, counted from 0"
    axes.set_xlabel(f"{axis}; {found}, scale {_scales(grid)}", fontsize=8)
    axes.tick_params(labelsize=8)


def _watched(model: nn.Module, batch: object) -> dict[str, tuple[Tensor, Grid]]:
    """The last input of each quantizer of the model, and its grid, by path."""
    seen: dict[str, tuple[Tensor, Grid]] = {}
    watched = quantizers_of(model)

    def watch(path: str) -> "Intercept":
        def intercept(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
            values, grid = quant._quantize(x, *context)
            given = values_of(x).detach()
            folds = bool(context) and context[0] is True  # a ReLU, computed by the clamp
            assert grid is not None
            seen[path] = (given.clamp_min(0) if folds else given), grid
            return values, grid

        return intercept

    with torch.no_grad(), evaluating(model), intercepted(watched, watch):
        model(*(batch if isinstance(batch, tuple) else (batch,)))
    return {path: seen[path] for path in watched if path in seen}


def _title(quantizer: Any, grid: Grid) -> str:
    if isinstance(quantizer, TensorQuant):
        return f"{type(quantizer).__name__}({quantizer.scheme()})"
    return repr(quantizer)


def _scales(grid: Grid) -> str:
    low, high = float(grid.scale.min()), float(grid.scale.max())
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _ends(grid: Grid) -> tuple[float, float]:
    """The lowest and the highest level."""
    return grid.number_format.low, grid.number_format.high


def _kind(grid: Grid) -> str:
    return "integers" if grid.number_format.whole else f"levels of {grid.number_format}"


def _first(zero_point: Tensor | None) -> int:
    return 0 if zero_point is None else int(zero_point.reshape(-1)[0])
