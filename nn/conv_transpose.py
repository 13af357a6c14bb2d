"""Quantized transposed convolutions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ..qcore import Grid
from ..qcore.granularity import Granularity, PerAxis, PerBlock, PerGroup
from ..quantizers import Int8WeightPerTensor
from .depthwise import depthwise
from .slots import QuantizerLike, checked_flag
from .weight_layer import WeightLayer

__all__ = ["QuantConvTranspose1d", "QuantConvTranspose2d", "QuantConvTranspose3d"]

_OPERATIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class _TransposedLayer(WeightLayer):
    """What transposed convolutions of every dimension share; torch's class comes second among the bases.

    Weights are (in, out / groups, *kernel): output channels run over dimension 1, once for each group. With groups no
    dimension counts the outputs, so that a quantizer sees such weights as (out, in / groups, *kernel), like those of
    `nn.Conv2d`, and ``weight_axis`` counts the dimensions of that.
    """

    groups: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    _output_padding: Callable[..., list[int]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        output_padding: int | tuple[int, ...] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | tuple[int, ...] = 1,
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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            checked_flag(self, "bias", bias),
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # type: ignore[override]  # noqa: A002
        """The layer's output; ``output_size`` settles which of several sizes is meant, as in torch."""
        return super().forward(input, output_size)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        kernel, stride, dilation, padding = (
            getattr(self, name) for name in ("kernel_size", "stride", "dilation", "padding")
        )
        output_padding = self._output_padding(
            x, extra[0] if extra else None, stride, padding, kernel, len(kernel), dilation
        )
        return _OPERATIONS[len(kernel)](x, weight, bias, stride, padding, output_padding, self.groups, dilation)

    @property
    def channel_axis(self) -> int:
        """The dimension that counts the outputs, where a quantizer sees the weight."""
        return 0 if self.groups > 1 else 1

    def _outputs_first(self, weight: Tensor) -> Tensor:
        return weight if self._counts_outputs else self._regrouped(weight)

    def _as_stored(self, weight: Tensor) -> Tensor:
        return weight if self._counts_outputs else self._regrouped(weight)

    @property
    def _counts_outputs(self) -> bool:
        """Whether a dimension of the weight counts the outputs: the second without groups, the first if depthwise."""
        return self.groups == 1 or self.groups == self.in_channels == self.out_channels

    def _regrouped(self, weight: Tensor) -> Tensor:
        """(groups x a, b, *kernel) as (groups x b, a, *kernel), which is its own way back."""
        return weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def _grid_as_stored(self, grid: Grid) -> Grid:
        if self._counts_outputs or grid.scale.numel() == 1:
            return grid
        seen, inputs = self._outputs_first(self.weight).shape, self.in_channels // self.groups
        size = grid.granularity.group_size if isinstance(grid.granularity, PerGroup) else 0
        size = inputs if size == -1 or size > inputs else size
        whole = size > 0 and inputs % size == 0

        def stored(each: Tensor | None) -> Tensor | None:
            if each is None or whole:
                return None if each is None else self._regrouped(each)
            spread = grid.along(each, seen)
            return self._regrouped(spread.expand(-1, inputs, *spread.shape[2:]))

        scale = stored(grid.scale)
        assert scale is not None
        kernel = (-1 if side == 1 else 1 for side in scale.shape[2:])
        granularity: Granularity = PerGroup(size, 0) if whole else PerBlock((1, 1, *kernel))
        if self.groups == self.out_channels and grid.axis is not None:
            granularity = PerAxis(0)
        changed = {"scale": scale, "zero_point": stored(grid.zero_point), "granularity": granularity}
        return grid.replace(**changed, scale_format=grid.scale_format)

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        return depthwise(self, inputs, weights)

    def _fan_in(self) -> int:
        kernel, stride, dilation = (getattr(self, name) for name in ("kernel_size", "stride", "dilation"))
        products = self.weight.shape[0] // self.groups
        for size, step, spread in zip(kernel, stride, dilation, strict=True):
            offsets = [index * spread % step for index in range(size)]
            products *= max(offsets.count(phase) for phase in set(offsets))
        return products


class QuantConvTranspose1d(_TransposedLayer, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with quantized weight and, on request, bias, input and output; input (N, C, L).

    Positional arguments are torch's; for the keyword-only ones see `WeightLayer`.

    Raises:
        QuantizerError: a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> import torch
        >>> QuantConvTranspose1d(6, 3, 2, stride=2)(torch.ones(1, 6, 4)).shape
        torch.Size([1, 3, 8])
    """


class QuantConvTranspose2d(_TransposedLayer, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with quantized weight and, on request, bias, input and output; input (N, C, H, W).

    Positional arguments are torch's; for the keyword-only ones see `WeightLayer`.

    Raises:
        QuantizerError: a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> import torch
        >>> QuantConvTranspose2d(6, 3, 2, stride=2)(torch.ones(1, 6, 4, 4)).shape
        torch.Size([1, 3, 8, 8])
    """


class QuantConvTranspose3d(_TransposedLayer, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with quantized weight and, on request, bias, input and output; input (N, C, D, H, W).

    Positional arguments are torch's; for the keyword-only ones see `WeightLayer`.

    Raises:
        QuantizerError: a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> import torch
        >>> QuantConvTranspose3d(6, 3, 2, stride=2)(torch.ones(1, 6, 4, 4, 4)).shape
        torch.Size([1, 3, 8, 8, 8])
    """
