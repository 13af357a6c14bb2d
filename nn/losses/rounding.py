"""What learned roundings add to the loss."""

import torch
from torch import Tensor, nn

from ...qcore import GridQuant, LearnedRounding, QuantizerError
from ...qcore.models import require_model
from ..layer import QuantLayer

__all__ = ["rounding_penalty"]


def rounding_penalty(model: nn.Module, beta: float = 20.0) -> Tensor:
    """How undecided the learned roundings of a model are: AdaRound's regularizer, summed over all weights; 0-d.

    Add it to the loss, times a small factor, and let ``beta`` fall from 20 to 2, so that at the end each weight goes up
    or down.

    Args:
        model: with quantizers whose rounding is ``"learned"``.
        beta: large where nearly every weight is to be free.

    Raises:
        QuantizerError: not a model, or no rounding of it is learned.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 2, weight_bit_width=4, weight_rounding="learned")
        >>> loss = layer(torch.ones(4)).sum() + 0.01 * rounding_penalty(layer, beta=10.0)
        >>> loss.backward()
        >>> layer.weight_quant.rounding.offset.grad.shape
        torch.Size([2, 4])
    """
    require_model("rounding_penalty", model)
    terms = []
    for layer in model.modules():
        if not isinstance(layer, QuantLayer):
            continue
        for slot in layer.slots:
            quant = getattr(layer, f"{slot.name}_quant", None)
            if isinstance(quant, GridQuant) and isinstance(quant.rounding, LearnedRounding):
                terms.append(quant.rounding.penalty(_entering(quant, layer.tensor_of(slot.name)), beta))
    if not terms:
        raise QuantizerError(
            f"rounding_penalty: no rounding of this {type(model).__name__} is learned. Write weight_rounding='learned' "
            "for the layers whose weights are to be rounded up or down by training."
        )
    return torch.stack(terms).sum()


def _entering(quant: GridQuant, weight: Tensor) -> Tensor:
    """The weight in units of the gap between its levels, as the rounding sees it."""
    seen: list[Tensor] = []
    assert isinstance(quant.rounding, LearnedRounding)
    handle = quant.rounding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        with torch.no_grad():
            quant.grid(weight.detach())
    finally:
        handle.remove()
    return seen[-1]
