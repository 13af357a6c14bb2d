"""What quantization costs, layer by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...nn.contexts.switching import unquantized
from ...nn.layer import QuantLayer
from ...qcore import Grid, QuantizerError, TensorQuant, values_of
from ...qcore.tensor_quant import Intercept
from ..measuring.evaluation import evaluating, numbers_in, observed
from ..measuring.signal import SignalToNoise
from ..recording.examples import Call
from .coverage import Coverage

__all__ = ["Measurement"]


class Measurement:
    """Batches gone through the float model and the quantized one, side by side.

    Args:
        model: the quantized model.
        reference: the float model; the same one for itself with its quantizers off.
        calls: the batches.

    Attributes:
        alone: for each layer that was called, how far its output is from the float one if nothing else is quantized.
        so_far: the same with everything quantized.
        coverage: how each quantizer that was called uses its range.
        outputs: how far the outputs of the model are from the float ones.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(4, 4), qnn.QuantReLU(scale=0.1))
        >>> found = Measurement(model, model, [((torch.randn(8, 4),), {})])
        >>> sorted(found.alone), found.alone["0"].decibels > 30, found.so_far["0"].decibels == found.alone["0"].decibels
        (['0', '1'], True, True)
    """

    def __init__(self, model: nn.Module, reference: nn.Module, calls: Sequence[Call]) -> None:
        self.alone: dict[str, SignalToNoise] = {}
        self.so_far: dict[str, SignalToNoise] = {}
        self.coverage: dict[TensorQuant, Coverage] = {}
        self.outputs = SignalToNoise()
        self._layers = {path: each for path, each in model.named_modules() if isinstance(each, QuantLayer)}
        with evaluating(model, reference):
            for args, kwargs in calls:
                floats, outputs = self._in_floats(reference, args, kwargs)
                self.outputs.add(outputs, self._quantized(model, floats, args, kwargs))

    def _in_floats(
        self, reference: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, list[list[Tensor]]], list[Tensor]]:
        """The float outputs of each call of each layer, and those of the model; meanwhile each layer is tried alone."""
        found: dict[str, list[list[Tensor]]] = {}
        alone: dict[str, list[list[Tensor]]] = {}
        within: list[str] = []  # the layer that is tried, whose own layers are not to be seen

        def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            if within:
                return
            layer = self._layers[path]
            if getattr(layer, "inplace", False) or getattr(module, "inplace", False):
                args, kwargs = _copied((args, kwargs))
            within.append(path)
            try:
                with _only(layer):
                    tried = _kept(layer.forward(*args, **kwargs))
            except QuantizerError:  # it needs an input with a grid
                tried = []
            finally:
                within.pop()
            alone.setdefault(path, []).append(tried)

        def after(path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if within:
                return
            floats = _kept(out)
            quantized = alone[path].pop()
            if [each.shape for each in floats] == [each.shape for each in quantized]:
                self.alone.setdefault(path, SignalToNoise()).add(floats, quantized)
            found.setdefault(path, []).append(floats)

        modules = {path: each for path, each in reference.named_modules() if path in self._layers}
        with unquantized(reference), observed(modules, after), _entered(modules, before):
            return found, numbers_in(reference(*args, **kwargs))

    def _quantized(
        self,
        model: nn.Module,
        floats: Mapping[str, list[list[Tensor]]],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> list[Tensor]:
        """The outputs of the quantized model; meanwhile layers are compared and quantizers watched."""
        counts: dict[str, int] = {}

        def after(path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            call = counts[path] = counts.get(path, -1) + 1
            quantized = numbers_in(out)
            wanted = floats.get(path, [])[call : call + 1]
            if wanted and [each.shape for each in wanted[0]] == [each.shape for each in quantized]:
                self.so_far.setdefault(path, SignalToNoise()).add(wanted[0], quantized)

        quantizers = quantizers_of(model).items()  # those of parameters see the same in every batch
        watched = {path: each for path, each in quantizers if not (each.of_parameter and each in self.coverage)}
        with observed(self._layers, after), intercepted(watched, lambda path: self._watch):
            return numbers_in(model(*args, **kwargs))

    def _watch(self, quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        values, grid = quant._quantize(x, *context)
        if grid is not None:
            seen = values_of(x).detach()
            folds = bool(context) and context[0] is True  # a ReLU, which the clamp at zero computes
            self.coverage.setdefault(quant, Coverage()).add(seen.clamp_min(0) if folds else seen, grid)
        return values, grid


@contextmanager
def _only(layer: nn.Module) -> Iterator[None]:
    """A block in which the quantizers of a layer do their work, whatever stands in for them around it."""

    def intercept(path: str) -> Intercept:
        def work(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            if quant.follows_input and any(each is None for each in context):
                return x, None  # a bias on the grid of an input that comes without one
            return quant._quantize(x, *context)

        return work

    with intercepted(quantizers_of(layer), intercept):
        yield


@contextmanager
def _entered(modules: Mapping[str, nn.Module], see: Callable[[str, nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call ``see(path, module, args, kwargs)`` before each forward of a module."""

    def hook(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: see(path, module, args, kwargs)

    with ExitStack() as handles:
        for path, module in modules.items():
            handles.callback(module.register_forward_pre_hook(hook(path), with_kwargs=True).remove)
        yield


def _kept(output: object) -> list[Tensor]:
    """The numbers of an output, which what comes next may overwrite."""
    return [each.clone() for each in numbers_in(output)]


def _copied(arguments: Any) -> Any:
    return _pytree.tree_map(lambda each: each.clone() if isinstance(each, Tensor) else each, arguments)
