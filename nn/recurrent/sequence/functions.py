"""Sequences of recurrent steps as functions: one autograd function, or one operator in a compiled graph, for each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ....qcore import QuantizerError
from ....qcore.aliases import Context
from ....qcore.kernels.composed import MANTISSA_BITS
from ....qcore.tracing import differentiated, transformed
from .definition import defined
from .elman import Elman
from .gated import Gated
from .grids import Steps
from .kernel import Form, Kernel, Tensors, inputs_of
from .long_short_term import LongShortTerm
from .operators import compiled, register

__all__ = ["gru", "lstm", "rnn"]

_LSTM, _GRU = LongShortTerm(), Gated()
_RNN = {"tanh": Elman("tanh"), "relu": Elman("relu")}
for _kernel in (_LSTM, _GRU, *_RNN.values()):
    register(_kernel)
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def lstm(
    x: Tensor,
    sizes: Sequence[int] | None,
    h: Tensor,
    c: Tensor,
    weights: Weights,
    hidden: Steps | None,
    cell: Steps | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps of an LSTM, whose states lie on settled grids.

    Computed in the type of the weights (under autocast, too); in float32 where that is half precision.

    Args:
        x: rows of all steps, one step after the other, as in a `PackedSequence`: (rows, input size).
        sizes: rows of each step, which never grow; None for as many as there are sequences, in every step.
        h: first hidden state, (sequences, hidden size).
        c: first cell, likewise.
        weights: ``w_ih, w_hh, b_ih, b_hh``, as `torch.nn.LSTM` has them; both biases or none.
        hidden: grid of the hidden states.
        cell: grid of the cells.
        reverse: from the last step to the first.

    Returns:
        The hidden states of all steps, (rows, hidden size), the last hidden states and cells, (sequences, hidden size).

    Example:
        >>> x, h, w = torch.ones(3, 1), torch.zeros(2, 1), torch.full((4, 1), 0.5)
        >>> out, h, c = lstm(x, [2, 1], h, h, (w, w, None, None), Steps(torch.tensor(0.25), -4, 3), None, False)
        >>> out.tolist(), h.tolist()
        ([[0.25], [0.25], [0.25]], [[0.25], [0.25]])
    """
    out, last, last_c = _run(_LSTM, (x, h, c), weights, (hidden, cell), sizes, reverse)
    return out, last, last_c


def gru(
    x: Tensor, sizes: Sequence[int] | None, h: Tensor, weights: Weights, hidden: Steps | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """All steps of a GRU, as `lstm` has them.

    Example:
        >>> x, h, w = torch.ones(3, 1), torch.zeros(1, 1), torch.full((3, 1), 0.5)
        >>> gru(x, None, h, (w, w, None, None), Steps(torch.tensor(0.25), -4, 3), False)[0].tolist()
        [[0.25], [0.25], [0.25]]
    """
    out, last = _run(_GRU, (x, h), weights, (hidden,), sizes, reverse)
    return out, last


def rnn(
    x: Tensor,
    sizes: Sequence[int] | None,
    h: Tensor,
    weights: Weights,
    hidden: Steps | None,
    nonlinearity: str,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """All steps of a simple recurrent layer, as `lstm` has them; the nonlinearity is ``"tanh"`` or ``"relu"``.

    Example:
        >>> x, h, w = torch.ones(3, 1), torch.zeros(1, 1), torch.ones(1, 1)
        >>> rnn(x, None, h, (w, w, None, None), Steps(torch.tensor(1.0), 0, 2), "relu", False)[0].tolist()
        [[1.0], [2.0], [2.0]]
    """
    out, last = _run(_RNN[nonlinearity], (x, h), weights, (hidden,), sizes, reverse)
    return out, last


def _run(
    kernel: Kernel,
    flowing: tuple[Tensor, ...],
    weights: Weights,
    grids: Sequence[Steps | None],
    sizes: Sequence[int] | None,
    reverse: bool,
) -> Sequence[Tensor]:
    held = weights[1].dtype
    wide = held if held in MANTISSA_BITS else torch.float32
    device = weights[1].device.type
    cast = torch.is_autocast_enabled(device)
    if cast or wide is not held:
        flowing = tuple(each.to(wide) for each in flowing)
        w_ih, w_hh, b_ih, b_hh = (None if each is None else each.to(wide) for each in weights)
        assert w_ih is not None
        assert w_hh is not None
        weights = w_ih, w_hh, b_ih, b_hh
    for each in flowing:
        if each.dtype is not wide:
            raise QuantizerError(
                f"{kernel.name}: the weights are {held} and the input or a state is {each.dtype}. Convert one of "
                f"them: x.to({held})."
            )
    settings: list[Tensor | None] = []
    ends: list[float] = []
    for grid in grids:
        settings += [None, None] if grid is None else [grid.scale, grid.zero_point]
        ends += [0.0, 0.0] if grid is None else [grid.low, grid.high]
    tensors, form = [flowing[0], *weights, *flowing[1:], *settings], Form(sizes, reverse, ends)
    if cast:
        with torch.autocast(device, enabled=False):
            results = _computed(kernel, tensors, form)
    else:
        results = _computed(kernel, tensors, form)
    return results if wide is held else [each.to(held) for each in results]


def _computed(kernel: Kernel, tensors: Tensors, form: Form) -> Sequence[Tensor]:
    if transformed():
        return defined(kernel, tensors, form)
    learned = torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)
    if torch.compiler.is_compiling():
        return compiled(kernel, tensors, form, learned)
    if learned:
        return SequenceFunction.apply(kernel, form, *tensors)
    results = kernel.forward(inputs_of(tensors, form), keep=False)
    return results.out, *results.last


class SequenceFunction(torch.autograd.Function):
    """``tensors -> results`` of a kernel, see `Kernel`."""

    @staticmethod
    def forward(ctx: Context, kernel: Kernel, form: Form, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        results = kernel.forward(inputs_of(tensors, form), keep=True)
        ctx.kernel, ctx.form, ctx.count = kernel, form, len(tensors)
        ctx.save_for_backward(*tensors, results.out, *results.kept)
        return results.out, *results.last

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpoints count
        tensors, (out, *kept) = saved[: ctx.count], saved[ctx.count :]
        if any(map(differentiated, grads)):
            return None, None, *_again(ctx.kernel, tensors, ctx.form, grads)
        found = ctx.kernel.backward(grads, inputs_of(tensors, ctx.form), out, kept, ctx.needs_input_grad[2:])
        return None, None, *found


def _again(kernel: Kernel, tensors: Tensors, form: Form, grads: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the definition: what can be differentiated again, or mapped."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        own = [each if each is None else each.view_as(each) for each in tensors]  # one may be made from another
        wanted = [each for each in own if each is not None and each.requires_grad]
        results = defined(kernel, own, form)
        reached = [each for each in zip(results, grads, strict=True) if each[0].requires_grad]
        ends, given = [each for each, _ in reached], [each for _, each in reached]
        found = torch.autograd.grad(ends, wanted, given, create_graph=recorded, allow_unused=True)
    gradients = iter(found)
    return [next(gradients) if each is not None and each.requires_grad else None for each in own]
