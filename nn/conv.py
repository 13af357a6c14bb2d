"""Quantized convolutions."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ..qcore import Grid
from ..quantizers import Int8WeightPerTensor
from .depthwise import depthwise
from .kernels import few_channels
from .slots import QuantizerLike, checked_flag
from .weight_layer import WeightLayer

__all__ = ["QuantConv1d", "QuantConv2d", "QuantConv3d"]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class _ConvLayer(WeightLayer):
    """The constructor shared by all convolutions. torch's class is the second base of each."""

    _conv_forward: Callable[..., Tensor]
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[int, ...]
    padding_mode: Literal["zeros", "reflect", "replicate", "circular"]

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
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        pads_by_size = padding == "same" and any(each != 1 for each in _each(stride))  # which torch refuses
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if pads_by_size else padding,
            dilation,
            groups,
            checked_flag(self, "bias", bias),
            padding_mode,
            device,
            dtype,
        )
        self.padding = "same" if pads_by_size else self.padding
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        if not self._pads_by_size:
            return self._conv_forward(x, weight, bias)
        convolve = _CONVOLUTIONS[len(self.kernel_size)]
        return convolve(self._padded(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    @property
    def _pads_by_size(self) -> bool:
        """Whether the size of the input decides how much is padded."""
        return self.padding == "same" and any(each != 1 for each in self.stride)

    def _padded(self, x: Tensor) -> Tensor:
        """The input with as much around it that there is an output for every ``stride`` inputs, a last part included.

        What can't be the same on both sides is more behind than in front, as in TensorFlow.
        """
        sides: list[int] = []  # from the last dimension on, as F.pad takes them
        window = zip(x.shape[-len(self.kernel_size) :], self.kernel_size, self.stride, self.dilation, strict=True)
        for size, kernel, stride, dilation in window:
            outputs = (size + stride - 1) // stride
            total: Any = torch.sym_max((outputs - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
            sides = [total // 2, total - total // 2, *sides]
        return F.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        return depthwise(self, inputs, weights)


class QuantConv1d(_ConvLayer, nn.Conv1d):
    """`torch.nn.Conv1d` with a quantized weight and, optionally, bias, input and output; input (N, C, L).

    Positional arguments are torch's; ``padding="same"`` may have a stride, and gives ``ceil(size / stride)`` outputs.
    `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantConv1d(3, 6, 5, weight_bit_width=4)(torch.ones(1, 3, 8)).shape
        torch.Size([1, 6, 4])
    """


class QuantConv2d(_ConvLayer, nn.Conv2d):
    """`torch.nn.Conv2d` with a quantized weight and, optionally, bias, input and output; input (N, C, H, W).

    Positional arguments are torch's; ``padding="same"`` may have a stride, and gives ``ceil(size / stride)`` outputs.
    `WeightLayer` documents the keyword-only ones.

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
        if plain and self._pads_by_size:
            return few_channels.conv2d(self._padded(x), weight, bias, self.stride, (0, 0), self.dilation)
        return super()._compute(x, weight, bias, *extra)


class QuantConv3d(_ConvLayer, nn.Conv3d):
    """`torch.nn.Conv3d` with a quantized weight and, optionally, bias, input and output; input (N, C, D, H, W).

    Positional arguments are torch's; ``padding="same"`` may have a stride, and gives ``ceil(size / stride)`` outputs.
    `WeightLayer` documents the keyword-only ones.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantConv3d(3, 6, 5, weight_bit_width=4)(torch.ones(1, 3, 8, 8, 8)).shape
        torch.Size([1, 6, 4, 4, 4])
    """


def _each(stride: object) -> tuple[object, ...]:
    return tuple(stride) if isinstance(stride, (tuple, list)) else (stride,)
