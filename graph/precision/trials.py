"""A model on trial: a copy whose layers have other quantizers, of which those of one layer work at a time."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from ...nn import QuantLayer
from ...nn.contexts.intercepting import intercepted
from ...nn.contexts.switching import unquantized
from ...nn.slots import Slot, split_overrides
from ...qcore import Grid, QuantizerError, TensorQuant
from ...qcore.tensor_quant import Intercept
from ..errors import GraphError
from ..rules.choices import has_place
from .settings import Settings

__all__ = ["Trial", "outermost", "rows_of", "rule_of", "sharing_copy", "working"]

Model = TypeVar("Model", bound=nn.Module)


def sharing_copy(asked: str, model: Model) -> Model:
    """A copy of a model that has the same parameters; only those of quantizers are copied, and buffers.

    Args:
        asked: the call, for messages.
        model: the model.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 2)
        >>> copied = sharing_copy("sensitivity", layer)
        >>> copied.weight is layer.weight, copied.weight_quant is layer.weight_quant
        (True, False)

    Raises:
        GraphError: the model can't be copied.
    """
    inside = {part for each in model.modules() if isinstance(each, TensorQuant) for part in each.modules()}
    own = [each for part in model.modules() if part not in inside for each in part.parameters(recurse=False)]
    try:
        return copy.deepcopy(model, {id(each): each for each in own})
    except Exception as error:
        raise GraphError(
            f"{asked}: {type(model).__name__} can't be copied ({type(error).__name__}: {error}), and it works on "
            "a copy. Make it something that copy.deepcopy takes."
        ) from error


def rows_of(model: nn.Module) -> dict[str, QuantLayer]:
    """The layers with a quantized weight, by path; one with such layers inside that it computes with counts as one.

    Example:
        >>> import bitwright.nn as qnn
        >>> list(rows_of(nn.Sequential(qnn.QuantLinear(4, 4), qnn.QuantReLU(), nn.Linear(4, 4))))
        ['0']
    """
    return {path: each for path, each in outermost(model).items() if _weights(each)}


def outermost(model: nn.Module) -> dict[str, QuantLayer]:
    """The quantized layers of a model that are no part of another one; of a layer made of layers, these.

    Example:
        >>> import bitwright.nn as qnn
        >>> list(outermost(qnn.QuantTransformerEncoderLayer(8, 2, 16)))
        ['self_attn', 'linear1', 'linear2']
    """
    found: dict[str, QuantLayer] = {}
    inside: set[nn.Module] = set()
    for path, each in model.named_modules():
        if isinstance(each, QuantLayer) and each not in inside and each.slots and not hasattr(each, "parts"):
            found[path] = each
            inside.update(each.modules())
    return found


def _weights(layer: QuantLayer) -> list[Slot]:
    return [slot for slot in layer.slots if slot.role == "weight" and _quantizer(layer, slot) is not None]


def _quantizer(layer: QuantLayer, slot: Slot) -> TensorQuant | None:
    return getattr(layer, f"{slot.name}_quant")


def rule_of(layer: QuantLayer) -> dict[str, object]:
    """What a rule of `quantize` says for the layer to get the quantizers that this one has.

    Example:
        >>> import bitwright.nn as qnn
        >>> rule_of(qnn.QuantLinear(4, 2, weight_bit_width=3))
        {'weight_quant': Int8WeightPerTensor(bit_width=3)}
        >>> rule_of(qnn.QuantLinear(4, 2, weight_quant=None))
        {'weight_quant': None}
    """
    found: dict[str, object] = {}
    for slot in layer.slots:
        quant = _quantizer(layer, slot)
        if quant is not None:
            found[f"{slot.name}_quant"] = quant if quant.quantizer is None else quant.quantizer
        elif type(layer).usual_quantizer(slot) is not None:
            found[f"{slot.name}_quant"] = None
    if getattr(layer, "return_quant_tensor", False):
        found["return_quant_tensor"] = True
    return found


class Trial:
    """A copy of a quantized model with one setting in some of its layers, and all quantizers off.

    The copy shares the weights with the model, and nothing else.

    Args:
        model: the quantized model, which stays as it is.
        paths: of the layers that get the setting.
        name: of the setting, for messages.
        settings: keywords of layers; each layer takes those that it has a slot for. None takes all quantizers away.

    Attributes:
        model: the copy.
        layers: those that got the setting, by path.
        tried: their quantizers that the setting is about, by the path of the layer and the name of the slot.

    Raises:
        GraphError: a layer can't have the setting, or no layer has a use for one of the keywords.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(4, 4), qnn.QuantLinear(4, 4))
        >>> trial = Trial(model, ["0", "1"], "2", dict(weight_bit_width=2))
        >>> with trial.only("1") as copied:
        ...     out = copied[1](torch.eye(4))
        ...     print(torch.equal(copied[0](torch.eye(4)), nn.Linear.forward(model[0], torch.eye(4))))
        True
        >>> model[1].weight_quant.bit_width, trial.layers["1"].weight_quant.bit_width
        (8, 2)
    """

    def __init__(self, model: nn.Module, paths: Sequence[str], name: str, settings: Settings) -> None:
        self.name = name
        self.model = sharing_copy("sensitivity", model)
        self.layers: dict[str, QuantLayer] = {}
        self.tried: dict[str, dict[str, TensorQuant]] = {}
        used: set[str] = set()
        for path in paths:
            layer = self.model.get_submodule(path)
            assert isinstance(layer, QuantLayer)
            self.layers[path] = layer
            keywords = {key for key in settings or () if has_place(type(layer), key, layer)}
            used |= keywords
            if settings is not None and not keywords - {"return_quant_tensor"}:
                raise GraphError(
                    f"sensitivity: {_name(path)} ({type(layer).__name__}) has no slot for anything in the setting "
                    f"{name!r} ({', '.join(settings)}). Name what the layer has, or leave it out of layers=."
                )
            own = None if settings is None else {key: settings[key] for key in settings if key in keywords}
            self.tried[path] = self._give(path, layer, own)
        for keyword in settings or ():
            if keyword not in used:
                raise GraphError(
                    f"sensitivity: no layer has a slot for {keyword}, which the setting {name!r} names. Leave it out, "
                    "or write it as quantize would take it."
                )

    def _give(self, path: str, layer: QuantLayer, settings: Settings) -> dict[str, TensorQuant]:
        if settings is None:
            if getattr(layer, "return_quant_tensor", False):
                layer.return_quant_tensor = False  # there is no grid to return
            layer._fill({}, dict.fromkeys(layer.slots))
            return {}
        rest = {key: value for key, value in settings.items() if key != "return_quant_tensor"}
        if "return_quant_tensor" in settings:
            layer.return_quant_tensor = settings["return_quant_tensor"]
        try:
            return _refilled(layer, rest)
        except QuantizerError as error:
            raise GraphError(f"sensitivity: {_name(path)}, by the setting {self.name!r}: {error}") from None

    @contextmanager
    def only(self, path: str) -> Iterator[nn.Module]:
        """A block in which only the quantizers of one layer that the setting is about do their work."""
        with unquantized(self.model), working(self.tried[path]):
            yield self.model

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """A block in which nothing is quantized."""
        with unquantized(self.model):
            yield self.model


def _refilled(layer: QuantLayer, given: Mapping[str, object]) -> dict[str, TensorQuant]:
    """Give a layer other quantizers; those that nothing is said of stay the modules that they are."""
    modules = {slot: _quantizer(layer, slot) for slot in layer.slots}
    chosen: dict[Slot, object] = {}
    for slot in modules:
        named = [f"{name}_quant" for name in reversed(slot.names) if f"{name}_quant" in given]
        if named:
            chosen[slot] = given[named[0]]
    taken = {f"{name}_quant" for slot in layer.slots for name in slot.names}
    rest = {key: value for key, value in given.items() if key not in taken}
    overrides = split_overrides(layer, {**modules, **chosen}, rest)
    for slot, module in modules.items():
        if slot not in chosen and overrides[slot.name]:
            chosen[slot] = _declaration(slot, module)
    layer._fill_slots({**modules, **chosen}, overrides)
    quantizers = {slot.name: _quantizer(layer, slot) for slot in chosen}
    return {name: quant.eval() for name, quant in quantizers.items() if quant is not None}


def _declaration(slot: Slot, module: TensorQuant | None) -> object:
    assert module is not None  # or there would be no settings for it
    if module.quantizer is None:
        raise QuantizerError(
            f"{slot.name}_quant was built by hand, so its settings can't be changed. Name a quantizer in the setting, "
            f"such as {slot.name}_quant={slot.example}."
        )
    return module.quantizer


def _name(path: str) -> str:
    return path or "the model"


@contextmanager
def working(
    quantizers: Mapping[str, TensorQuant], before: Callable[[str, Tensor], Tensor] | None = None
) -> Iterator[None]:
    """A block in which quantizers do their work, whatever stands in for them around it.

    Args:
        quantizers: by any names.
        before: called with the name and what is to be quantized; its result is quantized instead.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 2, bias=False, weight_bit_width=2)
        >>> with unquantized(layer), working({"weight": layer.weight_quant}):
        ...     values = layer.take("weight")[0]
        >>> len(values.unique()) <= 3
        True
    """

    def intercept(name: str) -> Intercept:
        def work(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            if quant.follows_input and any(each is None for each in context):
                return x, None  # a bias on the grid of an input that comes without one
            return quant._quantize(x if before is None else before(name, x), *context)

        return work

    with intercepted(quantizers, intercept):
        yield
