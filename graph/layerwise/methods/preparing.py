"""Algorithms that prepare float weights and grids for those that round."""

from typing import Any, Literal, Unpack

from torch import nn

from ..options import WalkOptions, checked
from ..reports import LayerwiseReport
from ..solvers.scale_search import solve_scales
from ..solvers.shrinking import solve_magr
from ..walking.walk import walk_blocks

__all__ = ["magr", "search_scales"]


def magr(
    model: nn.Module,
    data: object,
    *,
    alpha: float = 0.001,
    steps: int = 200,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """MagR: shrink the largest weights of each row where the inputs allow it, so that scales become smaller.

    The weights stay floats; an algorithm that rounds comes next. The model is changed in place.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        alpha: how much a smaller maximum is worth: 0.001 for one scale for each row, 0.0001 for groups of 128.
        steps: of the descent.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it. ``after`` is the error that the smaller weights have unrounded.

    Raises:
        GraphError: nothing to change, activations without a range, or an invalid setting.

    References:
        Zhang et al., "MagR: Weight Magnitude Reduction for Enhancing Post-Training Quantization", 2024.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> largest = model[0].weight.abs().amax()
        >>> _ = magr(model, torch.randn(256, 4) @ torch.randn(4, 16), alpha=0.01)
        >>> bool(model[0].weight.abs().amax() < largest)
        True
    """
    return walk_blocks(
        model,
        data,
        lambda path, problem: solve_magr(problem, alpha=alpha, steps=steps),
        settings={"alpha": alpha, "steps": steps},
        name="magr",
        float_inputs=False,
        **checked(magr, options),
    )


def search_scales(
    model: nn.Module,
    data: object,
    *,
    candidates: int = 40,
    lowest: float = 0.2,
    exponent: float = 2.0,
    weighting: Literal["diagonal", "none", "full"] = "diagonal",
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """Search for each scale of a weight the factor with the smallest error of the outputs.

    The weights stay floats, and the scales are fixed, see `GridQuant.fix`: an algorithm that rounds may come next. The
    model is changed in place. At 2 bits the scale matters more than the rounding.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        candidates: factors that are tried.
        lowest: the smallest of them.
        exponent: of the error.
        weighting: ``"diagonal"``: errors of weights count by the power of their inputs; ``"none"``: alike; ``"full"``:
            the error of the output decides.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it.

    Raises:
        GraphError: nothing to change, activations without a range, or an invalid setting.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=2)).eval()
        >>> report = search_scales(model, torch.randn(256, 16))
        >>> report["0"].figures["after"] < report["0"].figures["before"]
        True
    """
    settings: dict[str, Any] = {
        "candidates": candidates,
        "lowest": lowest,
        "exponent": exponent,
        "weighting": weighting,
    }
    return walk_blocks(
        model,
        data,
        lambda path, problem: solve_scales(problem, **settings),
        name="search_scales",
        float_inputs=False,
        rounds=False,
        settings=settings,
        **checked(search_scales, options),
    )
