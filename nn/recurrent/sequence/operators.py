"""Sequences as single operators, under `torch.compile`: a compiler would unroll every step, for minutes.

A graph holds ``bitwright::lstm_sequence`` and its backward, and the same of ``gru``, ``rnn_tanh`` and ``rnn_relu``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....qcore.aliases import Arguments, Context, Operator
from .kernel import Form, Kernel, Tensors, inputs_of

__all__ = ["compiled", "register"]

_TENSORS = "Tensor x, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh"
_STATES = {
    1: "Tensor h, Tensor? scale, Tensor? zero_point",
    2: "Tensor h, Tensor c, Tensor? scale, Tensor? zero_point, Tensor? scale_c, Tensor? zero_point_c",
}
_FORM = "SymInt[]? sizes, bool reverse, float[] ends"


def compiled(kernel: Kernel, tensors: Tensors, form: Form, learned: bool) -> Sequence[Tensor]:
    """The results of a kernel, as one operator of a graph.

    Args:
        kernel: a kind of step that is registered.
        tensors: a flat list, see `Inputs`.
        form: of the sequence.
        learned: whether there will be a backward.
    """
    sizes = None if form.sizes is None else list(form.sizes)
    operator = _operator(f"{kernel.name}_sequence")
    return operator(*tensors, sizes, form.reverse, list(form.ends), learned)[: 1 + kernel.states]


def register(kernel: Kernel) -> None:
    """Register the operators of a kernel. What doesn't exist (a gradient, a grid) is an empty tensor in its results."""
    flat, count, results = f"{_TENSORS}, {_STATES[kernel.states]}", 5 + 3 * kernel.states, 1 + kernel.states
    name = f"bitwright::{kernel.name}_sequence"

    def forward(*given: Any) -> list[Tensor]:
        tensors, (*form, keep) = given[:count], given[count:]
        found = kernel.forward(inputs_of(tensors, Form(*form)), keep)
        return [found.out, *found.last, *_present(found.kept, found.out)]

    def forward_shapes(*given: Any) -> list[Tensor]:
        x, _, w_hh, _, _, *rest = given[:count]
        rows, width, states, keep = x.shape[0], w_hh.shape[1], rest[: kernel.states], given[-1]
        grids = [scale is not None for scale in rest[kernel.states :: 2]]
        kept = [x.new_empty((rows, each * width) if each else 0) for each in kernel.widths(grids)] if keep else []
        return [x.new_empty(rows, width), *(x.new_empty(each.shape) for each in states), *kept]

    def backward(grads: list[Tensor], *given: Any) -> list[Tensor]:
        tensors, (out, kept, *form, needed) = given[:count], given[count:]
        there = [each if each.numel() or not out.numel() else None for each in kept]
        found = kernel.backward(grads, inputs_of(tensors, Form(*form)), out, there, needed)
        shared = found[3]
        if shared is not None and shared is found[4]:
            found[4] = shared.clone()  # an operator's results share no memory
        return _present(found, out)

    def backward_shapes(grads: list[Tensor], *given: Any) -> list[Tensor]:
        tensors, out, needed = given[:count], given[count], given[-1]
        like = zip(tensors, needed, strict=True)
        return [each.new_empty(each.shape) if wanted else out.new_empty(0) for each, wanted in like]

    def keep(ctx: Context, inputs: Arguments, output: list[Tensor]) -> None:
        ctx.form = inputs[count:-1]
        ctx.save_for_backward(*inputs[:count], output[0], *output[results:])

    def gradients(ctx: Context, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, (out, *kept) = saved[:count], saved[count:]
        needed = list(ctx.needs_input_grad[:count])
        found = _operator(f"{kernel.name}_sequence_backward")(grads[:results], *tensors, out, kept, *ctx.form, needed)
        return *(each if wanted else None for each, wanted in zip(found, needed, strict=True)), None, None, None, None

    schema = f"(Tensor[] grads, {flat}, Tensor out, Tensor[] kept, {_FORM}, bool[] needed) -> Tensor[]"
    in_backward = torch.library.custom_op(f"{name}_backward", backward, mutates_args=(), schema=schema)
    in_backward.register_fake(backward_shapes)
    schema = f"({flat}, {_FORM}, bool keep) -> Tensor[]"
    in_forward = torch.library.custom_op(name, forward, mutates_args=(), schema=schema)
    in_forward.register_fake(forward_shapes)
    in_forward.register_autograd(gradients, setup_context=keep)


def _operator(name: str) -> Operator:
    return getattr(torch.ops.bitwright, name).default


def _present(tensors: Tensors, like: Tensor) -> list[Tensor]:
    return [like.new_empty(0) if each is None else each for each in tensors]
