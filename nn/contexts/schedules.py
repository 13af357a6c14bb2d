"""Going to the end of what changes in training."""

from torch import nn

from ...qcore import GridQuant
from ...qcore.models import require_model

__all__ = ["finish_schedules"]


def finish_schedules(model: nn.Module) -> None:
    """Go to the end of every schedule and delay of a model now: settings stay at their ends, training quantizes.

    Args:
        model: any module with quantized layers.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import Anneal
        >>> layer = qnn.QuantLinear(4, 2, weight_bit_width=Anneal(8, 4, steps=1000)).eval()
        >>> before = layer.quant_weight().bit_width
        >>> finish_schedules(layer)
        >>> before, layer.quant_weight().bit_width
        (8, 4)
    """
    require_model("finish_schedules", model)
    for each in model.modules():
        if isinstance(each, GridQuant) and each.clock is not None:
            each.clock.finish()
