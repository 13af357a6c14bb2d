"""Torch's own modules that use a layer's weight without calling the layer.

- `nn.TransformerEncoderLayer` has a fast path in evaluation that reads ``linear1.weight``. It is not taken where a
  module inside has forward hooks, and every quantizer has one (see `TensorQuant`).
- `nn.TransformerEncoder` makes nested tensors for that path, and `nn.MultiheadAttention` never calls ``out_proj``. Both
  are recognised when they read the weight.
"""

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from ..qcore import QuantizerError, TensorQuant, path_of

__all__ = ["OwnParameter"]


class OwnParameter:
    """A parameter of a quantized layer, as a class attribute: nothing of torch computes with it in the layer's place.

    Everyone else gets the parameter. Compiled code isn't watched, as it can't ask who reads: a forward before compiling
    finds the mistake. Nor is a tensor that takes the parameter's place, as pruning and parametrizations put one there.

    Raises:
        QuantizerError: a module of torch reads the parameter to compute with it, past the layer's quantizers.

    Example:
        >>> import bitwright.nn as qnn
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> attention.out_proj = qnn.QuantLinear(8, 8)
        >>> x = torch.zeros(3, 1, 8)
        >>> attention(x, x, x)
        Traceback (most recent call last):
        bitwright.qcore.errors.QuantizerError: out_proj: MultiheadAttention reads the weight of this layer and never \
calls it, so its quantizers would do nothing. Put an nn.Linear there, and a \
QuantMultiheadAttention in the place of the MultiheadAttention.
    """

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, layer: nn.Module | None, owner: type | None = None) -> Any:
        if layer is None:
            return self
        parameters = vars(layer).get("_parameters", {})
        if self.name not in parameters:
            raise AttributeError(self.name)  # nn.Module knows what there is instead
        parameter = parameters[self.name]
        if parameter is not None and not torch.compiler.is_compiling():
            caller = sys._getframe(1)
            if caller.f_globals.get("__name__", "").startswith(_READERS):
                return _read_by(caller, layer, parameter)
        return parameter


_READERS = ("torch.nn.modules.", "torch.utils.mkldnn")


class _Watched(Tensor):
    """A weight that torch's fast paths leave alone: it is no plain tensor."""


def _read_by(caller: FrameType, layer: nn.Module, parameter: Tensor) -> Tensor:
    reader, function = caller.f_locals.get("self"), caller.f_code.co_name
    if function == "convert_sync_batchnorm" and _quantizes(layer):
        raise QuantizerError(
            f"{path_of(layer)}: nn.SyncBatchNorm.convert_sync_batchnorm would put a float layer in the place of this "
            "one. Convert the float model, train it, and load its state dict into a model with this layer."
        )
    if reader is layer or function not in ("forward", "__init__") or not _quantizes(layer):
        return parameter
    if isinstance(reader, nn.TransformerEncoder | nn.TransformerEncoderLayer):
        return parameter.as_subclass(_Watched)  # it asks whether it may take the fast path
    torchs = next(base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("torch.nn."))
    remedy = f"Put an nn.{torchs} there"
    if isinstance(reader, nn.MultiheadAttention):
        remedy += f", and a QuantMultiheadAttention in the place of the {type(reader).__name__}"
    raise QuantizerError(
        f"{path_of(layer)}: {type(reader).__name__} reads the weight of this layer and never calls it, so its "
        f"quantizers would do nothing. {remedy}."
    )


def _quantizes(layer: nn.Module) -> bool:
    return any(isinstance(each, TensorQuant) for each in layer.children())
