"""Factories for the layers of a benchmarked network, so that every library builds the same network."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["CALIBRATING", "Layers", "Scheme"]

CALIBRATING = 10**9  # calibration_steps of a quantizer that never stops calibrating


@dataclass(frozen=True)
class Scheme:
    """What is quantized. Weights: one scale a tensor, from the largest magnitude. Activations: one scale a tensor."""

    weight_bits: int = 8
    act_bits: int | None = None  # None: activations stay float
    int_bias: bool = False  # biases at the scale of the products, and QuantTensors between layers
    calibration_steps: int = 1  # training steps that calibrate; after them the scale is learned


class Layers:
    """Makes the layers of a network: torch's float layers here, a library's layers in a subclass."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    def identity(self) -> nn.Module:
        """Quantizes its input to signed integers; does nothing without ``act_bits``."""
        return nn.Identity()

    def relu(self) -> nn.Module:
        """A ReLU with a quantized output."""
        return nn.ReLU()

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        input_quant: bool = False,
    ) -> nn.Module:
        """A convolution; with ``input_quant`` it quantizes its input, too."""
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)

    def linear(self, in_features: int, out_features: int, *, input_quant: bool = False) -> nn.Module:
        """A linear layer with bias; with ``input_quant`` it quantizes its input, too."""
        return nn.Linear(in_features, out_features)

    def grouped_linear(self, in_features: int, out_features: int, *, detached: bool) -> nn.Module:
        """A linear layer whose weight has a scale for each group of 32; ``detached``: no gradient through it."""
        raise NotImplementedError

    def microscaled_linear(self, in_features: int, out_features: int, *, detached: bool) -> nn.Module:
        """A linear layer whose weight is MXFP4; ``detached``: no gradient through its scales."""
        raise NotImplementedError

    def float8_identity(self) -> nn.Module:
        """A quantizer of activations to FP8 E4M3, one learned scale."""
        raise NotImplementedError

    def quant_weight(self, layer: nn.Module) -> Tensor:
        """The quantized weight of a layer made by `linear`."""
        raise NotImplementedError

    def frozen(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A block in which evaluation keeps what doesn't depend on the input."""
        return nullcontext(model)

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model, switched to evaluation."""
        return model.eval()
