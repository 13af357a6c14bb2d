"""The inputs of a layer as compressed-tensors has runtimes quantize them."""

from typing import NamedTuple

import torch
from torch import Tensor

from ....qcore import E4M3, AbsMax, Grid, GridQuant, HalfEven, MinMax, PerTensor, PerToken, TensorQuant
from ....qcore.formats.integers import Integers
from ....qcore.scaling import StatisticScaling
from ....qcore.scaling.restriction import FloatScale
from ...errors import ExportError

__all__ = ["NO_INPUTS", "InputForm", "input_form"]


class InputForm(NamedTuple):
    """Inputs as the configuration has them.

    Args:
        kind: type, width, strategy and whether each scale follows its tensor, in words.
        settings: as the configuration has them; None for inputs that stay as they are.
        tensors: by their names in the layer.

    Example:
        >>> NO_INPUTS.kind
        'no quantized inputs'
    """

    kind: str
    settings: dict[str, object] | None
    tensors: dict[str, Tensor]


NO_INPUTS = InputForm("no quantized inputs", None, {})


def input_form(quant: TensorQuant | None) -> InputForm:
    """The form for the quantizer of a layer's input.

    Raises:
        ExportError: the text names what no runtime does.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8DynamicActPerToken
        >>> input_form(qnn.QuantLinear(4, 2, input_quant=Int8DynamicActPerToken).input_quant).kind
        'int8 token dynamic inputs'
    """
    if quant is None:
        return NO_INPUTS
    plain = isinstance(quant, GridQuant) and type(quant.rounding) is HalfEven and quant.transform is None
    if not plain:
        raise _unknown(quant)
    assert isinstance(quant, GridQuant)
    if not quant.calibrated:
        raise ExportError("its input is not calibrated yet. Run some batches first: bitwright.graph.calibrate")
    return _dynamic(quant) if quant.dynamic else _static(quant)


def _unknown(quant: TensorQuant) -> ExportError:
    return ExportError(
        f"no runtime quantizes inputs this way ({quant.scheme()}). Choose Int8DynamicActPerToken, "
        "ShiftedUint8DynamicActPerToken, Fp8e4m3DynamicActPerToken, Fp8e4m3DynamicAct, or Int8Act or Fp8e4m3Act"
    )


def _settings(number: str, strategy: str, symmetric: bool, dynamic: bool) -> dict[str, object]:
    return {
        "num_bits": 8,
        "type": number,
        "symmetric": symmetric,
        "strategy": strategy,
        "dynamic": dynamic,
        "group_size": None,
    }


def _form(number: str, strategy: str, symmetric: bool, dynamic: bool, tensors: dict[str, Tensor]) -> InputForm:
    follows = "dynamic" if dynamic else "static"
    settings = _settings(number, strategy, symmetric, dynamic)
    return InputForm(f"{number}8 {strategy} {follows} inputs", settings, tensors)


def _dynamic(quant: GridQuant) -> InputForm:
    """Scales that follow each tensor: the largest magnitude over 127 or 448, or the range over 255."""
    scaling, levels, token = quant.scaling, quant.number_format, type(quant.granularity) is PerToken
    known = isinstance(scaling, StatisticScaling) and type(scaling.restriction) is FloatScale
    statistic = type(getattr(scaling, "statistic", None))
    strategy = "token" if token else "tensor"
    if known and statistic is AbsMax and quant.zero_point is None:
        if levels == Integers(8, narrow_range=True) and token:
            return _form("int", strategy, True, True, {})
        if levels == E4M3 and (token or type(quant.granularity) is PerTensor):
            return _form("float", strategy, True, True, {})
    ranged = known and statistic is MinMax and quant.zero_point is not None
    if ranged and levels == Integers(8, signed=False) and token:
        return _form("int", strategy, False, True, {})
    raise _unknown(quant)


def _static(quant: GridQuant) -> InputForm:
    """One scale that was calibrated."""
    levels = quant.number_format
    integers = levels in (Integers(8), Integers(8, signed=False))
    if not (integers or (levels == E4M3 and quant.zero_point is None)) or not quant.granularity.single:
        raise _unknown(quant)
    device = next((each.device for each in (*quant.parameters(), *quant.buffers())), None)
    grid: Grid = quant.grid(torch.zeros(1, device=device))
    tensors = {"input_scale": grid.scale.detach().cpu().float().reshape(1)}
    if levels == Integers(8) and grid.zero_point is None:
        return _form("int", "tensor", True, False, tensors)
    if not integers:
        return _form("float", "tensor", True, False, tensors)
    zero_point = torch.zeros(1) if grid.zero_point is None else grid.zero_point.detach().cpu().reshape(1)
    below = 0 if grid.signed else 128  # numbers are signed in these files
    tensors["input_zero_point"] = (zero_point.to(torch.int16) - below).to(torch.int8)
    return _form("int", "tensor", False, False, tensors)
