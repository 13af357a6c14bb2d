"""quantize: a quantized model out of a float one and rules."""

import copy
import warnings
from typing import Literal, TypeVar

from torch import nn

from ...qcore.models import require_model, shown
from ..errors import GraphError, GraphWarning
from ..rules.rules import RulesLike, read_rules
from .plan import Plan
from .snapshot import restored_on_failure

__all__ = ["quantize"]

Model = TypeVar("Model", bound=nn.Module)


def quantize(
    model: Model,
    rules: RulesLike,
    *,
    examples: object = None,
    placement: Literal["inputs", "outputs"] = "inputs",
    joins: Literal["free", "shared"] = "free",
    inplace: bool = False,
) -> Model:
    """Quantize a float model by rules.

    The result is a copy of the model in which the layers that rules name have become quantized layers of the same
    weights; everything else, the user's own code first of all, is as it was. A float checkpoint loads strictly.

    Rules are a mapping, or a list of pairs, of *where* to *what*. Later rules win, and their settings merge with those
    of earlier ones; one that gives a slot another quantizer starts that slot anew.

    - *Where*: a type of layer, and its subclasses; a path, with wildcards if you like (``"layer1.*"``); `first` and
      `last`; a function of path and module; a function of tensors (``torch.add``, operators and methods included),
      which needs ``examples``.
    - *What*: keyword arguments of the quantized layer, such as ``dict(weight_bit_width=4)`` or `W8A8`; a quantized
      layer of your own; None to leave it float. Keywords that stand among the rules are for all layers with weights:
      ``W8A8`` is a rule by itself, and so is ``{**W8A8, "head": None}``.

    A setting goes to the layers that have a slot for it. Paths, predicates, `first` and `last` are about layers with
    weights: activation layers stay float unless a rule names their type, or has a setting that only they have, such as
    ``act_quant`` or ``bit_width``.

    With ``examples``, the model is run first, and what it does decides more. Layers that take the same tensor share the
    quantizer of their inputs, which is unsigned where the tensor can't be negative. An activation layer that serves in
    several places becomes one for each (``relu``, ``relu_2``) if it is quantized. Functions are quantized where they
    are called, as submodules with names like ``layer1.0.add``, by which rules can mean them, too; a wildcard means
    only those that another rule names. In the end the converted model, its quantizers off, has to return what the float
    model did, to the bit, and to call every layer that was converted.

    A class that extends one of torch's layers and computes in its own way goes on doing so, on the quantized weight. A
    layer that a rule's class takes changes its class, and no constructor runs.

    Args:
        model: any module.
        rules: see above.
        examples: what the model is called with, once for each way through it: a tensor, a tuple of arguments, a dict of
            keyword arguments, or a list of these.
        placement: where quantizers of activations are: at the inputs of layers, or at the outputs of what makes the
            tensors, for targets that compute with integers only.
            Biases are integers then.
        joins: whether what meets in sums and concatenations lies on one grid, whose quantizer the layers before share.
        inplace: change the model itself; it is as before if that fails.

    Returns:
        The quantized model.

    Raises:
        GraphError: a rule matches nothing or has a setting that nothing uses, or the model can't be quantized that way.

    Example:
        >>> from bitwright.graph.rules.ready import W8A8
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> quantized = quantize(model, {nn.Linear: W8A8, "2": dict(weight_bit_width=4)})
        >>> [type(layer).__name__ for layer in quantized], quantized[2].weight_quant.bit_width
        (['QuantLinear', 'ReLU', 'QuantLinear'], 4)
        >>> quantized.load_state_dict(model.state_dict())
        <All keys matched successfully>
    """
    require_model("quantize", model, GraphError)
    _check_choice("placement", placement, ("inputs", "outputs"))
    _check_choice("joins", joins, ("free", "shared"))
    read = read_rules(rules)
    plan = Plan(read, examples, placement, joins)
    if inplace:
        with restored_on_failure(model):
            told = plan.carry_out(model)
        quantized = model
    else:
        quantized = _copy(model)
        told = plan.carry_out(quantized)
    for text in told:
        warnings.warn(f"quantize: {text}", GraphWarning, stacklevel=2)
    return quantized


def _check_choice(name: str, found: object, possible: tuple[str, ...]) -> None:
    if found not in possible:
        raise GraphError(
            f"quantize: {name}={shown(found)} is not possible: expected {' or '.join(map(repr, possible))}."
        )


def _copy(model: Model) -> Model:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise GraphError(
            f"quantize: {type(model).__name__} can't be copied ({type(error).__name__}: {error}). Write inplace=True "
            "to change the model itself, or make it something that copy.deepcopy takes."
        ) from error
