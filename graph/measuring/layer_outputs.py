"""What layers compute from batches: the means of their output channels, before these are quantized."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...nn.contexts.freezing import frozen
from ...nn.contexts.intercepting import intercepted
from ...qcore import Grid, TensorQuant, values_of
from ...qcore.tensor_quant import Intercept
from ..recording.examples import Call
from ..regions.ownership import channel_axis
from .channel_means import ChannelMeans
from .evaluation import numbers_in, observed
from .samples import Dealt

__all__ = ["Computed", "Run", "Wanted", "computed"]


Computed = Callable[[nn.Module, Any], Tensor]  # a layer, its last output -> what it computed before quantizing that


class Wanted(NamedTuple):
    """What the outputs of layers should be: those of the float model.

    Attributes:
        estimated: the means of the layers' output channels, over the samples that estimate.
        judged: the same over those that judge.
        magnitudes: the root mean square of each layer's outputs.

    Example:
        >>> import torch
        >>> one, other = ChannelMeans(), ChannelMeans()
        >>> one.add("fc", torch.tensor([[1.0]]), -1)
        >>> other.add("fc", torch.tensor([[4.0], [4.0]]), -1)
        >>> Wanted(one, other, {"fc": 3.0}).pooled().judged["fc"]
        tensor([3.], dtype=torch.float64)
    """

    estimated: ChannelMeans
    judged: ChannelMeans
    magnitudes: Mapping[str, float]

    def pooled(self) -> "Wanted":
        """The same over all samples."""
        means = self.estimated.with_those_of(self.judged)
        return Wanted(means, means, self.magnitudes)


class Run:
    """All samples, gone through a model once.

    Args:
        model: in evaluation.
        layers: those whose outputs are looked at, by path.
        dealt: the samples.

    Attributes:
        estimated: the means of the layers' output channels, over the samples that estimate.
        judged: the same over those that judge.
        most_calls: how often each layer was called in one forward, at most.
        outputs: of the model, for the samples that judge, batch by batch.

    Example:
        >>> import torch
        >>> from bitwright.graph.measuring.samples import deal
        >>> model = nn.Sequential(nn.Flatten()).eval()
        >>> dealt = deal("correct_biases", model, {}, [((torch.arange(4.0).unsqueeze(1),), {})])
        >>> Run(model, {}, dealt).outputs
        [[tensor([[1.],
                [3.]])]]
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], dealt: Dealt) -> None:
        self.estimated = ChannelMeans(magnitudes=True)
        self.judged = ChannelMeans() if dealt.held_out else self.estimated
        self.most_calls: dict[str, int] = {}
        self.outputs: list[list[Tensor]] = []
        with frozen(model):
            if dealt.both is not None:
                outputs = self._go(
                    model, layers, [dealt.both], lambda path, out, axis: self._add(dealt, path, out, axis)
                )
                self.outputs = [[dealt.parts(each, 0)[1] for each in outputs[0]]]
                return
            self.outputs = self._go(model, layers, dealt.estimating, self.estimated.add)
            if dealt.held_out:
                self.outputs = self._go(model, layers, dealt.judging, self.judged.add)

    def wanted(self) -> Wanted:
        """What a quantized model should come to, where this was a float one."""
        return Wanted(self.estimated, self.judged, {path: self.estimated.magnitude(path) for path in self.estimated})

    def _add(self, dealt: Dealt, path: str, out: Tensor, axis: int) -> None:
        if path in dealt.dimensions:
            parts = dealt.parts(out, dealt.dimensions[path])
            self.estimated.add(path, parts[0], axis)
            if dealt.held_out:
                self.judged.add(path, parts[1], axis, dealt.dimensions[path], dealt.judges)

    def _go(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        calls: Sequence[Call],
        add: Callable[[str, Tensor, int], None],
    ) -> list[list[Tensor]]:
        """Run batches; returns the model's outputs for each."""
        counts: dict[str, int] = {}
        with computed(layers) as of:

            def see(path: str, layer: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                counts[path] = counts.get(path, 0) + 1
                self.most_calls[path] = max(self.most_calls.get(path, 0), counts[path])
                values = of(layer, out)
                add(path, values, channel_axis(layer, values.ndim))

            found = []
            with observed(layers, see):
                for args, kwargs in calls:
                    counts.clear()
                    found.append(numbers_in(model(*args, **kwargs)))
            return found


@contextmanager
def computed(layers: Mapping[str, nn.Module]) -> Iterator[Computed]:
    """Gives a function from a layer and its last output to what it was before ``output_quant`` quantized it.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Uint8Act
        >>> layer = qnn.QuantLinear(1, 1, output_quant=Uint8Act, output_max_value=1.0).requires_grad_(False)
        >>> with computed({"fc": layer}) as of:
        ...     out = layer(torch.tensor([[9.0], [-9.0]]))
        ...     before = of(layer, out)
        >>> torch.equal(out, layer.output_quant(before)), torch.equal(out, before)
        (True, False)
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
