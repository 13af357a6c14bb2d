"""Whether a layer's weight may be scaled: nobody else reads it, and the layer's result scales with it."""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..recording.nodes import Graph, Node
from .weights import WeightedLayer, channels_of, scale_channels

__all__ = ["Ownership", "channel_axis"]

FORWARDS = {
    nn.Linear.forward,
    *(getattr(nn, f"Conv{kind}{n}d").forward for kind in ("", "Transpose") for n in (1, 2, 3)),
}
COMPUTED = {getattr(nn, f"Conv{n}d")._conv_forward for n in (1, 2, 3)}


class Ownership:
    """Who owns which weight, in a recorded model.

    Args:
        graph: the recording.
        model: the model.

    Example:
        >>> from bitwright.graph.recording.recorder import record
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model[1].weight = model[0].weight
        >>> Ownership(record(model, torch.ones(1, 2)), model).why_not("0")
        'shares its weight with 1'
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(model.named_modules())
        self.reads = Counter(path for node in graph.nodes if node.module is None for path in node.parameters)
        self.holders: dict[int, list[str]] = {}  # of each parameter, the paths of the modules that have it
        for path, module in self.modules.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.holders.setdefault(id(parameter), []).append(path)

    def why_not(self, path: str) -> str | None:
        """Why the weight and bias of a convolution or linear layer can't be scaled, or None if they can.

        The sentence goes on from the layer's name.
        """
        layer = self.modules[path]
        assert isinstance(layer, (nn.Linear, _ConvNd))
        for name in ("weight", "bias"):
            parameter = layer._parameters.get(name)
            if parameter is None:
                if name == "weight" or name not in layer._parameters:
                    return f"has its {name} computed, by a parametrization or a hook"
                continue
            others = [other for other in self.holders[id(parameter)] if other != path]
            if others:
                return f"shares its {name} with {others[0] or 'the model itself'}"
            prefix = f"{path}." if path else ""
            if self.reads[f"{prefix}{name}"]:
                return f"has its {name} read by a function, too"
        if type(layer).forward in FORWARDS and (conv_forward(layer) is None or conv_forward(layer) in COMPUTED):
            return None
        if self._scales(path, layer):
            return None
        return f"is a {type(layer).__name__}, whose own forward does not scale with its weight"

    def owns(self, path: str) -> bool:
        """Whether nobody but a module reads its parameters."""
        parameters = {name: each for name, each in self.modules[path]._parameters.items() if each is not None}
        alone = all(len(self.holders[id(each)]) == 1 for each in parameters.values())
        return alone and not any(self.reads[f"{path}.{name}"] for name in parameters)

    def is_gain(self, node: Node, parameter: nn.Parameter) -> bool:
        """Whether a product with a parameter is the last step of a norm written by hand, and scales with it."""
        path = node.parameters[0]
        owner = self.modules.get(path.rpartition(".")[0])
        if owner is None or len(self.holders[id(parameter)]) != 1 or self.reads[path] != 1:
            return False
        if parameter.shape != node.shape[-1:] or parameter.numel() == 1:
            return False
        return _gains(owner, path.rpartition(".")[2], node.shape)

    def _scales(self, path: str, layer: WeightedLayer) -> bool:
        """Whether a layer with a forward of its own scales with its weight, tried on random numbers."""
        for call in self.graph.calls(path):
            source = call.inputs[0] if call.inputs else None
            if source is None or source[1] != 0 or not source[0].shape:
                return False
            if not _scales_on(layer, source[0].shape):
                return False
        return True


def conv_forward(layer: nn.Module) -> object:
    """The method that torch's convolutions compute with."""
    return getattr(type(layer), "_conv_forward", None)


def channel_axis(layer: nn.Module, ndim: int) -> int:
    """The dimension of a layer's input and output, of so many dimensions, that runs over channels.

    Example:
        >>> channel_axis(nn.Conv2d(1, 1, 1), 4), channel_axis(nn.Conv2d(1, 1, 1), 3), channel_axis(nn.Linear(1, 1), 3)
        (1, 0, 2)
    """
    weight: Any = layer.weight
    return ndim - 1 if isinstance(layer, nn.Linear) else ndim - (weight.ndim - 1)


@torch.no_grad()
def _scales_on(layer: WeightedLayer, shape: tuple[int, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    plain = copy.deepcopy(layer).to("cpu", torch.float64).eval()
    scaled = copy.deepcopy(plain)
    outputs = torch.rand(channels_of(layer, "outputs"), generator=generator, dtype=torch.float64) + 0.5
    inputs = torch.rand(channels_of(layer, "inputs"), generator=generator, dtype=torch.float64) + 0.5
    scale_channels(scaled, outputs, inputs)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    try:
        expected = plain(x)
        got = scaled(x / _along(inputs, channel_axis(layer, x.ndim), x.ndim))
        expected = expected * _along(outputs, channel_axis(layer, expected.ndim), expected.ndim)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return bool(torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())))


@torch.no_grad()
def _gains(owner: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether twice the parameter is twice the result, tried on random numbers."""
    generator = torch.Generator().manual_seed(0)
    plain = copy.deepcopy(owner).to("cpu", torch.float64).eval()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    try:
        expected = 2 * plain(x)
        plain.get_parameter(name).mul_(2)
        return bool(torch.allclose(plain(x), expected, rtol=1e-5, atol=1e-5))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False


def _along(numbers: Tensor, axis: int, ndim: int) -> Tensor:
    return numbers.reshape([-1 if each == axis else 1 for each in range(ndim)])
