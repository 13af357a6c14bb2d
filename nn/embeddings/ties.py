"""Tables that are also the weight of another layer, such as the output layer of a language model."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from ...qcore import QuantizerError, TensorQuant
from ..layer import QuantLayer
from .table import TableLayer

__all__ = ["Tied", "check_ties", "share_ties"]


class Tied(NamedTuple):
    """One of the layers that quantize the same parameter.

    Args:
        path: of the layer.
        layer: it.
        slot: the name of the slot.
        quant: the quantizer in it.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantEmbedding(4, 2)
        >>> Tied("embed", layer, "weight", layer.weight_quant).attribute
        'embed.weight_quant'
    """

    path: str
    layer: QuantLayer
    slot: str
    quant: TensorQuant

    @property
    def attribute(self) -> str:
        """Where the quantizer is found in the model."""
        return ".".join(each for each in (self.path, f"{self.slot}_quant") if each)


def check_ties(model: nn.Module) -> None:
    """Refuse a table that another layer shares and quantizes in its own way: one parameter has one scheme.

    Exports and `integers` check it, which would store the parameter twice.

    Raises:
        QuantizerError: it names the layers, what their quantizers are, and how to share one.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.ModuleDict({"embed": qnn.QuantEmbedding(4, 2), "head": qnn.QuantLinear(2, 4, bias=False)})
        >>> model["head"].weight = model["embed"].weight
        >>> check_ties(model)
        >>> model["head"].weight_quant = qnn.QuantLinear.usual_quantizer(model["head"].slot("weight"))(bit_width=4)
        >>> check_ties(model)
        Traceback (most recent call last):
        bitwright.qcore.errors.QuantizerError: embed and head share one weight, and quantize it in two ways: \
embed.weight_quant is int8 narrow, per tensor, float scale, head.weight_quant is int4 narrow, per tensor, float scale. \
Share the quantizer, too: model.head.weight_quant = model.embed.weight_quant.
    """
    for first, other in _pairs(model):
        if not _alike(first.quant, other.quant) or _holds_state(first.quant):
            shared = f"{_written(other)} = {_written(first)}"
            raise QuantizerError(f"{_differ(first, other)} Share the quantizer, too: {shared}.")


def share_ties(model: nn.Module) -> None:
    """Let layers that share a table share its quantizer, too, where theirs are declared alike.

    Raises:
        QuantizerError: they are declared in different ways.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerTensorLearned
        >>> model = nn.Sequential(qnn.QuantEmbedding(4, 2), qnn.QuantLinear(2, 4, bias=False))
        >>> for layer in model:
        ...     layer.weight_quant = Int8WeightPerTensorLearned
        >>> model[1].weight = model[0].weight
        >>> share_ties(model)
        >>> model[1].weight_quant is model[0].weight_quant
        True
    """
    for first, other in _pairs(model):
        if not _alike(first.quant, other.quant):
            raise QuantizerError(f"{_differ(first, other)} Give both the same {first.slot}_quant.")
        if _holds_state(first.quant):
            setattr(other.layer, f"{other.slot}_quant", first.quant)


def _pairs(model: nn.Module) -> Iterator[tuple[Tied, Tied]]:
    """Each layer that shares a table with other layers, beside the first of these, where their quantizers are two."""
    users: dict[int, list[Tied]] = {}
    for path, layer in model.named_modules():
        for slot in layer.slots if isinstance(layer, QuantLayer) else ():
            quant = getattr(layer, f"{slot.name}_quant", None)
            parameter = layer._parameters.get(slot.parameter or "")
            if parameter is not None and isinstance(quant, TensorQuant):
                users.setdefault(id(parameter), []).append(Tied(path, layer, slot.name, quant))  # type: ignore[arg-type]
    for first, *others in users.values():
        if any(isinstance(each.layer, TableLayer) for each in (first, *others)):
            yield from ((first, other) for other in others if other.quant is not first.quant)


def _alike(one: TensorQuant, other: TensorQuant) -> bool:
    """Whether two quantizers were declared alike, for tensors alike."""
    same = one.quantizer is not None and one.quantizer == other.quantizer
    return same and one.provided.get("channel_axis") == other.provided.get("channel_axis")


def _holds_state(quant: TensorQuant) -> bool:
    """Whether two quantizers that were declared alike can come to differ."""
    return any(True for _ in quant.parameters()) or any(True for _ in quant.buffers())


def _differ(first: Tied, other: Tied) -> str:
    return (
        f"{first.path or 'the model'} and {other.path or 'the model'} share one weight, and quantize it in two ways: "
        f"{first.attribute} is {first.quant.scheme()}, {other.attribute} is {other.quant.scheme()}."
    )


def _written(tied: Tied) -> str:
    """The attribute as code: ``model.layers[0].weight_quant``."""
    return re.sub(r"\.(\d+)(?=\.)", r"[\1]", f"model.{tied.attribute}")
