"""Where quantizers of activations stand: at the outputs of what makes a tensor, and on one grid where tensors meet."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ...nn import QuantLayer, WeightLayer, intercepted, quantizers_of
from ...qcore import Grid, TensorQuant, grid_of
from ...qcore.declare.inject import QuantizerType, settings
from ...qcore.errors import UncalibratedWarning
from ...quantizers import Int8Act, Int32Bias
from ..layers.table import has_weights, multiplies, output_slot, takes_on_grid
from ..recording.examples import calls_of
from ..recording.kinds import kind_of
from ..recording.nodes import Graph, Node
from ..recording.preserving import evaluating
from ..recording.tensors import tensors_in
from ..rules.choices import Choice, has_place
from ..rules.given import Given
from .joins import JOINS, Join, joins_of
from .producers import inputs_of, inputs_taken, makers_of, never_negative
from .sharing import Shared, declared_for, own_settings, share, share_inputs
from .signs import can_be_unsigned
from .sites import Site

__all__ = ["Placement", "share_joins"]


def output_of(choice: Choice) -> str:
    """The slot that quantizes what a layer returns."""
    layer = choice.quantized or choice.layer.quantized
    found = None if layer is None else output_slot(layer)
    assert found is not None
    return found


def makers(choices: Sequence[Choice], graph: Graph) -> dict[Node, Choice]:
    """The layers that can quantize what they return, by the nodes of their calls."""
    found: dict[Node, Choice] = {}
    for choice in choices:
        layer = choice.quantized or choice.layer.quantized
        by_rule = choice.float_reason.startswith("by the rule")
        if layer is None or by_rule or (has_weights(layer) and choice.quantized is None):
            continue
        slot = output_slot(layer)
        if slot is None or not has_place(layer, f"{slot}_quant", choice.layer.module):
            continue
        for node in graph.calls(choice.layer.path):
            if not node.keeps_grid:  # an identity makes nothing
                found[node] = choice
    return found


def share_joins(choices: Sequence[Choice], sites: Sequence[Site], graph: Graph) -> tuple[list[Shared], list[str]]:
    """Let what meets in a sum or a concatenation lie on one grid.

    Where a rule is for the function, its operands share a quantizer there. Elsewhere the layers that make the operands
    share one; where one of the operands comes from something else, nothing changes.

    Returns:
        The slots that share a quantizer, and warnings of what stays as it was.
    """
    for site in sites:
        if site.settings is not None and site.node.kind in JOINS and "input_quant" in site.settings:
            site.settings.setdefault("share", Given(True, ("joins='shared'",)))
            for keyword in [each for each in site.settings if each[:6] == "input_" and each[6:7].isdigit()]:
                del site.settings[keyword]
    asked = {site.path for site in sites if site.settings is not None or site.float_reason.startswith("by the rule")}
    known = makers(choices, graph)
    shared: list[Shared] = []
    left: list[tuple[str, Node]] = []
    for join in joins_of(graph):
        if asked.intersection(join.paths):
            continue
        other = next((node for node in join.producers if node not in known), None)
        if other is not None:
            left += [(path, other) for path in join.paths]
        elif join.producers:
            shared.append(_on_one_grid(join, known, choices))
    return shared, [_left_alone(left)] if left else []


def _on_one_grid(join: Join, known: Mapping[Node, Choice], choices: Sequence[Choice]) -> Shared:
    makers = list(dict.fromkeys(known[node] for node in join.producers))
    slots = [(choice, output_of(choice)) for choice in makers]
    given = next((pair for pair in slots if pair[0].quantized and f"{pair[1]}_quant" in pair[0].settings), None)
    declared = declared_for(*given) if given else usual_activation(choices)
    declared = Int8Act if declared is None else declared
    if given is None and can_be_unsigned(declared) and all(never_negative((node, 0)) for node in join.producers):
        declared = declared(signed=False)
    for choice, slot in slots:
        give_output(choice, slot, declared, f"on one grid in {', '.join(join.paths)}")
    return slots


def usual_activation(choices: Sequence[Choice]) -> QuantizerType | None:
    """The quantizer that the rules give to most inputs, but for the sign."""
    counts: Counter[QuantizerType] = Counter()
    for choice in choices:
        if choice.quantized is not None and isinstance(choice.quantizer("input"), QuantizerType):
            own = {name: value for name, value in own_settings(choice, "input").items() if name != "signed"}
            quantizer = choice.quantizer("input")
            assert isinstance(quantizer, QuantizerType)
            counts[quantizer(**own)] += 1
    return counts.most_common(1)[0][0] if counts else None


def give_output(choice: Choice, slot: str, declared: QuantizerType, why: str) -> None:
    """Quantize what a layer returns, which carries its grid on."""
    choice.quantized = choice.quantized or choice.layer.quantized
    choice.float_reason = ""
    assert choice.quantized is not None
    own = [key for key in choice.settings if (found := choice.slot(key)) and found.name == slot]
    if slot != "hidden" or choice.quantizer(slot) is None:  # the states of a recurrent layer are its output
        before = [choice.settings.pop(key) for key in own]
        choice.settings[f"{slot}_quant"] = Given.together(before, declared, why)
    if has_place(choice.quantized, "return_quant_tensor", choice.layer.module):
        choice.settings.setdefault("return_quant_tensor", Given(True, (why,)))


def _left_alone(left: Sequence[tuple[str, Node]]) -> str:
    path, node = left[0]
    paths = list(dict.fromkeys(path for path, _ in left))
    listed = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    is_norm = kind_of(node.function) == "batch_norm"
    there = f'Quantize the operands there by a rule: "{path}": dict(input_quant=Int8Act).'
    remedy = "Call fold_batch_norms before." if is_norm else there
    return (
        f"joins='shared' leaves {listed} as {'they are' if len(paths) > 1 else 'it is'}: an operand of {path} comes "
        f"from {node.path} ({node.kind}), which has no quantizer of its result. {remedy}"
    )


class Placement:
    """Quantizers at the outputs of what makes a tensor.

    With ``everywhere``, for targets that compute with integers only, every activation layer quantizes its result, and
    so does every layer with weights that feeds another, or a sum. A layer keeps a quantizer of its input where no grid
    arrives: behind the model's inputs, sums, means, normalizations. Otherwise the inputs of layers are left out whose
    makers quantize them already.

    Args:
        choices: what the rules come to, layers not converted yet. They are changed.
        graph: of the model.
        everywhere: see above.

    Example:
        >>> import torch
        >>> from ..rules.choices import choose
        >>> from ..layers.layers import layers_of
        >>> from ..rules.rules import read_rules
        >>> from ..recording.recorder import record
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> choices = choose(model, layers_of(model), read_rules({nn.Linear: dict(input_quant=Int8Act)}))
        >>> _ = Placement(choices, record(model, torch.ones(1, 2)), everywhere=True)
        >>> [[*choice.settings] for choice in choices]
        [['input_quant'], ['act_quant', 'return_quant_tensor'], []]
    """

    def __init__(self, choices: Sequence[Choice], graph: Graph, everywhere: bool) -> None:
        self._graph = graph
        self._makers = makers(choices, graph)
        self._usual = usual_activation(choices)
        self._moved: list[tuple[Choice, QuantizerType, dict[str, Given]]] = []
        for choice in choices:
            if choice.quantized is not None and takes_on_grid(choice.quantized):
                self._move(choice, graph, everywhere)
        if everywhere:
            self._fill(graph)
        self._biases = [choice for choice in choices if everywhere and _may_have_int_bias(choice)]

    def _move(self, choice: Choice, graph: Graph, everywhere: bool) -> None:
        """Move the quantizer of a layer's input to what makes the input."""
        declared = declared_for(choice, "input")
        edges = inputs_of(graph, choice.layer.path)
        nodes = [node for edge in edges if edge is not None for node in makers_of(edge)]
        if declared is None or not nodes or None in edges or any(each not in self._makers for each in nodes):
            return
        if not everywhere and not all(self._has_output(self._makers[node]) for node in nodes):
            return
        assert choice.quantized is not None
        for node in nodes:
            maker = self._makers[node]
            if not self._has_output(maker):
                give_output(maker, output_of(maker), declared, f"the input of {choice.layer.path}")
        own = [key for key in choice.settings if (found := choice.slot(key)) and found.name == "input"]
        self._moved.append((choice, declared, {key: choice.settings.pop(key) for key in own}))

    def _has_output(self, maker: Choice) -> bool:
        return maker.quantized is not None and f"{output_of(maker)}_quant" in maker.settings

    def _fill(self, graph: Graph) -> None:
        """Quantize what else is to lie on a grid: results of activations, and what meets in sums."""
        meeting = {node for join in joins_of(graph) for node in join.producers}
        for node, maker in self._makers.items():
            slot = output_of(maker)
            if self._has_output(maker) or self._usual is None or not (slot == "act" or node in meeting):
                continue
            declared = self._usual
            if can_be_unsigned(declared) and never_negative((node, 0)):
                declared = declared(signed=False)
            give_output(maker, slot, declared, "placement='outputs'")

    def finish(self, model: nn.Module, examples: object) -> None:
        """Run the converted model, give a quantizer back to inputs where no grid arrives, and quantize the biases."""
        if not self._moved and not self._biases:
            return
        layers = {id(choice.layer.module): declared for choice, declared, _ in self._moved}
        lacking: set[int] = set()

        def look(module: nn.Module, args: tuple[object, ...]) -> None:
            declared = layers.get(id(module))
            if declared is not None:
                taken = [*args, None, None][: inputs_taken(type(module))]
                grids = [grid_of(each) if isinstance(each, Tensor) else None for each in taken]
                if not grids or any(grid is None or not _fits(grid, declared) for grid in grids):
                    lacking.add(id(module))

        calls = calls_of(examples)
        quiet, quantizers = warnings.catch_warnings(), quantizers_of(model)
        with evaluating(model, tensors_in(calls)), quiet, intercepted(quantizers, lambda path: _as_if_calibrated):
            warnings.simplefilter("ignore", UncalibratedWarning)
            handle = register_module_forward_pre_hook(look)
            try:
                for args, kwargs in calls:
                    model(*args, **kwargs)
            finally:
                handle.remove()
        back = [
            (choice, declared, before) for choice, declared, before in self._moved if id(choice.layer.module) in lacking
        ]
        for choice, declared, before in back:
            assert isinstance(choice.layer.module, QuantLayer)
            choice.layer.module.input_quant = declared
            choice.settings |= before
        share(share_inputs([choice for choice, _, _ in back], self._graph))
        for choice in self._biases:
            layer = choice.layer.module
            if isinstance(layer, WeightLayer) and layer.bias is not None:
                layer.bias_quant = Int32Bias  # type: ignore[assignment] # a slot takes a class
                choice.settings["bias_quant"] = Given(Int32Bias, ("placement='outputs'",))


def _as_if_calibrated(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
    """What a quantizer does, on the grid of one scale for all tensors, as it will be; biases need no grid yet."""
    if quant.follows_input:
        return x, None
    values, grid = quant._quantize(x, *context)
    return values, grid if grid is None or quant.calibrated else grid.replace(source=quant.source)


def _may_have_int_bias(choice: Choice) -> bool:
    """Whether the bias can lie on the scale of the products, and no rule says what it is."""
    if choice.quantized is None or "bias_quant" in choice.settings:
        return False
    if not (issubclass(choice.quantized, WeightLayer) and multiplies(choice.quantized)):
        return False
    return choice.quantizer("weight") is not None


def _fits(grid: Grid, declared: QuantizerType) -> bool:
    """Whether a grid has no more bits than a layer is to take."""
    width = settings(declared).get("bit_width")
    bits = None if width is None else width.declared
    return not isinstance(bits, int) or int(grid.bit_width) <= bits
