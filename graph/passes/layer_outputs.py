"""What layers compute from batches: the means of their output channels, before these are quantized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ...nn.contexts.freezing import frozen
from ...nn.contexts.intercepting import intercepted
from ...qcore import Grid, TensorQuant, values_of
from ...qcore.tensor_quant import Intercept
from .channel_means import ChannelMeans
from .evaluation import Call, numbers_in, observed
from .signal import SignalToNoise

__all__ = ["Run", "channel_axis", "computed"]


class Run:
    """One pass of batches through a model.

    Args:
        model: in evaluation.
        layers: those whose outputs are looked at, by path.
        calls: the batches.
        magnitudes: whether the magnitudes of outputs are asked for, too.

    Attributes:
        means: of the output channels of the layers.
        most_calls: how often each layer was called in one forward, at most.
        outputs: of the model, for each batch.

    Example:
        >>> import torch
        >>> run = Run(nn.Sequential(nn.Linear(2, 1), nn.ReLU()).requires_grad_(False), {}, [((torch.ones(3, 2),), {})])
        >>> run.outputs[0][0].shape
        torch.Size([3, 1])
    """

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], calls: Sequence[Call], magnitudes: bool = False
    ) -> None:
        self.means = ChannelMeans(magnitudes)
        self.most_calls: dict[str, int] = {}
        self.outputs: list[list[Tensor]] = []
        counts: dict[str, int] = {}
        with computed(layers) as of:

            def see(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                counts[path] = counts.get(path, 0) + 1
                self.most_calls[path] = max(self.most_calls.get(path, 0), counts[path])
                values = of(layer, out)
                self.means.add(path, values, channel_axis(layer, values))

            with observed(layers, see), frozen(model):
                for args, kwargs in calls:
                    counts.clear()
                    self.outputs.append(numbers_in(model(*args, **kwargs)))

    def beside(self, floats: "Run") -> SignalToNoise:
        """How far the model's outputs are from those of the float model for the same batches."""
        ratio = SignalToNoise()
        for wanted, found in zip(floats.outputs, self.outputs, strict=True):
            ratio.add(wanted, found)
        return ratio


def channel_axis(layer: nn.Module, out: Tensor) -> int:
    """The dimension of a layer's output that counts its channels, with or without a batch."""
    weight: Any = layer.weight
    return -1 if isinstance(layer, nn.Linear) else out.ndim - weight.ndim + 1


@contextmanager
def computed(layers: Mapping[str, nn.Module]) -> Iterator[Callable[[nn.Module, Any], Tensor]]:
    """Gives a function from a layer and its last output to what it was before ``output_quant`` quantized it.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Uint8Act
        >>> layer = qnn.QuantLinear(1, 1, output_quant=Uint8Act, output_max_value=1.0).requires_grad_(False)
        >>> with computed({"fc": layer}) as of:
        ...     out = layer(torch.tensor([[9.0], [-9.0]]))
        ...     before = of(layer, out)
        >>> out.amin() >= 0, before.amin() < 0
        (tensor(True), tensor(True))
    """
    found = {path: getattr(layer, "output_quant", None) for path, layer in layers.items()}
    quantizers: dict[str, TensorQuant] = {path: each for path, each in found.items() if each is not None}
    last: dict[TensorQuant, Tensor] = {}

    def intercept(path: str) -> Intercept:
        before = quantizers[path].__dict__.get("intercept")

        def keep(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            last[quant] = x
            return quant._quantize(x, *context) if before is None else before(quant, x, *context)

        return keep

    def of(layer: nn.Module, out: Any) -> Tensor:
        quant = getattr(layer, "output_quant", None)
        values = values_of(out) if quant is None else last[quant]
        last.clear()
        return values

    with intercepted(quantizers, intercept):
        yield of
