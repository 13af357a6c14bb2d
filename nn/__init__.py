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
from .activations.prelu import QuantPReLU
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
from .attention import (
    QuantMultiheadAttention,
    QuantScaledDotProductAttention,
    QuantTransformerDecoderLayer,
    QuantTransformerEncoderLayer,
)
from .contexts.calibration import calibrating, finish_calibration
from .contexts.freezing import frozen
from .contexts.intercepting import intercepted, quantizers_of
from .contexts.switching import unquantized
from .conv import QuantConv1d, QuantConv2d, QuantConv3d
from .conv_transpose import QuantConvTranspose1d, QuantConvTranspose2d, QuantConvTranspose3d
from .dropout import QuantDropout, QuantDropout1d, QuantDropout2d, QuantDropout3d
from .elementwise import QuantAdd, QuantCat, QuantMatmul, QuantMul
from .embeddings.bag import QuantEmbeddingBag
from .embeddings.embedding import QuantEmbedding
from .function import QuantFunction
from .hadamard import QuantHadamardClassifier
from .layer import QuantLayer
from .linear import QuantLinear
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
    "calibrating",
    "finish_calibration",
    "frozen",
    "intercepted",
    "quantizers_of",
    "unquantized",
]
