"""The integers of a model as objects: weights, biases and grids, layer by layer."""

from collections.abc import ItemsView, Iterator
from dataclasses import dataclass, field

from ...qcore.aliases import Keywords
from ..capture.grid import IntegerGrid, QuantizedTensor
from .float_modules import FloatModule

__all__ = ["LayerIntegers", "LayerProduct", "LayerTable"]


@dataclass(frozen=True)
class LayerProduct:
    """A parameter that a layer multiplies integers with, and sums.

    Attributes:
        weight: the slot of the parameter.
        bias: the slot of the bias that comes with it, or None.
        input: the grid of the integers.

    Example:
        >>> import torch
        >>> grid = IntegerGrid("input_quant", torch.tensor(0.5), torch.tensor(0), 8, True)
        >>> LayerProduct("weight_ih_l0", None, grid).weight
        'weight_ih_l0'
    """

    weight: str
    bias: str | None
    input: IntegerGrid


@dataclass(frozen=True)
class LayerIntegers:
    """One layer: what each of its quantizers does, and the grids of its input and output.

    Attributes:
        name: path of the layer; a later call of the same layer adds its number.
        kind: class of the layer.
        quantizers: by slot: ``weight``, ``bias``, ``input``, ``output``, ``act``; of layers with several weights by
            those of each, such as ``weight_ih_l0``. A quantizer that is called more often adds the number of the call.
        input: the grid of the integers that it computes with, or None where those are floats.
        output: the grid of its result: its quantizer's, or the sums' (input scale times weight scale); None for floats.
        settings: of convolutions: ``stride``, ``padding``, ``dilation``, ``groups``, as numbers.
        products: the weights that integers are multiplied with, and those integers' grids.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.export import integers
        >>> from bitwright.quantizers import Int8Act, Int32Bias
        >>> layer = qnn.QuantLinear(8, 4, weight_bit_width=4, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.5))
        >>> fc = integers(torch.nn.Sequential(layer), torch.randn(2, 8))["0"]
        >>> fc.weight.codes.shape, fc.bias.codes.dtype, fc.input.bit_width
        (torch.Size([4, 8]), torch.int32, 8)
    """

    name: str
    kind: str
    quantizers: dict[str, QuantizedTensor]
    input: IntegerGrid | None = None
    output: IntegerGrid | None = None
    settings: Keywords = field(default_factory=dict)
    products: tuple[LayerProduct, ...] = ()

    @property
    def weight(self) -> QuantizedTensor | None:
        """The integers of the weight, or None."""
        return self.quantizers.get("weight")

    @property
    def bias(self) -> QuantizedTensor | None:
        """The integers of the bias, or None where it is float or absent."""
        return self.quantizers.get("bias")

    @property
    def parameters(self) -> dict[str, QuantizedTensor]:
        """The integers of every weight and bias, by slot."""
        return {slot: each for slot, each in self.quantizers.items() if each.codes is not None}

    def __str__(self) -> str:
        parts = [f"{slot} {each}" for slot, each in self.quantizers.items()]
        return f"{self.name} ({self.kind}): {'; '.join(parts)}"


@dataclass(frozen=True)
class LayerTable:
    """The layers of a model by path, in order of execution: `Integers` without what can be done with them.

    Attributes:
        layers: by path.
        floats: what the model computes in floats, module by module.
    """

    layers: dict[str, LayerIntegers]
    floats: tuple[FloatModule, ...] = ()

    def __getitem__(self, path: str) -> LayerIntegers:
        try:
            return self.layers[path]
        except KeyError:
            known = ", ".join(self.layers)
            raise KeyError(f"there is no quantized layer {path!r} in this model. It has {known}.") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def items(self) -> ItemsView[str, LayerIntegers]:
        """Paths and layers."""
        return self.layers.items()

    def quantized(self) -> dict[str, QuantizedTensor]:
        """Every quantizer's part, by the name of its grid."""
        return {each.grid.name: each for layer in self.layers.values() for each in layer.quantizers.values()}

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self.layers.values())
