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
from .embeddings.bag import QuantEmbeddingBag
from .embeddings.embedding import QuantEmbedding
from .function import QuantFunction
from .hadamard import QuantHadamardClassifier
from .layer import QuantLayer
from .linear import QuantLinear
from .norms.batch_norm import QuantBatchNorm1d, QuantBatchNorm2d, QuantBatchNorm3d
from .norms.layer_norm import QuantGroupNorm, QuantLayerNorm, QuantRMSNorm
from .norms.scale_bias import QuantScaleBias
from .recurrent import QuantGRU, QuantGRUCell, QuantLSTM, QuantLSTMCell, QuantRNN, QuantRNNCell
from .slots import Slot
from .weight_layer import WeightLayer

__all__ = [
    "ActivationLayer",
    "QuantBatchNorm1d",
    "QuantBatchNorm2d",
    "QuantBatchNorm3d",
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantConvTranspose1d",
    "QuantConvTranspose2d",
    "QuantConvTranspose3d",
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
    "QuantIdentity",
    "QuantLSTM",
    "QuantLSTMCell",
    "QuantLayer",
    "QuantLayerNorm",
    "QuantLeakyReLU",
    "QuantLinear",
    "QuantMultiheadAttention",
    "QuantRMSNorm",
    "QuantRNN",
    "QuantRNNCell",
    "QuantReLU",
    "QuantReLU6",
    "QuantScaleBias",
    "QuantScaledDotProductAttention",
    "QuantSiLU",
    "QuantSigmoid",
    "QuantSoftmax",
    "QuantTanh",
    "QuantTransformerDecoderLayer",
    "QuantTransformerEncoderLayer",
    "Slot",
    "WeightLayer",
    "calibrating",
    "finish_calibration",
    "frozen",
    "intercepted",
    "quantizers_of",
    "unquantized",
]
