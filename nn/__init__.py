"""Quantized layers, with torch's names, positional arguments and behaviour."""

from .activations.layer import ActivationLayer
from .activations.piecewise import (
    QuantHardSwish,
    QuantHardTanh,
    QuantIdentity,
    QuantLeakyReLU,
    QuantReLU,
    QuantReLU6,
)
from .activations.smooth import QuantGELU, QuantSigmoid, QuantSiLU, QuantSoftmax, QuantTanh
from .contexts.calibration import calibrating, finish_calibration
from .contexts.freezing import frozen
from .contexts.intercepting import intercepted, quantizers_of
from .contexts.switching import unquantized
from .conv import QuantConv1d, QuantConv2d, QuantConv3d
from .conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from .function import QuantFunction
from .layer import QuantLayer
from .linear import QuantLinear
from .slots import Slot
from .weight_layer import WeightLayer

__all__ = [
    "ActivationLayer",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantFunction",
    "QuantGELU",
    "QuantHardSwish",
    "QuantHardTanh",
    "QuantIdentity",
    "QuantLayer",
    "QuantLeakyReLU",
    "QuantLinear",
    "QuantReLU",
    "QuantReLU6",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantTanh",
    "Slot",
    "WeightLayer",
    "calibrating",
    "finish_calibration",
    "frozen",
    "intercepted",
    "quantizers_of",
    "unquantized",
]
