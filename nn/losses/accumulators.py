"""The penalty that keeps learned norms within the accumulators that weights are trained for."""

import torch
from torch import Tensor, nn

from ...qcore import GridQuant, QuantizerError
from ...qcore.grid_quant import resting
from ...qcore.models import require_model
from ..layer import QuantLayer
from ..weight_layer import WeightLayer

__all__ = ["accumulator_penalty"]


def accumulator_penalty(model: nn.Module) -> Tensor:
    """By how much learned norms exceed what their accumulators allow: add a share, such as 1e-3, to the loss.

    The sum, over all output channels, of the base-2 logarithm of norm over limit, where that is above 0. The weights
    hold the limit in any case; the penalty keeps the norms near it, so that they go on being learned. (The regularizer
    of A2Q, Colbert et al., 2023.) Call it after the forward of the batch, which tells the grids of the inputs.

    Args:
        model: a model with weights such as `Int8WeightPerChannelA2Q`.

    Returns:
        A differentiable 0-d tensor; 0 where nothing exceeds its limit.

    Raises:
        QuantizerError: not a model, or a layer whose input is not known yet.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerChannelA2QPlus, Uint4Act
        >>> layer = qnn.QuantLinear(
        ...     64, 2, weight_quant=Int8WeightPerChannelA2QPlus, weight_accumulator_bit_width=12, input_quant=Uint4Act
        ... )
        >>> out = layer(torch.rand(8, 64))
        >>> loss = out.square().mean() + 1e-3 * accumulator_penalty(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight_quant.transform.norm.magnitude_offset.fill_(1.0)  # norms twice as large
        >>> round(accumulator_penalty(layer).item(), 4)
        2.0
    """
    require_model("accumulator_penalty", model)
    layers = ((path, each) for path, each in model.named_modules() if isinstance(each, QuantLayer))
    found = [each for path, layer in layers for each in _of_layer(path, layer)]
    return torch.stack(found).sum() if found else torch.zeros(())


def _of_layer(path: str, layer: QuantLayer) -> list[Tensor]:
    """What each of its weights adds."""
    found = []
    for slot in layer.slots:
        quant = getattr(layer, f"{slot.name}_quant", None)
        if slot.role != "weight" or not isinstance(quant, GridQuant) or not hasattr(quant.transform, "excess"):
            continue
        transform = quant.transform
        context = layer._weight_context(quant, layer._inputs_known()) if isinstance(layer, WeightLayer) else ()
        inputs, bias = context[2:] if context else (None, None)
        if inputs is None and getattr(transform, "input_bounds", ()) is None:
            raise QuantizerError(
                f"accumulator_penalty: {path or type(layer).__name__}: the grid of the input is not known. Call it "
                f"after the forward of the model, or say which integers there are: {slot.keywords}input_bit_width=8, "
                f"{slot.keywords}input_signed=False."
            )
        weight = transform(layer.tensor_of(slot.name), inputs)  # type: ignore[misc]
        with resting(quant):
            found.append(transform.excess(weight, quant.scaling(weight), inputs, bias))  # type: ignore[union-attr]
    return found
