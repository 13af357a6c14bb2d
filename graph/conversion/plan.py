"""The steps of quantize: record, decide, change, check."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ...nn import QuantFunction, QuantLayer, unquantized
from ...nn.embeddings.ties import share_ties
from ...qcore import QuantizerError, TensorQuant
from ..errors import GraphError
from ..layers.class_change import change_class, device_and_dtype
from ..layers.layers import Layer, layers_of
from ..layers.table import compositions, name_in, slot_of, torch_layer
from ..placement.activations import activations_as_layers
from ..placement.joins import joins_of
from ..placement.placement import Placement, share_joins
from ..placement.reuse import separate
from ..placement.sharing import Shared, share, share_inputs
from ..placement.signs import choose_signs
from ..placement.sites import Site, choose_site_signs, choose_sites, convert_sites, sites_of
from ..placement.unreached import not_reached
from ..recording.kinds import name_of
from ..recording.nodes import Graph, Node
from ..recording.recorder import record
from ..rules.choices import Choice, choose
from ..rules.given import Given
from ..rules.rules import Rule
from .decisions import Decision, SlotDecision, keep_decisions
from .self_check import Outputs, check_called, check_equal, check_read, outputs_of

__all__ = ["Plan"]


@dataclass
class Plan:
    """What `quantize` is asked for.

    Args:
        rules: as read.
        examples: what to call the model with, or None.
        placement: ``"inputs"`` or ``"outputs"``.
        joins: ``"free"`` or ``"shared"``.

    Example:
        >>> from ..rules.rules import read_rules
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> Plan(read_rules({"0": dict(weight_bit_width=4)})).carry_out(model)
        []
        >>> model[0].weight_quant.bit_width
        4
    """

    rules: Sequence[Rule]
    examples: object = None
    placement: str = "inputs"
    joins: str = "free"

    def carry_out(self, model: nn.Module) -> list[str]:
        """Quantize a model in place.

        Returns:
            What to warn of.

        Raises:
            GraphError: it can't be done; the model is half done then.
        """
        graph, before = self._recorded(model)
        new: dict[str, str] = {}
        if graph is not None:
            new = separate(model, graph, self._one_each(model, graph))
            graph = record(model, self.examples) if new else graph
            if activations_as_layers(model, graph, self._makers(graph), self._functions()):
                graph = record(model, self.examples)
        choices, sites = self._choices(model, graph)
        shared: list[Shared] = []
        placement: Placement | None = None
        warnings: list[str] = []
        if graph is not None:
            check_read(graph, [choice.layer.path for choice in choices if choice.quantized is not None])
            choose_signs(choices, graph)
            choose_site_signs(sites)
            if self.joins == "shared":
                shared, warnings = share_joins(choices, sites, graph)
            if self.placement == "outputs" or shared:
                placement = Placement(choices, graph, everywhere=self.placement == "outputs")
            shared += share_inputs(choices, graph)
            warnings += not_reached(graph, self.rules)
        convert(model, choices)
        _share_ties(model)
        convert_sites(model, sites)
        share(shared)
        if graph is not None:
            if placement is not None:
                placement.finish(model, self.examples)
            check_equal(before, model, self.examples, new, [site.path for site in sites if _is_assigned(model, site)])
            paths = [choice.layer.path for choice in choices if choice.quantized is not None]
            check_called(model, [path for path in paths if graph.calls(path)], self.examples)
        decisions = [_of_layer(choice) for choice in choices]
        keep_decisions(model, [*decisions, *(_of_site(model, site) for site in sites if _is_told(site))])
        return warnings

    def _choices(self, model: nn.Module, graph: Graph | None) -> tuple[list[Choice], list[Site]]:
        """What the rules come to for layers and functions."""
        sites = [] if graph is None else sites_of(graph)
        order = [] if graph is None else [node.module for node in graph.nodes if node.module is not None]
        elsewhere = choose_sites(sites, self.rules)
        also = [base for rule in self.rules if rule.layer is not None and (base := torch_layer(rule.layer)) is not None]
        also += [rule.where for rule in self.rules if isinstance(rule.where, type) and _is_composition(rule.where)]
        layers = layers_of(model, order, also)
        return choose(model, layers, self.rules, elsewhere, [site.path for site in sites]), sites

    def _one_each(self, model: nn.Module, graph: Graph) -> Callable[[Layer], bool]:
        """Which activation layers get a quantizer for each of their places."""
        if self.placement == "outputs" or self.joins == "shared":
            return lambda layer: True
        try:
            choices, _ = self._choices(model, graph)
        except GraphError:  # a rule may be for one of the layers that are not there yet
            return lambda layer: True
        quantized = {choice.layer.path for choice in choices if choice.quantized is not None}
        return lambda layer: layer.path in quantized

    def _makers(self, graph: Graph) -> Collection[Node]:
        """The calls whose results are to lie on a grid that the place that computes them gives."""
        if self.placement == "outputs":
            return graph.nodes
        return [node for join in joins_of(graph) for node in join.producers] if self.joins == "shared" else []

    def _functions(self) -> list[str]:
        """The kinds of functions that rules are for: they stay functions."""
        return [name_of(rule.where) for rule in self.rules if rule.is_function]

    def _recorded(self, model: nn.Module) -> tuple[Graph | None, Outputs]:
        if self.examples is not None:
            with unquantized(model):  # it may hold quantized layers already
                return record(model, self.examples), outputs_of(model, self.examples)
        for option, asked in (
            ("placement='outputs'", self.placement == "outputs"),
            ("joins='shared'", self.joins == "shared"),
        ):
            if asked:
                raise GraphError(
                    f"quantize: {option} asks which layer makes which tensor, and that is seen by running the model. "
                    "Pass examples=(x,)."
                )
        for rule in self.rules:
            if rule.is_function:
                raise GraphError(
                    f"quantize: {rule} is a function, and which functions a model calls is seen by running it. Pass "
                    "examples=(x,)."
                )
        return None, Outputs()


def _is_composition(kind: type) -> bool:
    """Whether a type of layer is made of others, which a rule means as a whole if it names the type."""
    return any(issubclass(kind, base) for base in compositions())


def convert(model: nn.Module, choices: Iterable[Choice]) -> None:
    """Change the classes of layers as decided.

    Raises:
        GraphError: a setting is impossible; it names the layer and the rule.
    """
    for choice in choices:
        if choice.quantized is None:
            continue
        module, name = choice.layer.module, choice.layer.name
        device, dtype = device_and_dtype(module, *_around(model, choice.layer.path))
        try:
            change_class(module, choice.quantized, choice.keywords(), device, dtype)
        except QuantizerError as error:
            by = Given.by(choice.settings.values())
            raise GraphError(f"quantize: {name}, by the rule {by}: {error}") from None


def _share_ties(model: nn.Module) -> None:
    try:
        share_ties(model)
    except QuantizerError as error:
        raise GraphError(f"quantize: {error}") from None


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules that hold another, from the inside out."""
    found = [model]
    for name in path.split(".")[:-1]:
        found.append(found[-1].get_submodule(name))
    return found[::-1]


# What was decided


def _of_layer(choice: Choice) -> Decision:
    layer = choice.layer.module
    if choice.quantized is None or not isinstance(layer, QuantLayer):
        return Decision(choice.layer.path, type(layer).__name__, {}, choice.float_reason)
    slots = _slots(layer, choice.settings, f"usual in {choice.quantized.__name__}")
    return Decision(choice.layer.path, type(layer).__name__, slots)


def _is_assigned(model: nn.Module, site: Site) -> bool:
    """Whether a rewritten place was ``a += b``, which is ``a = self.add(a, b)`` now."""
    if site.settings is None:
        return False
    layer, name = model.get_submodule(site.path), str(getattr(site.node.function, "__name__", ""))
    in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
    return in_place and getattr(getattr(layer, "function", None), "__module__", "") == "_operator"


def _is_told(site: Site) -> bool:
    """Whether a rule says something of a place: of the functions that nobody asks for there are too many."""
    return site.settings is not None or site.float_reason != "no rule is for it"


def _of_site(model: nn.Module, site: Site) -> Decision:
    if site.settings is None:
        return Decision(site.path, site.node.kind, {}, site.float_reason)
    layer = model.get_submodule(site.path)
    assert isinstance(layer, QuantLayer)
    return Decision(site.path, type(layer).__name__, _slots(layer, site.settings, ""))


def _slots(layer: QuantLayer, settings: dict[str, Given], usual: str) -> dict[str, SlotDecision]:
    slots: dict[str, SlotDecision] = {}
    for slot in layer.slots:
        quant = getattr(layer, f"{slot.name}_quant")
        if not isinstance(quant, TensorQuant):
            continue
        given = [each for keyword, each in settings.items() if _is_for(type(layer), layer, keyword, slot.name)]
        found = Given.together(given, None)
        slots[slot.name] = SlotDecision(quant.quantizer, found.rules, found.why or ((usual,) if usual else ()))
    return slots


def _is_for(cls: type[QuantLayer], layer: QuantLayer, keyword: str, slot: str) -> bool:
    if issubclass(cls, QuantFunction):  # its operands are slots of the instance
        number = slot.removeprefix("input_")
        if slot.startswith("input"):
            return keyword.startswith(f"input_{number}_") or (keyword.startswith("input_") and not keyword[6].isdigit())
        return not keyword.startswith("input_") and keyword not in ("share", "operands", "inplace")
    if keyword == "return_quant_tensor":
        return False
    name = name_in(layer.slots, keyword)
    if name is not None:
        return name in layer.slot(slot).names
    found = slot_of(cls, keyword)
    return found is not None and found.name == slot
