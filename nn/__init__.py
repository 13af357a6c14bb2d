"""Quantized layers, with torch's names, positional arguments and behaviour."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from .branches.low_rank import LowRank
from .contexts.calibration import calibrating, finish_calibration
from .contexts.freezing import frozen
from .contexts.intercepting import intercepted, quantizers_of
from .contexts.schedules import finish_schedules
from .contexts.switching import unquantized
from .conv import QuantConv1d, QuantConv2d, QuantConv3d
from .conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from .layer import QuantLayer
from .linear import QuantLinear
from .slots import Slot
from .weight_layer import WeightLayer

if TYPE_CHECKING:  # imported when first asked for: most models have none of them
    from .activations.prelu import QuantPReLU
    from .attention import (
        QuantMultiheadAttention,
        QuantScaledDotProductAttention,
        QuantTransformerDecoderLayer,
        QuantTransformerEncoderLayer,
    )
    from .dropout import QuantDropout, QuantDropout1d, QuantDropout2d, QuantDropout3d
    from .elementwise import QuantAdd, QuantCat, QuantMatmul, QuantMul
    from .embeddings.bag import QuantEmbeddingBag
    from .embeddings.embedding import QuantEmbedding
    from .function import QuantFunction
    from .hadamard import QuantHadamardClassifier
    from .hadamard_transform import HadamardTransform
    from .losses import BitLoss, accumulator_penalty, bit_loss, range_penalty, rounding_penalty
    from .norms.batch_norm import QuantBatchNorm1d, QuantBatchNorm2d, QuantBatchNorm3d
    from .norms.layer_norm import QuantGroupNorm, QuantLayerNorm, QuantRMSNorm
    from .norms.scale_bias import QuantScaleBias
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
    from .recurrent import QuantGRU, QuantGRUCell, QuantLSTM, QuantLSTMCell, QuantRNN, QuantRNNCell
    from .upsampling import QuantUpsample, QuantUpsamplingBilinear2d, QuantUpsamplingNearest2d

__all__ = [
    "ActivationLayer",
    "BitLoss",
    "HadamardTransform",
    "LowRank",
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
    "QuantBatchNorm1d",
    "QuantBatchNorm2d",
    "QuantBatchNorm3d",
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
    "QuantEmbedding",
    "QuantEmbeddingBag",
    "QuantFunction",
    "QuantGELU",
    "QuantGRU",
    "QuantGRUCell",
    "QuantGroupNorm",
    "QuantHadamardClassifier",
    "QuantHardSwish",
    "QuantHardTanh",
    "QuantHardsigmoid",
    "QuantHardswish",
    "QuantHardtanh",
    "QuantIdentity",
    "QuantLSTM",
    "QuantLSTMCell",
    "QuantLayer",
    "QuantLayerNorm",
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
    "QuantMultiheadAttention",
    "QuantPReLU",
    "QuantRMSNorm",
    "QuantRNN",
    "QuantRNNCell",
    "QuantReLU",
    "QuantReLU6",
    "QuantSELU",
    "QuantScaleBias",
    "QuantScaledDotProductAttention",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantSoftplus",
    "QuantTanh",
    "QuantTransformerDecoderLayer",
    "QuantTransformerEncoderLayer",
    "QuantUpsample",
    "QuantUpsamplingBilinear2d",
    "QuantUpsamplingNearest2d",
    "Slot",
    "TruncAdaptiveAvgPool2d",
    "TruncAvgPool2d",
    "WeightLayer",
    "accumulator_penalty",
    "bit_loss",
    "calibrating",
    "finish_calibration",
    "finish_schedules",
    "frozen",
    "intercepted",
    "quantizers_of",
    "range_penalty",
    "rounding_penalty",
    "unquantized",
]

_LATER = (  # the modules of what is imported when first asked for
    ".function",
    ".elementwise",
    ".dropout",
    ".pooling.maxima",
    ".pooling.averages",
    ".pooling.truncated",
    ".upsampling",
    ".embeddings.embedding",
    ".embeddings.bag",
    ".norms.layer_norm",
    ".norms.batch_norm",
    ".norms.scale_bias",
    ".activations.prelu",
    ".hadamard",
    ".hadamard_transform",
    ".losses",
    ".attention",
    ".recurrent",
)


def __getattr__(name: str) -> Any:
    for path in _LATER if name in __all__ else ():
        module = import_module(path, __name__)
        if name in module.__all__:
            globals()[name] = found = getattr(module, name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
