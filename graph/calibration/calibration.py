"""Ranges of activations from data, without training."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any, overload

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...nn.contexts.progress import tracked
from ...nn.contexts.switching import unquantized
from ...qcore import Grid, GridQuant, TensorQuant
from ...qcore.models import require_model, shown
from ...qcore.protocols import Statistic
from ...qcore.scaling import StoredScaling
from ...qcore.tensor_quant import Intercept
from ..errors import GraphError, GraphWarning
from .averages import AVERAGES
from .measurement import Measurement
from .report import CalibrationReport
from .statistics import statistic_of
from .thresholds import DataStatistic

__all__ = ["calibrate"]


@overload
def calibrate(
    model: nn.Module,
    loader: None = None,
    *,
    statistic: str | Statistic | DataStatistic | None = None,
    average: str = "mean",
    quantized_inputs: bool = False,
) -> AbstractContextManager[CalibrationReport]: ...


@overload
def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    statistic: str | Statistic | DataStatistic | None = None,
    average: str = "mean",
    quantized_inputs: bool = False,
    forward: Callable[[Any], object] | None = None,
    progress: bool = True,
) -> CalibrationReport: ...


def calibrate(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    statistic: str | Statistic | DataStatistic | None = None,
    average: str = "mean",
    quantized_inputs: bool = False,
    forward: Callable[[Any], object] | None = None,
    progress: bool = True,
) -> AbstractContextManager[CalibrationReport] | CalibrationReport:
    """Choose the ranges of activations from batches: post-training calibration.

    ``with calibrate(model): ...`` measures the batches that a loop of your own sends through the model in the block;
    ``calibrate(model, loader)`` is that loop, with a progress bar. Afterwards every range that was measured is
    calibrated, whatever the quantizer's ``calibration_steps``; learned ones start from there.

    - Only quantizers measure. The model evaluates: BatchNorm keeps its statistics, dropout drops nothing, and no
      gradients are recorded. Every module is in its former mode afterwards.
    - Ranges are those of the float model: nothing is quantized meanwhile, no weights either. With
      ``quantized_inputs=True`` they are those of the quantized model, on the ranges from before: calibrate once
      without. An activation that has none yet is quantized by the range of the tensor at hand.
    - A batch is one call of the model. A quantizer that several layers or calls share measures all its tensors of one
      batch as one. A batch counts by its size, which is that of dimension 0 of what is quantized.
    - The order of batches does not matter, except for ``average="ema"``; nor does the way in which data is split into
      batches, for ``average="max"`` and for statistics of all data.
    - Compiled models run eagerly in the block.
    - Processes of ``torch.distributed`` are pooled: each measures its own batches, and all end with the same ranges.
    - Values that are not finite count as 0. A warning names their quantizers, those that no batch reached, and those
      that saw nothing but 0.

    After an exception the model is as it was.

    Args:
        model: any module with quantized layers.
        loader: batches: tensors; tuples, whose first element is the input; or mappings of keyword arguments. They are
            moved to the device of the model's first parameter.
        statistic: what chooses a range. None is each quantizer's own statistic, of each batch. ``"min_max"`` and
            ``"abs_max"`` cover the values of each batch. Of all data: ``"percentile"``, ``"mse"`` (the least squared
            error for the quantizer's levels) and ``"kl"`` (the least divergence), or `Percentile`, `SquaredError` and
            `Entropy` with settings of yours. A statistic of your own is what a quantizer takes, or a `DataStatistic`.
        average: how the ranges of batches become one: ``"mean"``, ``"max"`` (the widest), or ``"ema"``, a moving
            average with the quantizer's own momentum. Statistics of all data need none.
        quantized_inputs: measure what the quantized model computes.
        forward: sends one batch of the loader through the model, where its first element is not all that it takes.
        progress: show a bar where standard error is a terminal.

    Returns:
        With a loader a `CalibrationReport`; else a context manager, which gives one that is filled when the block ends.

    Raises:
        GraphError: not a model, nothing to calibrate, impossible settings, no batch, or a model in training mode.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(2, 2, input_quant=qnn.QuantIdentity().act_quant), qnn.QuantReLU())
        >>> batches = torch.tensor([[[1.0, -1.27]], [[0.5, 1.27]]])
        >>> with calibrate(model, average="max") as report:
        ...     for batch in batches:
        ...         _ = model(batch)
        >>> round(report["0.input_quant"].largest, 2), model[0].input_quant.calibrating
        (1.27, False)
        >>> len(calibrate(model, batches.split(1), statistic="mse"))
        2
    """
    require_model("calibrate", model, GraphError)
    block = _calibrating(model, statistic, average, quantized_inputs)
    if loader is None:
        if forward is not None:
            raise GraphError(
                "calibrate: forward= says how the batches of a loader go through the model, and there is no loader. "
                "Write calibrate(model, loader, forward=...), or call the model inside `with calibrate(model)`."
            )
        return block
    if isinstance(loader, (Tensor, Mapping)):
        kind = "tensor" if isinstance(loader, Tensor) else type(loader).__name__
        raise GraphError(
            f"calibrate: the loader is one {kind}, and a loader gives batches. For one batch write "
            "calibrate(model, [batch])."
        )
    if not isinstance(loader, Iterable):
        raise GraphError(
            f"calibrate: {shown(loader)} gives no batches. Pass an iterable of them, such as a DataLoader or a list."
        )
    send = forward or (lambda batch: _send(model, batch))
    with block as report:
        sent = 0
        with closing(tracked(loader, "calibrate", shown=progress)) as batches:
            for batch in batches:
                send(batch)
                sent += 1
        if sent == 0:
            raise GraphError(
                "calibrate: the loader gave no batch, so the ranges are as before. An iterator that was used up gives "
                "none: pass a list of batches, or a DataLoader."
            )
    return report


@contextmanager
def _calibrating(
    model: nn.Module, statistic: object, average: str, quantized_inputs: bool
) -> Iterator[CalibrationReport]:
    measurements = _measurements(model, statistic, average)
    forwards = _Forwards(model, measurements)
    report = CalibrationReport()
    modes = [(each, each.training) for each in model.modules()]
    with ExitStack() as stack:
        stack.callback(_restore_modes, modes)
        model.eval()
        if not quantized_inputs:
            stack.enter_context(unquantized(model))
        quantizers: dict[str, TensorQuant] = {each.path: each.quant for each in measurements}
        intercept = _measured if quantized_inputs else _passed
        by_path = {each.path: each for each in measurements}
        stack.enter_context(intercepted(quantizers, lambda path: intercept(by_path[path], forwards)))
        stack.enter_context(forwards.counted())
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import would cost a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield report
    _finish(measurements, forwards, report)


def _measurements(model: nn.Module, statistic: object, average: str) -> list[Measurement]:
    if average not in AVERAGES:
        names = ", ".join(map(repr, AVERAGES))
        raise GraphError(f"calibrate: average={average!r} is not possible: expected one of {names}.")
    found = {path: quant for path, quant in quantizers_of(model).items() if _is_measured(quant)}
    if not found:
        remedy = (
            "Give it activation quantizers with scaling='calibrated', such as qnn.QuantIdentity(act_quant=Int8Act)."
        )
        if any(not quant.of_parameter for quant in quantizers_of(model).values()):
            remedy = "The ranges of its activations are constant or follow each input, so leave calibrate out."
        raise GraphError(f"calibrate: no quantizer of this {type(model).__name__} measures a range. {remedy}")
    measurements = []
    for path, quant in found.items():
        assert isinstance(quant, GridQuant)
        chosen = statistic_of(statistic, path, quant)
        if isinstance(chosen, DataStatistic) and average != "mean":
            raise GraphError(
                f"calibrate: statistic={statistic!r} is that of all data, so there is nothing to average. Leave out "
                f"average={average!r}, or write statistic='min_max'."
            )
        measurements.append(Measurement(path, quant, chosen, AVERAGES[average]))
    return measurements


def _is_measured(quant: TensorQuant) -> bool:
    """Whether a quantizer has a range that comes from data: not one of a weight, nor one that was given."""
    if quant.of_parameter or not isinstance(quant, GridQuant) or not isinstance(quant.scaling, StoredScaling):
        return False
    return getattr(quant.scaling, "max_value", None) is None


class _Forwards:
    """The calls of the model: the outermost call of one of its modules is a batch."""

    def __init__(self, model: nn.Module, measurements: list[Measurement]) -> None:
        self.model, self.measurements = model, measurements
        self.running: list[nn.Module] = []
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        parts = {part for each in self.model.modules() if isinstance(each, TensorQuant) for part in each.modules()}
        modules = [each for each in self.model.modules() if each not in parts]
        handles = [each.register_forward_pre_hook(self._enter) for each in modules]
        handles += [each.register_forward_hook(self._leave, always_call=True) for each in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: object) -> None:
        if not self.running:
            self._check_modes()
        self.running.append(module)

    def _leave(self, module: nn.Module, args: object, output: object) -> None:
        if module not in self.running:  # a hook before ours has failed
            return
        while self.running.pop() is not module:
            pass
        if not self.running:
            self.count += 1
            for each in self.measurements:
                each.end_batch()

    def _check_modes(self) -> None:
        for path, module in self.model.named_modules():
            if module.training:
                raise GraphError(
                    f"calibrate: {path or 'the model'} was put into training mode inside the block, where BatchNorm "
                    "changes its statistics and dropout drops values. Leave out train() there."
                )


def _passed(measurement: Measurement, forwards: _Forwards) -> Intercept:
    """Measures a tensor, and lets it pass."""

    def observe(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        measurement.observe(x)
        if not forwards.running:  # called by hand, outside of any module
            measurement.end_batch()
        return x, None

    return observe


def _measured(measurement: Measurement, forwards: _Forwards) -> Intercept:
    """Measures a tensor, and quantizes it by the range from before."""
    own, observe = measurement.quant, _passed(measurement, forwards)
    before = own.__dict__.get("intercept")

    def quantize(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        observe(quant, x)
        if before is not None:
            return before(quant, x, *context)
        warned, own._warned = own._warned, True  # that it is not calibrated is no news here
        try:
            return quant._quantize(x, *context)
        finally:
            own._warned = warned

    return quantize


def _send(model: nn.Module, batch: object) -> None:
    """One batch of a loader through the model."""
    if isinstance(batch, (tuple, list)) and len(batch) > 0:
        batch = batch[0]
    device = next((each.device for each in model.parameters()), None)
    if isinstance(batch, Tensor):
        model(batch.to(device))
    elif isinstance(batch, Mapping):
        model(**{name: each.to(device) if isinstance(each, Tensor) else each for name, each in batch.items()})
    else:
        raise GraphError(
            f"calibrate: the loader gave {shown(batch)}, and not a tensor, a tuple that begins with one, or a mapping "
            "of keyword arguments. Say how the model takes it: forward=lambda batch: model(...)."
        )


def _finish(measurements: list[Measurement], forwards: _Forwards, report: CalibrationReport) -> None:
    """Choose the ranges and store them, all or none."""
    for each in measurements:
        each.pool()
    seen = [each for each in measurements if each.samples > 0]
    unseen = [each for each in measurements if each.samples == 0]
    if not seen:
        raise GraphError(_nothing(forwards.count, unseen))
    _warn(
        seen, [each.path for each in unseen if not each.not_finite], [each for each in measurements if each.not_finite]
    )
    found = [each.choose() for each in seen]
    scalings = [each.levels.scaling for each in seen]
    before = [
        (tensor, tensor.detach().clone()) for each in scalings for tensor in (*each.parameters(), *each.buffers())
    ]
    try:
        with torch.inference_mode(False), torch.no_grad():
            for each, chosen in zip(seen, found, strict=True):
                each.settle(chosen)
    except BaseException:
        for tensor, copy in before:
            tensor.data = copy
        for each in scalings:
            each._forget()
        raise
    report.batches = forwards.count
    report.ranges.update({each.path: each.report() for each in seen})
    report.unreached += [each.path for each in unseen]


def _nothing(count: int, unseen: list[Measurement]) -> str:
    paths = _listed([each.path for each in unseen])
    if count == 0:
        return (
            "calibrate: no batch went through the model inside `with calibrate(model)`, so its ranges are as before. "
            "Call model(batch) there."
        )
    if any(each.not_finite for each in unseen):
        return (
            f"calibrate: no finite value reached {paths}, so the ranges are as before. Look for NaN in the batches and "
            "in the weights."
        )
    return (
        f"calibrate: {count} batch{'es' * (count > 1)} went through the model, and reached no quantizer that measures "
        f"a range ({paths}). Call the layers that hold them."
    )


def _warn(seen: list[Measurement], unreached: list[str], strange: list[Measurement]) -> None:
    if unreached:
        warnings.warn(
            f"calibrate: no batch reached {_listed(unreached)}, so the range there is as before. Pass batches that "
            "reach it, or give the layer None for that quantizer.",
            GraphWarning,
        )
    if strange:
        paths = [f"{each.path} ({each.not_finite} batch{'es' * (each.not_finite > 1)})" for each in strange]
        warnings.warn(
            f"calibrate: values that are not finite reached {_listed(paths)}. They count as 0, and a batch of nothing "
            "else does not count. Look for NaN in the batches and in the weights.",
            GraphWarning,
        )
    empty = {each: each.empty() for each in seen}
    if any(empty.values()):
        scales = {each: len(each.histogram.counts) for each in empty if each.histogram is not None}
        paths = [
            each.path if scales[each] == 1 else f"{each.path} ({count} of {scales[each]} scales)"
            for each, count in empty.items()
            if count
        ]
        warnings.warn(
            f"calibrate: nothing but 0 reached {_listed(paths)}, so the range there is the smallest possible, and any "
            "other value is clipped to it. Pass batches that are like those of use.",
            GraphWarning,
        )


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, mode in modes:
        module.training = mode
