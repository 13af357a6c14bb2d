"""Dropout that keeps values on their grid.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

from typing import Any

from torch import nn

from .activations.layer import ActivationLayer
from .slots import QuantizerLike

__all__ = ["QuantDropout", "QuantDropout1d", "QuantDropout2d", "QuantDropout3d"]


class _Dropout(ActivationLayer):
    """The constructor shared by all; torch's class is the second base of each.

    In training the values that are kept grow by the factor ``1 / (1 - p)``, and the step of their grid with them.
    """

    _keeps_grid = True

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, act_quant: QuantizerLike = None, **options: Any
    ) -> None:
        super().__init__(p, inplace, act_quant=act_quant, **options)


class QuantDropout(_Dropout, nn.Dropout):
    """`torch.nn.Dropout`. A `QuantTensor` stays on its grid in evaluation, and gets one with a larger step in training.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(torch.ones(1, 4))
        >>> dropout = QuantDropout(0.5)
        >>> dropout(q).scale, dropout.eval()(q).scale
        (tensor(1.), tensor(0.5000))
    """


class QuantDropout1d(_Dropout, nn.Dropout1d):
    """`torch.nn.Dropout1d`, of whole channels; input (N, C, L). Grids are kept as by `QuantDropout`.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantDropout1d(1.0)(torch.ones(1, 1, 3))
        tensor([[[0., 0., 0.]]])
    """


class QuantDropout2d(_Dropout, nn.Dropout2d):
    """`torch.nn.Dropout2d`, of whole channels; input (N, C, H, W). Grids are kept as by `QuantDropout`.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantDropout2d(1.0)(torch.ones(1, 1, 1, 3))
        tensor([[[[0., 0., 0.]]]])
    """


class QuantDropout3d(_Dropout, nn.Dropout3d):
    """`torch.nn.Dropout3d`, of whole channels; input (N, C, D, H, W). Grids are kept as by `QuantDropout`.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantDropout3d(1.0)(torch.ones(1, 1, 1, 1, 3))
        tensor([[[[[0., 0., 0.]]]]])
    """
