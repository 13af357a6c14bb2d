"""A layer of torch becomes a quantized one by a change of its class; its parameters, hooks and ties stay."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from ...nn import QuantLayer
from ...qcore import TensorQuant
from .hooked import follow_class
from .own_forward import parametrized

__all__ = ["change_class", "device_and_dtype"]


def change_class(
    module: nn.Module,
    layer: type[QuantLayer],
    settings: Mapping[str, object],
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> QuantLayer:
    """Make a module a quantized layer, in place: the same object, with quantizers besides.

    Args:
        module: a layer of torch.
        layer: the quantized layer that stands for it.
        settings: keyword arguments of the quantized layer's constructor.
        device: of the quantizers' state, where the module has no parameters that say.
        dtype: likewise.

    Raises:
        QuantizerError: a setting that nothing uses, or an impossible one. The module is half done then.

    Example:
        >>> import bitwright.nn as qnn
        >>> linear = nn.Linear(4, 2)
        >>> weight = linear.weight
        >>> change_class(linear, qnn.QuantLinear, dict(weight_bit_width=4)) is linear, linear.weight is weight
        (True, True)
        >>> type(linear).__name__, linear.weight_quant.bit_width
        ('QuantLinear', 4)
    """
    training = module.training
    module.__class__ = parametrized(layer, type(module)) if parametrize.is_parametrized(module) else layer
    assert isinstance(module, QuantLayer)
    follow_class(module)
    module._convert(settings, device, dtype)
    for quant in module.modules():
        if isinstance(quant, TensorQuant):
            quant.train(training)
    return module


def device_and_dtype(*modules: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype of the first floating-point parameter or buffer of the first module that has one.

    Example:
        >>> device_and_dtype(nn.ReLU(), nn.Linear(2, 2, dtype=torch.float64))
        (device(type='cpu'), torch.float64)
    """
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return None, None
