"""Quantized batch norms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.types import Device

from ...qcore import QuantizerError, path_of
from ...quantizers import Int8WeightPerTensor
from ..slots import Described, QuantizerLike, Slot, checked_flag
from .scale_bias import ChannelLayer, scale_and_bias

__all__ = ["QuantBatchNorm1d", "QuantBatchNorm2d", "QuantBatchNorm3d"]


class _BatchNormLayer(ChannelLayer):
    """What batch norms of every dimension share; torch's class is the second base of each.

    What is quantized are the factor and the offset of each channel, ``w = g / sqrt(v + eps)`` and ``b = beta - m * w``:
    with the running statistics in evaluation, with those of the batch in training. They exist without parameters
    (``affine=False``), too.
    """

    quantizes_parameters = False

    num_features: int
    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    _check_input_dim: Callable[[Tensor], None]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
        flags = (checked_flag(self, "affine", affine), checked_flag(self, "track_running_stats", track_running_stats))
        super().__init__(num_features, eps, momentum, *flags, device, dtype, **without)
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    # What there is to quantize

    def _lacks(self, slot: str) -> bool:
        return False

    def _shape_of(self, slot: str) -> tuple[int, ...]:
        return (self.num_features,)

    def _provided(self, slot: Slot) -> Mapping[str, object]:
        like = self.running_var if self.weight is None else self.weight
        where = {"device": None if like is None else like.device, "dtype": None if like is None else like.dtype}
        if slot.parameter is None:
            return where
        return {**where, "channel_axis": 0, "channels": self.num_features, "shape": (self.num_features,)}

    def _check_slots(self) -> None:
        super()._check_slots()
        for quant in (self.weight_quant, self.bias_quant):
            if quant is not None and self.running_var is None:  # its factors are those of each batch, not of a file
                vars(quant)["of_parameter"] = False

    def tensor_of(self, slot: str) -> Tensor:
        """The factor or the offset of each channel, with the running statistics."""
        mean, var = self.running_mean, self.running_var
        if mean is None or var is None:
            raise QuantizerError(
                f"{Described(self)}: its factors and offsets are those of each batch, as track_running_stats=False "
                "keeps no statistics. Write track_running_stats=True."
            )
        return self._factors(mean, var)[0 if slot == "weight" else 1]

    def _factors(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Factor and offset of each channel, in float32 or wider."""
        weight, bias = (None if each is None else each.to(_wide(each)) for each in (self.weight, self.bias))
        return scale_and_bias(mean.to(_wide(mean)), var.to(_wide(var)), self.eps, weight, bias)

    # Forward

    def forward(self, input: Tensor, *extra: object) -> Tensor:  # noqa: A002 - torch's name for it
        """The normalized input; a `QuantTensor` with ``return_quant_tensor=True``."""
        self._check_input_dim(input)
        self._check_channels(input, self.num_features)
        values, inputs = self._take_input(input)
        if inputs is None:
            self._check_needs_no_grid(input)
        if self.weight_quant is None and self.bias_quant is None:
            out = _BatchNorm.forward(self, values)  # type: ignore[arg-type]
            return self._leave(out, inputs, None, None, None)
        mean, var = self.running_mean, self.running_var
        if self.training or mean is None or var is None:
            mean, var = self._statistics(values)
        # Nothing is kept in a frozen model: there are few numbers, and they follow from what is no parameter.
        weight, bias = self._factors(mean, var)
        weights = biases = None
        if self.weight_quant is not None:
            told = self._weight_context(self.weight_quant, inputs, bias)
            weight, weights = self.weight_quant.quantize(weight, *told)
        if self.bias_quant is not None:
            told = self._per_output(inputs, weights) if self.bias_quant.follows_input else ()
            bias, biases = self.bias_quant.quantize(bias, *told)
        return self._leave(self._compute(values, weight, bias), inputs, weights, bias, biases)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of a batch; in training the running ones move towards them, as torch's do."""
        count = x.numel() // max(self.num_features, 1)
        if count == 1:
            raise QuantizerError(
                f"{path_of(self)}: a batch norm in training needs more than one value for each channel, and the input "
                f"has the shape {tuple(x.shape)}."
            )
        if count == 0:
            return x.new_zeros(self.num_features), x.new_ones(self.num_features)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = torch.var_mean(x.to(_wide(x)), dims, correction=0)
        if self.training and self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            with torch.no_grad():
                share = self._share()
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
                self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), share)
        return mean, var

    def _share(self) -> Tensor:
        """What a batch adds to the running statistics: the momentum, or an equal share for each batch so far."""
        assert self.running_mean is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                return self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        return self.running_mean.new_tensor(self.momentum or 0.0)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for slot in ("weight", "bias"):
            quant = getattr(self, f"{slot}_quant")
            held = any(key.startswith(f"{prefix}{slot}_quant.") for key in state_dict)
            if quant is not None and not held and f"{prefix}running_var" in state_dict:
                quant.rederive()  # a float checkpoint: factors follow from the statistics, without parameters too


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class QuantBatchNorm1d(_BatchNormLayer, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with a quantized factor and, optionally, offset, input and output; input (N, C, L).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones. ``weight_quant`` and ``bias_quant``
    are for what a batch norm multiplies each channel by and adds: ``g / sqrt(v + eps)`` and ``beta - m * w``, with the
    running statistics in evaluation, with the batch's in training. `QuantScaleBias` is the same without statistics.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantBatchNorm1d(2, weight_bit_width=4).eval()(torch.ones(1, 2)).shape
        torch.Size([1, 2])
    """


class QuantBatchNorm2d(_BatchNormLayer, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with a quantized factor and, optionally, offset, input and output; input (N, C, H, W).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones. ``weight_quant`` and ``bias_quant``
    are for what a batch norm multiplies each channel by and adds: ``g / sqrt(v + eps)`` and ``beta - m * w``, with the
    running statistics in evaluation, with the batch's in training. `QuantScaleBias` is the same without statistics.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantBatchNorm2d(2, weight_bit_width=4).eval()(torch.ones(1, 2, 3, 3)).shape
        torch.Size([1, 2, 3, 3])
    """


class QuantBatchNorm3d(_BatchNormLayer, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` with a quantized factor and, optionally, offset, input and output; input (N, C, D, H, W).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones. ``weight_quant`` and ``bias_quant``
    are for what a batch norm multiplies each channel by and adds: ``g / sqrt(v + eps)`` and ``beta - m * w``, with the
    running statistics in evaluation, with the batch's in training. `QuantScaleBias` is the same without statistics.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> import torch
        >>> QuantBatchNorm3d(2, weight_bit_width=4).eval()(torch.ones(1, 2, 3, 3, 3)).shape
        torch.Size([1, 2, 3, 3, 3])
    """
