"""Switching quantization off for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from ...qcore import Grid, TensorQuant
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ..layer import QuantLayer
from .intercepting import intercepted, quantizers_of

__all__ = ["passed", "unquantized"]

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def unquantized(
    model: Model, *, weights: bool = True, biases: bool = True, activations: bool = True
) -> Iterator[Model]:
    """Let values pass the quantizers of a model unchanged for the length of the block: the float model, or part of it.

    What is switched off measures and learns nothing, and nothing of the model's state is touched. A bias on the scale
    of the products passes, too, where input or weight does. Blocks may be nested: what is off in one of them is off.

    Args:
        model: any module with quantized layers.
        weights: whether the quantizers of weights are off.
        biases: whether those of biases are.
        activations: whether those of inputs, outputs and everything else that flows are.

    Yields:
        The model.

    Raises:
        QuantizerError: it is no module.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=2), qnn.QuantReLU(scale=0.5))
        >>> x = torch.randn(3, 4)
        >>> with unquantized(model):
        ...     print(torch.equal(model(x), nn.functional.linear(x, model[0].weight, model[0].bias).relu()))
        True
        >>> with unquantized(model, weights=False):
        ...     print(torch.equal(model(x), model[0](x).relu()))
        True
    """
    require_model("unquantized", model)
    off = {"weight": weights, "bias": biases, "activation": activations}
    roles = _roles(model)

    def intercept(path: str) -> Intercept:
        quant = quantizers[path]
        if off[roles.get(quant, "activation")]:
            return passed
        before = quant.__dict__.get("intercept")

        def pass_through(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            if quant.follows_input and any(each is None for each in context):
                return x, None
            return quant._quantize(x, *context) if before is None else before(quant, x, *context)

        return pass_through

    quantizers = quantizers_of(model)
    with intercepted(quantizers, intercept):
        yield model


def passed(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, None]:
    """What stands in for a quantizer that is off."""
    return x, None


def _roles(model: nn.Module) -> dict[TensorQuant, str]:
    """What each quantizer is for, as the slot of its layer says."""
    found = {}
    for layer in model.modules():
        for slot in layer.slots if isinstance(layer, QuantLayer) else ():
            quant = getattr(layer, f"{slot.name}_quant")
            if quant is not None:
                found[quant] = slot.role
    return found
