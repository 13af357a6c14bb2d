"""Binary quantization, which Brevitas' networks of one bit use and this library leaves to a class of one's own."""

import torch
from torch import Tensor

from bitwright.qcore import Grid, Integers, Quantizer, TensorQuant


class Signs(TensorQuant):
    """Signs times a constant: 1 from 0 on, -1 below. Gradients pass where the value is not clipped."""

    def __init__(self, magnitude: float, clips: bool) -> None:
        super().__init__()
        self.magnitude = magnitude
        self.clips = clips

    def _quantize(self, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
        scale = torch.full((), self.magnitude, dtype=x.dtype, device=x.device)
        through = x.clamp(-self.magnitude, self.magnitude) if self.clips else x
        signs = torch.where(x >= 0, scale, -scale)
        return through + (signs - through).detach(), Grid(scale, number_format=Integers(2, narrow_range=True))

    def scheme(self) -> str:
        """What the numbers mean."""
        return f"signs times {self.magnitude:g}"


class BinaryWeight(Quantizer):
    """Weights of one bit: -1 and 1."""

    quantizes = "weight"
    tensor_quant = Signs
    magnitude = 1.0
    clips = False


class BinaryAct(Quantizer):
    """Activations of one bit: -1 and 1."""

    quantizes = "activation"
    tensor_quant = Signs
    magnitude = 1.0
    clips = True
