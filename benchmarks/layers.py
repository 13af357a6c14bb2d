"""What the layers of a benchmarked network are made by, so that every library builds the same network."""

from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["CALIBRATING", "Layers", "Scheme"]

CALIBRATING = 10**9  # calibration_steps of a quantizer that never stops collecting statistics


@dataclass(frozen=True)
class Scheme:
    """What is quantized. Weights: one scale a tensor, from the largest magnitude. Activations: one scale a tensor."""

    weight_bits: int = 8
    act_bits: int | None = None  # None: activations stay float
    int_bias: bool = False  # biases on the scale of the products, and QuantTensors between layers
    calibration_steps: int = 1  # training steps that collect statistics; the scale is learned from then on


class Layers:
    """Makes the layers of a network: these are torch's own, in float; a subclass makes those of a library."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    def identity(self) -> nn.Module:
        """Quantizes what passes, signed; nothing without ``act_bits``."""
        return nn.Identity()

    def relu(self) -> nn.Module:
        """A ReLU with a quantized result."""
        return nn.ReLU()

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        input_quant: bool = False,
    ) -> nn.Module:
        """A convolution; with ``input_quant`` it quantizes its input, too."""
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    def linear(self, in_features: int, out_features: int, *, input_quant: bool = False) -> nn.Module:
        """A linear layer with bias; with ``input_quant`` it quantizes its input, too."""
        return nn.Linear(in_features, out_features)

    def quant_weight(self, layer: nn.Module) -> Tensor:
        """The quantized weight of a layer made by `linear`."""
        raise NotImplementedError

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The model, switched to evaluation."""
        return model.eval()
