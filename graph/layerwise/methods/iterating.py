"""Algorithms that learn the rounding of weights in many steps."""

from typing import Any, Unpack

from torch import nn

from ..options import WalkOptions, checked
from ..reports import LayerwiseReport
from ..solvers.signed_steps import solve_autoround
from ..solvers.up_or_down import solve_adaround
from ..walking.walk import walk_blocks

__all__ = ["adaround", "autoround"]


def adaround(
    model: nn.Module,
    data: object,
    *,
    iterations: int = 150,
    learning_rate: float = 0.1,
    penalty: float = 30.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_up: float = 0.2,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """AdaRound: learn for each weight whether it is rounded up or down.

    All steps are taken on the second moments of a layer's inputs, so that they don't depend on how much data there is.
    With `correct_biases(model, data, reference=...)` after it, it is the best algorithm here for convolutions at 4
    bits. The model is changed in place, as by `gptq`.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        iterations: steps of Adam for each weight.
        learning_rate: of these.
        penalty: what an undecided weight costs, in units of the mean loss of an output when one of its weights goes
            from one level to the other.
        beta: exponent of that penalty at first and at last.
        warm_up: the share of the steps without a penalty.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it. The figure ``undecided`` is the share of weights that were still
        between up and down at the end.

    Raises:
        GraphError: nothing to round, activations without a range, or an invalid setting.

    References:
        Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> report = adaround(model, torch.randn(256, 4) @ torch.randn(4, 16))
        >>> report["0"].figures["after"] < 0.5 * report["0"].figures["before"]
        True
    """
    settings: dict[str, Any] = {
        "iterations": iterations,
        "learning_rate": learning_rate,
        "penalty": penalty,
        "beta": beta,
        "warm_up": warm_up,
    }
    return walk_blocks(
        model,
        data,
        lambda path, problem: solve_adaround(problem, **settings),
        settings=settings,
        name="adaround",
        **checked(adaround, options),
    )


def autoround(
    model: nn.Module,
    data: object,
    *,
    iterations: int = 60,
    learning_rate: float | None = None,
    tune_scales: bool = True,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """AutoRound: tune an offset for each weight and a factor for each scale by the signs of their gradients.

    Half the time of `adaround`, nearly as good, and the best with quantized activations. All steps are taken on the
    second moments of a layer's inputs. The model is changed in place, as by `gptq`, but for the scales, which are those
    that were tuned.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        iterations: steps for each weight.
        learning_rate: the first step; by default 1 / ``iterations``.
        tune_scales: whether scales are tuned, too, where a quantizer allows any.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it.

    Raises:
        GraphError: nothing to round, activations without a range, or an invalid setting.

    References:
        Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> report = autoround(model, torch.randn(256, 4) @ torch.randn(4, 16))
        >>> report["0"].figures["after"] < 0.5 * report["0"].figures["before"]
        True
    """
    settings: dict[str, Any] = {
        "iterations": iterations,
        "learning_rate": learning_rate,
        "tune_scales": tune_scales,
    }
    return walk_blocks(
        model,
        data,
        lambda path, problem: solve_autoround(problem, **settings),
        settings=settings,
        name="autoround",
        **checked(autoround, options),
    )
