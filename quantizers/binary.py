"""Quantizers to two levels or three: ``(Binary|Ternary)(Weight|Act)<granularity>``, see docs/quantizers.md."""

from ..qcore import BINARY
from .base import FormatBase, FormatWeight, IntBase, PerOutputChannel

__all__ = [
    "BinaryAct",
    "BinaryConnectWeight",
    "BinaryWeightPerChannel",
    "BinaryWeightPerTensor",
    "TernaryAct",
    "TernaryWeightPerChannel",
    "TernaryWeightPerTensor",
]


class BinaryWeightPerTensor(FormatWeight):
    """Weights as their signs times one scale, their mean magnitude, which is nearest to them (XNOR-Net); 0 is positive.

    The gradient is XNOR-Net's: the scale times that of a hard tanh, and the scale's own. Brevitas has only a constant
    scale, see `BinaryConnectWeight`.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(2, 2, weight_quant=BinaryWeightPerTensor)
        >>> layer.weight.data = torch.tensor([[0.1, -0.2], [0.3, 0.0]])
        >>> layer.quant_weight().value.detach()
        tensor([[ 0.1500, -0.1500],
                [ 0.1500,  0.1500]])
    """

    number_format = BINARY
    detach_scale = True
    transform = "xnor"


class BinaryWeightPerChannel(PerOutputChannel, BinaryWeightPerTensor):
    """`BinaryWeightPerTensor` with one scale per output channel, as XNOR-Net has it."""


class BinaryConnectWeight(FormatBase):
    """Weights as their signs, -1 and 1 (BinaryConnect); ``weight_scale=0.1`` selects another magnitude.

    The gradient passes between the two levels, both included, and is 0 beyond. BinaryConnect clips the weights
    themselves after each step of the optimizer, so that none gets stuck beyond; that is the training loop's to do:
    ``with torch.no_grad(): layer.weight.clamp_(-1, 1)``. ``weight_rounding="stochastic"`` is the paper's stochastic
    form, whose probabilities are a hard sigmoid. Brevitas: ``SignedBinaryWeightPerTensorConst``, at a scale of 0.1,
    which clips the weights in the forward pass.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 1, bias=False, weight_quant=BinaryConnectWeight)
        >>> layer.weight.data = torch.tensor([[0.3, -0.2, -1.0, 1.5]])
        >>> layer(torch.ones(1, 4)).backward()
        >>> layer.quant_weight().value.tolist(), layer.weight.grad.tolist()
        ([[1.0, -1.0, -1.0, 1.0]], [[1.0, 1.0, 1.0, 0.0]])
    """

    quantizes = "weight"
    number_format = BINARY
    scale = 1.0


class BinaryAct(FormatBase):
    """Activations as their signs, -1 and 1; 0 is positive. ``act_scale=0.5`` selects another magnitude.

    The gradient is that of a hard tanh: it passes where the input lies from -1 to 1 (BinaryNet, XNOR-Net). Put a batch
    norm before it, which centres the input, and no ReLU: after one every sign is positive, and nothing is left to
    train on. Bi-Real Net's polynomial and other approximations of the sign's slope are roundings of one's own with
    ``straight_through = False``. Brevitas: ``SignedBinaryActPerTensorConst``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> x = torch.tensor([-2.0, -0.5, 0.0, 1.0], requires_grad=True)
        >>> y = qnn.QuantIdentity(act_quant=BinaryAct)(x)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([-1.0, -1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0])
    """

    quantizes = "activation"
    number_format = BINARY
    scale = 1.0


class TernaryWeightPerTensor(IntBase):
    """Weights as -1, 0 or 1 times one scale (Ternary Weight Networks): 0 up to 0.7 times the mean magnitude.

    The scale is the mean magnitude of the weights above that threshold; ``weight_ternary_threshold`` selects another
    share. The gradient passes straight through, and does not reach the scale. The levels are integers of 2 bits, for
    biases on the scale of products and for files. Brevitas' ``SignedTernaryWeightPerTensorConst`` has the constant
    scale 0.1 and rounds to nearest: ``Int2WeightPerTensor(scale=0.1)``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(2, 2, weight_quant=TernaryWeightPerTensor)
        >>> layer.weight.data = torch.tensor([[1.0, -0.5], [0.25, -0.1]])
        >>> layer.quant_weight().value.tolist(), layer.int_weight().tolist()
        ([[0.75, -0.75], [0.0, 0.0]], [[1, -1], [0, 0]])
    """

    quantizes = "weight"
    bit_width = 2
    narrow_range = True
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = True
    transform = "ternary"


class TernaryWeightPerChannel(PerOutputChannel, TernaryWeightPerTensor):
    """`TernaryWeightPerTensor` with threshold and scale per output channel."""


class TernaryAct(IntBase):
    """Activations as -1, 0 or 1: 0 up to a magnitude of 0.5. ``act_scale=0.5`` selects another magnitude.

    The gradient passes where the input lies from -1.5 to 1.5. Brevitas: ``SignedTernaryActPerTensorConst``.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=TernaryAct)(torch.tensor([-2.0, -0.5, 0.6]))
        tensor([-1., -0.,  1.])
    """

    quantizes = "activation"
    bit_width = 2
    narrow_range = True
    scale = 1.0
