"""Quantizers of gradients, for ``grad_quant``: ``<Format>Grad``."""

from ..qcore import E5M2
from .base import FormatBase, IntBase

__all__ = ["Fp8e5m2Grad", "Int8Grad"]

_SMALLEST = 2.0**-126  # gradients are tiny where a loss is a mean: the usual floor of scales would flush them


class Fp8e5m2Grad(FormatBase):
    """Gradients as 8-bit floats of 5 exponent and 2 mantissa bits (OCP E5M2), scaled by their largest magnitude.

    The format that FP8 training uses for what flows backward (Micikevicius et al., FP8 Formats for Deep Learning,
    2022), with a scale for each tensor and step.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(3, 1, bias=False, weight_quant=None, grad_quant=Fp8e5m2Grad)
        >>> layer(torch.eye(3)).backward(torch.tensor([[1e-9], [2.2e-9], [57344e-9]]))
        >>> (layer.weight.grad * 1e9).round(decimals=3)
        tensor([[1.0000e+00, 2.0000e+00, 5.7344e+04]])
    """

    quantizes = "gradient"
    number_format = E5M2
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = True
    min_scale = _SMALLEST


class Int8Grad(IntBase):
    """Gradients as signed 8-bit integers, scaled by their largest magnitude, and rounded at random.

    Stochastic rounding as in DoReFa-Net (Zhou et al. 2016): a gradient is right on average, so that no bias adds up.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=None, grad_quant=Int8Grad, grad_bit_width=4)
        >>> layer(torch.ones(700, 1)).backward(torch.cat([torch.ones(1, 1), torch.full((699, 1), 0.1)]))
        >>> abs(layer.weight.grad.item() - 70.9) < 10  # steps are 1/7: to nearest, it would be 100.9
        True
    """

    quantizes = "gradient"
    narrow_range = True
    rounding = "stochastic"
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = True
    min_scale = _SMALLEST
