"""Calibration: measuring ranges, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...qcore import GridQuant, QuantizerError, TensorQuant
from ...qcore.models import require_model
from ...qcore.scaling import RunningScaling, StoredScaling

__all__ = ["calibrating", "finish_calibration"]

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def calibrating(model: Model) -> Iterator[Model]:
    """Measure the ranges of activations in the block, on up to ``calibration_steps`` forwards.

    The quantizers are in training mode, everything else evaluates: batch normalisation keeps its statistics, dropout
    passes. No gradients are recorded. Ranges that were measured before are measured anew. Afterwards every module is in
    the mode it was in; after an exception every range is what it was.

    Args:
        model: any module with quantized layers.

    Yields:
        The model.

    Raises:
        QuantizerError: not a model, or one without a range to measure.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantIdentity(), nn.BatchNorm1d(2)).eval()
        >>> with calibrating(model):
        ...     for batch in torch.tensor([[[1.0, -1.27]], [[0.5, 1.27]]]):
        ...         _ = model(batch)
        >>> model[0].act_quant.calibrated, model[1].running_mean
        (True, tensor([0., 0.]))
    """
    require_model("calibrating", model)
    quantizers = _of_activations(model)
    scalings = _stored(quantizers)
    if not scalings:
        raise QuantizerError(
            f"calibrating: no quantizer of this {type(model).__name__} measures a range. Give it activation quantizers "
            "with scaling='calibrated', such as qnn.QuantIdentity(act_quant=Int8Act)."
        )
    before = [(tensor, tensor.detach().clone()) for each in scalings for tensor in _tensors(each)]
    modes = [(each, each.training) for each in model.modules()]
    model.eval()
    for each in quantizers:
        each.train()
        if isinstance(each, GridQuant) and each.clock is not None:
            each.clock.eval()  # schedules stand still
    for each in scalings:
        each.start_calibration()
    try:
        with torch.no_grad():
            yield model
    except BaseException:
        _restore(before)
        for each in scalings:
            each._forget()
        raise
    else:
        finish_calibration(model)
    finally:
        for each, mode in modes:
            each.training = mode


def finish_calibration(model: nn.Module) -> None:
    """End the calibration of every activation quantizer that has seen data: its range is learned from now on.

    Running averages go on, as those of batch normalisation do.

    Args:
        model: any module with quantized layers.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantIdentity(), qnn.QuantReLU())
        >>> _ = model(torch.ones(2))
        >>> finish_calibration(model)
        >>> [each.act_quant.calibrating for each in model]
        [False, False]
    """
    require_model("finish_calibration", model)
    for each in _stored(_of_activations(model)):
        if not isinstance(each, RunningScaling):
            each.finish_calibration()


def _of_activations(model: nn.Module) -> list[TensorQuant]:
    return [each for each in model.modules() if isinstance(each, TensorQuant) and not each.of_parameter]


def _stored(quantizers: list[TensorQuant]) -> list[StoredScaling]:
    """The scalings that measure: not those that start from a range that was given."""
    parts = [part for each in quantizers for part in each.modules()]
    return [part for part in parts if isinstance(part, StoredScaling) and getattr(part, "max_value", None) is None]


def _tensors(scaling: nn.Module) -> list[Tensor]:
    return [*scaling.parameters(), *scaling.buffers()]


def _restore(before: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, copy in before:
        tensor.data = copy
