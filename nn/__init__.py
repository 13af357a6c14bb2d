"""Quantized layers, with torch's names, positional arguments and behaviour."""

from .activations.layer import ActivationLayer
from .activations.piecewise import (
    QuantHardsigmoid,
    QuantHardSwish,
    QuantHardswish,
    QuantHardTanh,
    QuantHardtanh,
    QuantIdentity,
    QuantLeakyReLU,
    QuantReLU,
    QuantReLU6,
)
from .activations.smooth import (
    QuantCELU,
    QuantELU,
    QuantGELU,
    QuantLogSigmoid,
    QuantLogSoftmax,
    QuantMish,
    QuantSELU,
    QuantSigmoid,
    QuantSiLU,
    QuantSoftmax,
    QuantSoftplus,
    QuantTanh,
)
from .contexts.calibration import calibrating, finish_calibration
from .contexts.freezing import frozen
from .contexts.intercepting import intercepted, quantizers_of
from .contexts.switching import unquantized
from .conv import QuantConv1d, QuantConv2d, QuantConv3d
from .conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from .dropout import QuantDropout, QuantDropout1d, QuantDropout2d, QuantDropout3d
from .elementwise import QuantAdd, QuantCat, QuantMatmul, QuantMul
from .function import QuantFunction
from .layer import QuantLayer
from .linear import QuantLinear
from .pooling.averages import (
    QuantAdaptiveAvgPool1d,
    QuantAdaptiveAvgPool2d,
    QuantAdaptiveAvgPool3d,
    QuantAvgPool1d,
    QuantAvgPool2d,
    QuantAvgPool3d,
)
from .pooling.maxima import (
    QuantAdaptiveMaxPool1d,
    QuantAdaptiveMaxPool2d,
    QuantAdaptiveMaxPool3d,
    QuantMaxPool1d,
    QuantMaxPool2d,
    QuantMaxPool3d,
)
from .pooling.truncated import TruncAdaptiveAvgPool2d, TruncAvgPool2d
from .slots import Slot
from .upsampling import QuantUpsample, QuantUpsamplingBilinear2d, QuantUpsamplingNearest2d
from .weight_layer import WeightLayer

__all__ = [
    "ActivationLayer",
    "QuantAdaptiveAvgPool1d",
    "QuantAdaptiveAvgPool2d",
    "QuantAdaptiveAvgPool3d",
    "QuantAdaptiveMaxPool1d",
    "QuantAdaptiveMaxPool2d",
    "QuantAdaptiveMaxPool3d",
    "QuantAdd",
    "QuantAvgPool1d",
    "QuantAvgPool2d",
    "QuantAvgPool3d",
    "QuantCELU",
    "QuantCat",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
    "QuantDropout",
    "QuantDropout1d",
    "QuantDropout2d",
    "QuantDropout3d",
    "QuantELU",
    "QuantFunction",
    "QuantGELU",
    "QuantHardSwish",
    "QuantHardTanh",
    "QuantHardsigmoid",
    "QuantHardswish",
    "QuantHardtanh",
    "QuantIdentity",
    "QuantLayer",
    "QuantLeakyReLU",
    "QuantLinear",
    "QuantLogSigmoid",
    "QuantLogSoftmax",
    "QuantMatmul",
    "QuantMaxPool1d",
    "QuantMaxPool2d",
    "QuantMaxPool3d",
    "QuantMish",
    "QuantMul",
    "QuantReLU",
    "QuantReLU6",
    "QuantSELU",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantSoftplus",
    "QuantTanh",
    "QuantUpsample",
    "QuantUpsamplingBilinear2d",
    "QuantUpsamplingNearest2d",
    "Slot",
    "TruncAdaptiveAvgPool2d",
    "TruncAvgPool2d",
    "WeightLayer",
    "calibrating",
    "finish_calibration",
    "frozen",
    "intercepted",
    "quantizers_of",
    "unquantized",
]
