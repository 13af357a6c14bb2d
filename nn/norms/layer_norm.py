"""Quantized norms over the features of a sample: all of them, or group by group."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ...quantizers import Int8WeightPerTensor
from ..slots import QuantizerLike, Slot, checked_flag
from .norm import NormLayer

__all__ = ["QuantGroupNorm", "QuantLayerNorm", "QuantRMSNorm"]


class QuantLayerNorm(NormLayer, nn.LayerNorm):
    """`torch.nn.LayerNorm` with a quantized weight and, optionally, bias, input and output; input (N, *).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones. Mean and variance are computed in
    floats, so that a bias has a scale of its own, and ``return_quant_tensor=True`` needs ``output_quant``.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> norm = QuantLayerNorm(4, weight_bit_width=4)
        >>> norm(torch.tensor([[1.0, 2.0, 3.0, 6.0]])).mean().abs() < 1e-6
        tensor(True)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
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
        affine = checked_flag(self, "elementwise_affine", elementwise_affine)
        nn.LayerNorm.__init__(self, normalized_shape, eps, affine, checked_flag(self, "bias", bias), device, dtype)  # type: ignore[arg-type]
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)

    def _remedy(self, slot: str) -> str:
        return "bias=True" if slot == "bias" and self.elementwise_affine else "elementwise_affine=True"


class QuantRMSNorm(NormLayer, nn.RMSNorm):
    """`torch.nn.RMSNorm` with a quantized weight and, optionally, input and output; input (N, *).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones; there is no bias. The mean square
    is computed in floats, so that ``return_quant_tensor=True`` needs ``output_quant``.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> QuantRMSNorm(2, weight_bit_width=4)(torch.tensor([[3.0, -3.0]])).tolist()
        [[1.0, -1.0]]
    """

    slots: tuple[Slot, ...] = tuple(slot for slot in NormLayer.slots if slot.name != "bias")
    bias = None
    bias_quant = None

    def __init__(
        self,
        normalized_shape: int | Sequence[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        affine = checked_flag(self, "elementwise_affine", elementwise_affine)
        nn.RMSNorm.__init__(self, normalized_shape, eps, affine, device, dtype)  # type: ignore[arg-type]
        self._attach(weight_quant, None, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def forward(self, x: Tensor, *extra: object) -> Tensor:  # type: ignore[override]
        """The normalized input; a `QuantTensor` with ``return_quant_tensor=True``."""
        return super().forward(x, *extra)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)

    def _remedy(self, slot: str) -> str:
        return "elementwise_affine=True"


class QuantGroupNorm(NormLayer, nn.GroupNorm):
    """`torch.nn.GroupNorm` with a quantized weight and, optionally, bias, input and output; input (N, C, *).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones. Mean and variance are computed in
    floats, so that a bias has a scale of its own, and ``return_quant_tensor=True`` needs ``output_quant``.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> QuantGroupNorm(2, 4, weight_bit_width=4)(torch.ones(1, 4, 2))[0].abs().max().item()
        0.0
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        without: dict[str, Any] = {} if checked_flag(self, "bias", bias) else {"bias": False}  # young in torch
        affine = checked_flag(self, "affine", affine)
        nn.GroupNorm.__init__(self, num_groups, num_channels, eps, affine, device, dtype, **without)
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)

    def _remedy(self, slot: str) -> str:
        return "bias=True" if slot == "bias" and self.affine else "affine=True"
