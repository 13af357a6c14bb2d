"""Quantized average pooling: averages, then quantizes.

Each takes torch's positional arguments and, by keyword, those of `ActivationLayer`: ``**options`` are the ones that a
layer passes on.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...qcore.tracing import exporting
from ...quantizers import Int8Act
from ..activations.layer import ActivationLayer
from ..slots import QuantizerLike
from .adaptive import expressible, means
from .windows import adaptive_counts, each_dimension, overhang

__all__ = [
    "QuantAdaptiveAvgPool1d",
    "QuantAdaptiveAvgPool2d",
    "QuantAdaptiveAvgPool3d",
    "QuantAvgPool1d",
    "QuantAvgPool2d",
    "QuantAvgPool3d",
]


class QuantAvgPool1d(ActivationLayer, nn.AvgPool1d):
    """`torch.nn.AvgPool1d`, quantized; input (N, C, L). Averages lie between the steps of their input's grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAvgPool1d(2, scale=0.5)(torch.tensor([[1.0, 2.0, 4.0, 9.0]]))
        tensor([[1.5000, 6.5000]])
    """

    def __init__(
        self,
        kernel_size: int | tuple[int],
        stride: int | tuple[int] | None = None,
        padding: int | tuple[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        act_quant: QuantizerLike = Int8Act,
        **options: Any,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode, count_include_pad, act_quant=act_quant, **options)


class _AvgPool(ActivationLayer):
    """Average pooling with a divisor; torch's class is the second base of each."""

    kernel_size: Any  # a number, or one for each dimension
    stride: Any
    padding: Any
    ceil_mode: bool
    divisor_override: int | None
    _dims: int

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        *,
        act_quant: QuantizerLike = Int8Act,
        **options: Any,
    ) -> None:
        arguments = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
        super().__init__(*arguments, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        if self._dims == 3 and x.dtype in (torch.bfloat16, torch.float16):  # for which torch has no kernel on the CPU
            return self._function(x.float()).to(x.dtype)
        if self.divisor_override is None or not exporting():
            return super()._function(x)
        return self._whole_windows(x)

    def _whole_windows(self, x: Tensor) -> Tensor:
        """The same without a divisor, which torch's exporter to ONNX drops: averages of whole windows, multiplied."""
        given = (self.kernel_size, self.stride, self.padding)
        kernel, stride, padding = (each_dimension(each, self._dims) for each in given)
        sides: list[int] = []  # from the last dimension on, as F.pad takes them
        for size, *window in zip(x.shape[-self._dims :], kernel, stride, padding, strict=True):
            extra = overhang(size, *window) if self.ceil_mode else 0
            sides = [window[2], window[2] + extra, *sides]
        pool = F.avg_pool2d if self._dims == 2 else F.avg_pool3d
        assert self.divisor_override is not None
        padded = F.pad(x, sides) if any(sides) else x
        return pool(padded, kernel, stride) * (math.prod(kernel) / self.divisor_override)


class QuantAvgPool2d(_AvgPool, nn.AvgPool2d):
    """`torch.nn.AvgPool2d`, quantized; input (N, C, H, W). Averages lie between the steps of their input's grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`. `TruncAvgPool2d` averages on the
    input's grid, in integers.

    Example:
        >>> import torch
        >>> QuantAvgPool2d(2, scale=0.5)(torch.tensor([[[1.0, 2.0], [4.0, 9.0]]]))
        tensor([[[4.]]])
    """

    _dims = 2


class QuantAvgPool3d(_AvgPool, nn.AvgPool3d):
    """`torch.nn.AvgPool3d`, quantized; input (N, C, D, H, W). Averages lie between the steps of their input's grid.

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAvgPool3d(2, scale=0.5)(torch.arange(8.0).reshape(1, 2, 2, 2))
        tensor([[[[3.5000]]]])
    """

    _dims = 3


class _AdaptiveAvgPool(ActivationLayer):
    """Average pooling to a given size; torch's class is the second base of each."""

    output_size: Any
    _dims: int

    def __init__(self, output_size: Any, *, act_quant: QuantizerLike = Int8Act, **options: Any) -> None:
        super().__init__(output_size, act_quant=act_quant, **options)

    def _function(self, x: Tensor) -> Tensor:
        counts = adaptive_counts(self.output_size, x.shape[-self._dims :])
        return means(x, counts) if exporting() and expressible(x, counts) else super()._function(x)


class QuantAdaptiveAvgPool1d(_AdaptiveAvgPool, nn.AdaptiveAvgPool1d):
    """`torch.nn.AdaptiveAvgPool1d`, quantized; input (N, C, L).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAdaptiveAvgPool1d(2, scale=0.5)(torch.tensor([[1.0, 2.0, 4.0, 9.0]]))
        tensor([[1.5000, 6.5000]])
    """

    _dims = 1


class QuantAdaptiveAvgPool2d(_AdaptiveAvgPool, nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d`, quantized; input (N, C, H, W).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`. `TruncAdaptiveAvgPool2d` averages
    on the input's grid, in integers.

    Example:
        >>> import torch
        >>> QuantAdaptiveAvgPool2d(1, scale=0.5)(torch.tensor([[[1.0, 2.0], [4.0, 9.0]]]))
        tensor([[[4.]]])
    """

    _dims = 2


class QuantAdaptiveAvgPool3d(_AdaptiveAvgPool, nn.AdaptiveAvgPool3d):
    """`torch.nn.AdaptiveAvgPool3d`, quantized; input (N, C, D, H, W).

    Positional arguments are torch's; for the keyword-only ones see `ActivationLayer`.

    Example:
        >>> import torch
        >>> QuantAdaptiveAvgPool3d(1, scale=0.5)(torch.arange(8.0).reshape(1, 2, 2, 2))
        tensor([[[[3.5000]]]])
    """

    _dims = 3
