"""Quantized convolutions."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.types import Device

from ..qcore import Grid
from ..quantizers import Int8WeightPerTensor
from . import few_channels
from .depthwise import depthwise
from .slots import QuantizerLike, checked_flag
from .weight_layer import WeightLayer

__all__ = ["QuantConv1d", "QuantConv2d", "QuantConv3d"]


class _ConvLayer(WeightLayer):
    """The constructor shared by all convolutions. torch's class is the second base of each."""

    _conv_forward: Callable[..., Tensor]
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            checked_flag(self, "bias", bias),
            padding_mode,
            device,
            dtype,
        )
        self._attach(weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return self._conv_forward(x, weight, bias)

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        return depthwise(self, inputs, weights)


class QuantConv1d(_ConvLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with a quantized weight and, optionally, bias, input and output; input (N, C, L).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantConv1d(3, 6, 5, weight_bit_width=4)(torch.ones(1, 3, 8)).shape
        torch.Size([1, 6, 4])
    """


class QuantConv2d(_ConvLayer, nn.Conv2d):
    """`torch.nn.Conv2d` with a quantized weight and, optionally, bias, input and output; input (N, C, H, W).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantConv2d(3, 6, 5, weight_bit_width=4)(torch.ones(1, 3, 8, 8)).shape
        torch.Size([1, 6, 4, 4])
    """

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        plain = self.in_channels <= few_channels.FEW and self.groups == 1 and self.padding_mode == "zeros"
        if plain and isinstance(self.padding, tuple):
            return few_channels.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        return super()._compute(x, weight, bias, *extra)


class QuantConv3d(_ConvLayer, nn.Conv3d):
    """`torch.nn.Conv3d` with a quantized weight and, optionally, bias, input and output; input (N, C, D, H, W).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantConv3d(3, 6, 5, weight_bit_width=4)(torch.ones(1, 3, 8, 8, 8)).shape
        torch.Size([1, 6, 4, 4, 4])
    """
