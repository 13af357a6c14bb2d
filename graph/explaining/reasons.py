"""Which rule set each quantizer of a model, and why other layers stayed float."""

from torch import nn

from ...nn.branches.low_rank import LowRank
from ...nn.function import QuantFunction
from ...nn.layer import QuantLayer
from ...qcore import TensorQuant
from ...qcore.models import require_model
from ..conversion.decisions import Decision, SlotDecision, decisions_of
from ..errors import GraphError
from ..measuring.batches import batches_of
from .coverage import Coverage
from .explanation import ExplainedLayer, ExplainedQuantizer, Explanation
from .measuring import Measurement

__all__ = ["explain"]


def explain(model: nn.Module, data: object = None, reference: nn.Module | None = None) -> Explanation:
    """List every layer of a quantized model: its quantizers, the rule that set each, or why it stayed float.

    With data, also what it costs: how far the output of each layer is from the float one, with only this layer
    quantized (``SQNR``: the noise that it adds itself), and with all of them (``so far``: where along the network it
    adds up); what share of values a quantizer clips, and how many of its levels no value fell on. The batches go
    through the float model and the quantized one, and the outputs of all layers for one batch are held in memory.

    Args:
        model: a model that `quantize` made, or one written by hand, which knows no rules.
        data: one batch, or an iterable of batches, such as a loader. A batch is a tensor, a dict of keyword arguments,
            or a tuple of positional arguments; of these, as many count as forward takes: labels are left out.
        reference: the float model, with the same paths, if it is another than this one with its quantizers off: after
            passes that change weights or biases. Functions that `quantize` gave a layer are not measured against it.

    Returns:
        An `Explanation`: ``print`` it, take it as data by ``to_dict()``, or ``save`` it as a page for a browser.

    Raises:
        GraphError: not a model, no layers in it, no data, or a reference with none of its layers.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> layers = qnn.QuantLinear(4, 4, weight_bit_width=2), qnn.QuantReLU(scale=0.125), nn.Linear(4, 1)
        >>> model = nn.Sequential(*layers)
        >>> print(explain(model))
        Sequential: 2 of 3 layers quantized
        layer  class        slot    quantizer
        0      QuantLinear  weight  Int8WeightPerTensor(bit_width=2): int2 narrow, per tensor
        1      QuantReLU    act     Uint8Act(scale=0.125): uint8, per tensor
        float: Linear, no quantizers: 2
        >>> [layer.path for layer in explain(model, torch.randn(64, 4)).worst]
        ['0', '1']
    """
    require_model("explain", model, GraphError)
    original = model if reference is None else reference
    require_model("explain", original, GraphError)
    layers = _layers(model)
    if not layers:
        raise GraphError(f"explain: this {type(model).__name__} has no layers with parameters or quantizers.")
    if data is None:
        explainer = _Explainer(model, None)
        return Explanation(type(model).__name__, tuple(explainer.layer(*each) for each in layers))
    quantized = [path for path, module, _ in layers if isinstance(module, QuantLayer)]
    if quantized and not set(quantized) & {path for path, _ in original.named_modules()}:
        raise GraphError(
            f"explain: the reference has no layer {quantized[0]}, nor any other that is quantized. Pass the float "
            "model that this one was made from, with the same paths."
        )
    found = Measurement(model, original, batches_of("explain", model, data))
    explainer = _Explainer(model, found)
    return Explanation(type(model).__name__, tuple(explainer.layer(*each) for each in layers), found.outputs.decibels)


Named = tuple[str, nn.Module | None, Decision | None]


def _layers(model: nn.Module) -> list[Named]:
    """Every layer with its path, and what was decided for it: quantized ones, and float ones that have a say."""
    decided = {each.path: each for each in decisions_of(model)}
    inside = {part for quant in _quantizers_of(model) for part in quant.modules()}
    for layer in model.modules():  # whose slots are those of its parts, too
        inside |= set(layer.modules()) - {layer} if getattr(layer, "routes", None) else set()
    found: list[Named] = []
    for path, module in model.named_modules():
        has_parameters = any(each is not None for each in module._parameters.values())
        if module not in inside and (isinstance(module, QuantLayer) or has_parameters or path in decided):
            found.append((path, module, decided.pop(path, None)))
    for path, decision in decided.items():  # of functions, which are no modules
        found.insert(_place(path, [name for name, *_ in found]), (path, None, decision))
    return found


def _place(path: str, paths: list[str]) -> int:
    """Where a function belongs: after the layers of the module that calls it."""
    owner = path.rpartition(".")[0]
    after = [number for number, each in enumerate(paths) if not owner or each == owner or each.startswith(f"{owner}.")]
    return after[-1] + 1 if after else len(paths)


def _quantizers_of(module: nn.Module) -> dict[TensorQuant, str]:
    """The first path of every quantizer, those of gradients among them."""
    return {each: path for path, each in module.named_modules() if isinstance(each, TensorQuant)}


class _Explainer:
    """Puts layers of a model into words.

    Args:
        model: the model.
        found: what was measured, or None.
    """

    def __init__(self, model: nn.Module, found: Measurement | None) -> None:
        self.found = found
        self.first = _quantizers_of(model)

    def layer(self, path: str, module: nn.Module | None, decision: Decision | None) -> ExplainedLayer:
        quantizers: tuple[ExplainedQuantizer, ...] = ()
        if isinstance(module, QuantLayer):
            slots = [(each.name, getattr(module, f"{each.name}_quant", None)) for each in module.slots]
            decided = {} if decision is None else decision.slots
            inside = _quantizers_of(module)
            quantizers = tuple(
                self._quantizer(f"{path}.{inside[quant]}".lstrip("."), slot, quant, decided.get(slot))
                for slot, quant in slots
                if isinstance(quant, TensorQuant)
            )
        name = type(module).__name__ if module is not None or decision is None else decision.layer
        if isinstance(module, QuantFunction):
            name = f"{name}({module.extra_repr().partition(',')[0]})"
        if not quantizers:
            return ExplainedLayer(path, name, float_reason=_float_reason(module, decision))
        measured = [] if self.found is None else [self.found.alone.get(path), self.found.so_far.get(path)]
        return ExplainedLayer(path, name, quantizers, "", *(each and each.decibels for each in measured))

    def _quantizer(self, own: str, slot: str, quant: TensorQuant, decided: SlotDecision | None) -> ExplainedQuantizer:
        scheme, progress = quant.scheme().replace(", float scale", ""), quant.progress()
        kept = decided is not None and decided.quantizer == quant.quantizer  # else it was exchanged since
        first = self.first[quant]
        coverage = Coverage() if self.found is None else self.found.coverage.get(quant, Coverage())
        return ExplainedQuantizer(
            slot,
            type(quant).__name__ if quant.quantizer is None else repr(quant.quantizer),
            f"{scheme} ({progress})" if progress else scheme,
            decided.why if decided is not None and kept else (),
            "" if first == own else first,
            coverage.clipped,
            coverage.levels,
            coverage.dead,
        )


def _float_reason(module: nn.Module | None, decision: Decision | None) -> str:
    if isinstance(module, LowRank):
        return f"a correction of {sum(each.numel() for each in module.parameters())} floats"
    if decision is not None and decision.float_reason:
        return decision.float_reason
    return "no quantizers"
