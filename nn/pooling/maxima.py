"""Quantized max pooling: the largest value of a window is one of the input's, on the input's grid.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

from typing import Any

from torch import Tensor, nn

from ...qcore import values_of
from ...qcore.tracing import exporting
from ..activations.layer import ActivationLayer
from ..slots import QuantizerLike
from .adaptive import expressible, largest
from .windows import adaptive_counts

__all__ = [
    "QuantAdaptiveMaxPool1d",
    "QuantAdaptiveMaxPool2d",
    "QuantAdaptiveMaxPool3d",
    "QuantMaxPool1d",
    "QuantMaxPool2d",
    "QuantMaxPool3d",
]


class _Largest(ActivationLayer):
    """What returns indices besides, if that is asked for."""

    _keeps_grid = True
    return_indices: bool

    def forward(self, input: Tensor) -> Any:  # noqa: A002 - torch's name for it
        """The largest values, with ``return_indices=True`` as a pair with their places."""
        if not self.return_indices:
            return super().forward(input)
        x = self._entering(input)
        if self.act_quant is None:
            return self._function(x)
        largest, indices = self._function(self._real(values_of(x)))
        return self._leaving(*self.act_quant.quantize(largest)), indices


class _MaxPool(_Largest):
    """Max pooling; torch's class is the second base of each."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        act_quant: QuantizerLike = None,
        **options: Any,
    ) -> None:
        arguments = (kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        super().__init__(*arguments, act_quant=act_quant, **options)


class QuantMaxPool1d(_MaxPool, nn.MaxPool1d):
    """`torch.nn.MaxPool1d`; input (N, C, L). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantMaxPool1d(2)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[2., 4.]])
    """


class QuantMaxPool2d(_MaxPool, nn.MaxPool2d):
    """`torch.nn.MaxPool2d`; input (N, C, H, W). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> q = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)(torch.tensor([[[1.1, 2.0], [4.0, 3.0]]]))
        >>> QuantMaxPool2d(2)(q).int()
        tensor([[[8]]], dtype=torch.int8)
    """


class QuantMaxPool3d(_MaxPool, nn.MaxPool3d):
    """`torch.nn.MaxPool3d`; input (N, C, D, H, W). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantMaxPool3d(2)(torch.arange(8.0).reshape(1, 2, 2, 2))
        tensor([[[[7.]]]])
    """


class _AdaptiveMaxPool(_Largest):
    """Max pooling to a given size; torch's class is the second base of each."""

    output_size: Any
    _dims: int

    def __init__(
        self, output_size: Any, return_indices: bool = False, *, act_quant: QuantizerLike = None, **options: Any
    ) -> None:
        super().__init__(output_size, return_indices, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Any:
        counts = adaptive_counts(self.output_size, x.shape[-self._dims :])
        written = exporting() and not self.return_indices and expressible(x, counts)
        return largest(x, counts) if written else super()._function(x)


class QuantAdaptiveMaxPool1d(_AdaptiveMaxPool, nn.AdaptiveMaxPool1d):
    """`torch.nn.AdaptiveMaxPool1d`; input (N, C, L). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAdaptiveMaxPool1d(1)(torch.tensor([[1.0, 2.0, 4.0, 3.0]]))
        tensor([[4.]])
    """

    _dims = 1


class QuantAdaptiveMaxPool2d(_AdaptiveMaxPool, nn.AdaptiveMaxPool2d):
    """`torch.nn.AdaptiveMaxPool2d`; input (N, C, H, W). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAdaptiveMaxPool2d(1)(torch.tensor([[[1.0, 2.0], [4.0, 3.0]]]))
        tensor([[[4.]]])
    """

    _dims = 2


class QuantAdaptiveMaxPool3d(_AdaptiveMaxPool, nn.AdaptiveMaxPool3d):
    """`torch.nn.AdaptiveMaxPool3d`; input (N, C, D, H, W). A `QuantTensor` stays on its grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAdaptiveMaxPool3d(1)(torch.arange(8.0).reshape(1, 2, 2, 2))
        tensor([[[[7.]]]])
    """

    _dims = 3
