"""A factor and an offset for each channel: what a batch norm is in evaluation."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ...qcore import Grid, QuantizerError, path_of
from ...qcore.granularity import PerAxis, PerTensor
from ...quantizers import Int8WeightPerTensor
from ..slots import QuantizerLike, checked_flag
from ..weight_layer import WeightLayer

__all__ = ["ChannelLayer", "QuantScaleBias", "scale_and_bias"]


def scale_and_bias(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The factor and the offset that normalization by known statistics is: ``w = g / sqrt(v + eps)``, ``b - m * w``.

    Args:
        mean: for each channel.
        var: likewise.
        eps: added to the variance.
        weight: of the norm, or None for 1.
        bias: of the norm, or None for 0.

    Example:
        >>> scale_and_bias(torch.tensor([2.0]), torch.tensor([0.25]), 0.0, torch.tensor([3.0]), torch.tensor([1.0]))
        (tensor([6.]), tensor([-11.]))
    """
    factor = (var + eps).rsqrt()
    factor = factor if weight is None else weight * factor
    offset = -mean * factor
    return factor, offset if bias is None else bias + offset


class ChannelLayer(WeightLayer):
    """What layers share that multiply each channel by a number and add one."""

    dim: int = 1  # the dimension of the input that counts the channels

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        shape = [-1 if dim == self._output_axis(x.ndim) else 1 for dim in range(x.ndim)]
        out = x.to(wide) * weight.to(wide).reshape(shape)
        return (out if bias is None else out + bias.to(wide).reshape(shape)).to(x.dtype)

    def _output_axis(self, ndim: int) -> int:
        return self.dim % ndim

    def _fan_in(self) -> int:
        return 1

    def _per_output(self, inputs: Grid | None, weights: Grid | None) -> tuple[Grid | None, Grid | None]:
        """An output reads one channel: a scale for each of the input's becomes the weight's."""
        if inputs is None or weights is None or inputs.axis is None:
            return inputs, weights
        if inputs.axis % inputs.scale.ndim != self._output_axis(inputs.scale.ndim):
            return inputs, weights
        products = weights.replace(scale=inputs.scale.reshape(-1) * weights.scale.reshape(-1), granularity=PerAxis(0))
        return inputs.replace(scale=inputs.scale.new_ones(()), granularity=PerTensor()), products

    def _check_channels(self, x: Tensor, channels: int) -> None:
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] != channels:
            raise QuantizerError(
                f"{path_of(self)}: the input has the shape {tuple(x.shape)}, and dimension {self.dim} should count "
                f"{channels} channels."
            )


class QuantScaleBias(ChannelLayer):
    """``x * weight + bias`` with a number of each for every channel: what a batch norm is once it is trained.

    It loads the state dict of a BatchNorm strictly, and becomes what that is in evaluation: ``w = g / sqrt(v + eps)``
    and ``b = beta - m * w``. With a quantized input the products lie on a grid, so that ``bias_quant=Int32Bias`` and
    ``return_quant_tensor=True`` work as in a depthwise convolution. Brevitas: ``QuantScaleBias``,
    ``BatchNorm2dToQuantScaleBias``.

    Args:
        num_features: how many channels.
        bias: whether there is an offset.
        device: of the parameters.
        dtype: of the parameters.
        eps: that of the BatchNorm whose state dict is loaded.
        dim: the dimension of the input that counts the channels.
        weight_quant, bias_quant, input_quant, output_quant, return_quant_tensor, **overrides: see `WeightLayer`.

    Raises:
        QuantizerError: an unused or impossible setting; in forward, an input with another number of channels.

    Example:
        >>> layer = QuantScaleBias(2)
        >>> _ = layer.load_state_dict(torch.nn.BatchNorm2d(2, affine=False).state_dict())
        >>> layer(torch.ones(1, 2, 1, 1)).flatten()
        tensor([1.0000, 1.0000], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self,
        num_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
        dim: int = 1,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.dim = num_features, eps, dim
        has_bias = checked_flag(self, "bias", bias)
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        zeros = torch.zeros(num_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(zeros) if has_bias else None)
        self._attach(weight_quant, bias_quant, input_quant, output_quant, grad_quant, return_quant_tensor, overrides)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, **options: Any) -> Self:
        """The layer that a BatchNorm with running statistics is in evaluation; keyword arguments as in the constructor.

        Raises:
            QuantizerError: the BatchNorm keeps no running statistics.

        Example:
            >>> norm = torch.nn.BatchNorm1d(2, eps=0.0)
            >>> norm.running_var.fill_(0.25), QuantScaleBias.from_batch_norm(norm).weight
            (tensor([0.2500, 0.2500]), Parameter containing:
            tensor([2., 2.], requires_grad=True))
        """
        if norm.running_var is None:
            raise QuantizerError(
                f"{cls.__name__}.from_batch_norm: {norm} keeps no running statistics, so that its factors are those of "
                f"each batch. Write nn.{type(norm).__name__}(..., track_running_stats=True)."
            )
        made = cls(norm.num_features, True, norm.running_var.device, norm.running_var.dtype, eps=norm.eps, **options)
        made.load_state_dict({key: each for key, each in norm.state_dict().items() if "_quant." not in key})
        return made.train(norm.training)

    def forward(self, input: Tensor, *extra: object) -> Tensor:  # noqa: A002 - torch's name for it
        """The scaled input, of its shape; a `QuantTensor` with ``return_quant_tensor=True``."""
        self._check_channels(input, self.num_features)
        return super().forward(input, *extra)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        _convert_batch_norm(state_dict, prefix, self.eps)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    def _title(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        dim = "" if self.dim == 1 else f", dim={self.dim}"
        return f"{self.num_features}, bias={self.bias is not None}{dim}{super().extra_repr()}"


def _convert_batch_norm(state_dict: dict[str, Tensor], prefix: str, eps: float) -> None:
    """Put factor and offset in the place of a BatchNorm's parameters and statistics."""
    statistics = [state_dict.pop(f"{prefix}running_{name}", None) for name in ("mean", "var")]
    mean, var = statistics
    if mean is None or var is None:
        for name, each in zip(("mean", "var"), statistics, strict=True):
            if each is not None:
                state_dict[f"{prefix}running_{name}"] = each
        return
    state_dict.pop(f"{prefix}num_batches_tracked", None)
    weight, bias = (state_dict.get(f"{prefix}{name}") for name in ("weight", "bias"))
    wide = [None if each is None else each.double() for each in (mean, var, weight, bias)]
    assert wide[0] is not None
    assert wide[1] is not None
    for name, each in zip(("weight", "bias"), scale_and_bias(wide[0], wide[1], eps, wide[2], wide[3]), strict=True):
        state_dict[f"{prefix}{name}"] = each.to(mean.dtype)
