"""How far the outputs of a quantized model are from those of the float one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["SignalToNoise"]


class SignalToNoise:
    """The power of a signal and of what quantization adds to it, over any number of batches, in float64.

    Example:
        >>> ratio = SignalToNoise()
        >>> ratio.add([torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 0.9])])
        >>> ratio.add([torch.tensor([7.0, 7.0])], [torch.tensor([7.0, 7.0])])
        >>> round(ratio.decibels, 2)
        40.0
    """

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0

    def add(self, floats: Sequence[Tensor], quantized: Sequence[Tensor]) -> None:
        """Count tensors of the float model in, and those of the quantized one in their place."""
        for wanted, found in zip(floats, quantized, strict=True):
            self.signal += float(wanted.square().sum(dtype=torch.float64))
            self.noise += float((wanted - found).square_().sum(dtype=torch.float64))

    @property
    def decibels(self) -> float:
        """The signal-to-quantization-noise ratio; infinite where nothing was added, NaN where there was no signal."""
        if self.noise == 0:
            return math.inf if self.signal else math.nan
        return 10 * math.log10(self.signal / self.noise) if self.signal and math.isfinite(self.noise) else -math.inf
