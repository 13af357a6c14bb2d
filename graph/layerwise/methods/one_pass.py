"""Algorithms that go once over the columns of a weight."""

from dataclasses import replace
from typing import Literal, Unpack

from torch import nn

from ...errors import GraphError
from ..options import WalkOptions, checked
from ..problem import Problem, Solution
from ..reports import LayerwiseReport
from ..solvers.correction import solve_qronos
from ..solvers.error_feedback import solve_gptq
from ..solvers.path_following import solve_gpfq
from ..walking.walk import walk_blocks

__all__ = ["gpfq", "gptq", "qronos"]


def gptq(
    model: nn.Module,
    data: object,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    groups: Literal["static", "dynamic"] = "static",
    block_size: int = 128,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """GPTQ: round the weights of a quantized model so that the columns of each make up for one another's errors.

    It looks for a small error of every layer's output on the inputs that the quantized model gives it. It needs no
    inputs of the float model, and is the first choice for transformers. The model is changed in place: its weights lie
    on the grids that they had, which stay, see `GridQuant.fix`. Call `correct_biases(model, data, reference=...)`
    afterwards where layers have biases; with GPTQ it helps less than with other algorithms.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches. There should be four inputs (samples times positions or tokens) for
            each column of a matrix; where there are fewer, the report says so.
        act_order: begin with the inputs of most power.
        damping: what is added to the power of each input, in units of the mean of all.
        groups: where weights have a scale for each group of inputs: ``"static"`` keeps the scales that they have,
            ``"dynamic"`` takes them from the weights as they have become when their turn comes, which is a little
            better, and slower.
        block_size: columns that are worked on at once; it decides nothing but the time.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it.

    Raises:
        GraphError: nothing to round, activations without a range, or an invalid setting.

    References:
        Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> x = torch.randn(256, 4) @ torch.randn(4, 16)
        >>> report = gptq(model, x)
        >>> report["0"].action, report["0"].figures["after"] < 0.5 * report["0"].figures["before"]
        ('gptq', True)
    """
    _check("gptq", "act_order", act_order, (True, False))
    _check("gptq", "groups", groups, ("static", "dynamic"))

    def solve(path: str, problem: Problem) -> Solution:
        rescale = problem.rescale if groups == "dynamic" else None
        found = solve_gptq(problem, act_order=act_order, damping=damping, block_size=block_size, rescale=rescale)
        if groups == "dynamic" and rescale is None:
            found = _noted(found, "its scales are not those of groups of inputs, or are fixed: they stay")
        return _with_rows(found, problem)

    settings = {"act_order": act_order, "damping": damping, "groups": groups}
    return walk_blocks(model, data, solve, float_inputs=False, settings=settings, name="gptq", **checked(gptq, options))


def gpfq(
    model: nn.Module,
    data: object,
    *,
    act_order: bool = True,
    block_size: int = 128,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """GPFQ: choose each column of a weight for what the output of the layer is to be up to there.

    It repairs what quantization did to the inputs of a layer, too, as it aims at the output of the float model. It
    needs no inverse, and can't fail. The model is changed in place, as by `gptq`.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        act_order: begin with the inputs of most power.
        block_size: columns that are worked on at once; it decides nothing but the time.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it.

    Raises:
        GraphError: nothing to round, activations without a range, or an invalid setting.

    References:
        Lybrand and Saab, "A Greedy Algorithm for Quantizing Neural Networks", 2021.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> report = gpfq(model, torch.randn(256, 4) @ torch.randn(4, 16))
        >>> report["0"].figures["after"] < 0.5 * report["0"].figures["before"]
        True
    """
    return walk_blocks(
        model,
        data,
        lambda path, problem: solve_gpfq(problem, act_order=act_order, block_size=block_size),
        settings={"act_order": act_order},
        name="gpfq",
        **checked(gpfq, options),
    )


def qronos(
    model: nn.Module,
    data: object,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    block_size: int = 128,
    **options: Unpack[WalkOptions],
) -> LayerwiseReport:
    """Qronos: round column by column, and refit what is left to the output that the float model has.

    GPTQ that repairs what quantization did to the inputs of a layer, too: the best algorithm of one pass for
    convolutions at 4 bits. It wants more data than `gptq`. The model is changed in place, as by `gptq`.

    Args:
        model: a quantized model with calibrated activations.
        data: one batch, or an iterable of batches.
        act_order: begin with the inputs of most power.
        damping: what is added to the power of each input, in units of the mean of all.
        block_size: columns that are worked on at once; it decides nothing but the time.
        **options: see `WalkOptions`.

    Returns:
        What was done to each weight. ``print`` it.

    Raises:
        GraphError: nothing to round, activations without a range, or an invalid setting.

    References:
        Zhang et al., "Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization", 2025.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(qnn.QuantLinear(16, 8, weight_bit_width=3)).eval()
        >>> report = qronos(model, torch.randn(256, 4) @ torch.randn(4, 16))
        >>> report["0"].figures["after"] < 0.5 * report["0"].figures["before"]
        True
    """

    def solve(path: str, problem: Problem) -> Solution:
        found = solve_qronos(problem, act_order=act_order, damping=damping, block_size=block_size)
        return _with_rows(found, problem)

    settings = {"act_order": act_order, "damping": damping}
    return walk_blocks(model, data, solve, settings=settings, name="qronos", **checked(qronos, options))


ROWS_FOR_EACH_COLUMN = 4  # below which errors are fitted to the data


def _with_rows(found: Solution, problem: Problem) -> Solution:
    """Say so where there is little data."""
    columns = problem.weight.shape[-1]
    if problem.rows >= ROWS_FOR_EACH_COLUMN * columns:
        return found
    return _noted(found, f"{problem.rows} inputs for {columns} columns are few; {4 * columns} would do")


def _noted(found: Solution, note: str) -> Solution:
    return replace(found, note=f"{found.note}; {note}" if found.note else note)


def _check(asked: str, name: str, given: object, possible: tuple[object, ...]) -> None:
    if given not in possible:
        expected = " or ".join(map(repr, possible))
        raise GraphError(f"{asked}: {name}={given!r} is not possible: expected {expected}.")
