"""The biases of layers while a pass changes them: kept, or put back as they were."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...nn.weight_layer import WeightLayer
from ...qcore import values_of

__all__ = ["Biases"]

_MARK = "_float_bias"  # on a layer: its bias before it was first corrected, and the one that it was left with


class Biases:
    """The biases of some layers by path; layers without one have zeros in the block of `changing`.

    Args:
        layers: by path.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(2, 1)
        >>> biases, former = Biases({"fc": layer}), layer.bias.item()
        >>> with biases.changing():
        ...     shift = biases.add("fc", torch.ones(1))
        ...     biases.keep(["fc"])
        >>> round(layer.bias.item() - former, 6), shift
        (1.0, tensor([1.], dtype=torch.float64))
        >>> with biases.as_floats():
        ...     print(layer.bias.item() == former)
        True
    """

    def __init__(self, layers: Mapping[str, WeightLayer]) -> None:
        self.layers = layers
        self._start: dict[str, Tensor | None] = {}

    @contextmanager
    def changing(self) -> Iterator[None]:
        """For the length of the block every layer has a bias; at its end those that were not kept are as before."""
        self._start = {
            path: None if layer.bias is None else layer.bias.detach().clone() for path, layer in self.layers.items()
        }
        for path, layer in self.layers.items():
            if self._start[path] is None:
                zeros = layer.weight.new_zeros(channels_of(layer))
                layer.bias = nn.Parameter(zeros, layer.weight.requires_grad)
        try:
            yield
        finally:
            self.reset(self._start)
            for path, start in self._start.items():
                if start is None:
                    self.layers[path].bias = None
            self._start = {}

    @torch.no_grad()
    def reset(self, paths: Collection[str]) -> None:
        """Put back what biases were at the start of the block."""
        for path in paths:
            start = self._start[path]
            self[path].zero_() if start is None else self[path].copy_(start)

    @torch.no_grad()
    def add(self, path: str, shift: Tensor) -> Tensor:
        """Move the outputs of a layer; returns by how much they do, which is less exact where the bias is quantized."""
        before = self._effective(path)
        self[path].copy_(before + shift)
        return self._effective(path) - before

    def keep(self, paths: Collection[str]) -> None:
        """Leave these biases as they are, and remember what they were."""
        for path in paths:
            layer, start = self.layers[path], self._start.pop(path)
            before = torch.zeros_like(self[path]) if start is None else start
            known = _remembered(layer, before)
            vars(layer)[_MARK] = (before if known is None else known), self[path].detach().clone()

    @contextmanager
    def as_floats(self) -> Iterator[None]:
        """For the length of the block biases are those of the float model: as before they were first corrected."""
        now = {path: self[path].detach().clone() for path, layer in self.layers.items() if layer.bias is not None}
        floats = {path: _remembered(self.layers[path], bias) for path, bias in now.items()}
        with torch.no_grad():
            try:
                for path, bias in floats.items():
                    if bias is not None:
                        self[path].copy_(bias)
                yield
            finally:
                for path, bias in now.items():
                    if floats[path] is not None:
                        self[path].copy_(bias)

    def __getitem__(self, path: str) -> Tensor:
        """A bias."""
        bias = self.layers[path].bias
        assert bias is not None
        return bias

    def _effective(self, path: str) -> Tensor:
        """What the layer adds to its sums: the quantized bias."""
        bias = self.layers[path].quant_bias()
        assert bias is not None
        return values_of(bias).detach().to(torch.float64, copy=True)


def channels_of(layer: WeightLayer) -> int:
    """How many outputs a linear layer or convolution has."""
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _remembered(layer: WeightLayer, bias: Tensor) -> Tensor | None:
    """What a bias was before it was corrected; None if it wasn't, or has changed since."""
    former, left = vars(layer).get(_MARK, (None, None))
    if former is None or left.shape != bias.shape or not torch.equal(left.to(bias), bias):
        return None
    return former.to(bias)
