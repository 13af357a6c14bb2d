"""The penalty that keeps clipping levels low."""

from typing import Any

import torch
from torch import Tensor, nn

from ...qcore.models import require_model
from ...qcore.scaling import MagnitudeScaling

__all__ = ["range_penalty"]


def range_penalty(model: nn.Module) -> Tensor:
    """The sum of squares of every learned range that only clipped values move, as PACT has them.

    Add a share of it to the loss: the L2 penalty on PACT's clipping levels, as strong as an optimizer's weight decay
    with half of that. The optimizer's own would pull what was learned toward 0, that is the range toward its start.

    Returns:
        A differentiable 0-d tensor; 0 if nothing is learned.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Uint4ActPACT
        >>> model = nn.Sequential(qnn.QuantReLU(act_quant=Uint4ActPACT), qnn.QuantLinear(4, 2))
        >>> range_penalty(model).item()
        100.0
    """
    require_model("range_penalty", model)
    found = [module.scaling for module in model.modules() if getattr(module, "clip_first", False) is True]
    learned: list[Any] = [each for each in found if isinstance(each, MagnitudeScaling) and [*each.parameters()]]
    if not learned:
        return torch.zeros(())
    return torch.stack([each.restriction.load(each.magnitude).square().sum() for each in learned]).sum()
