"""The definition of a sequence: one step after the other in torch's own operations.

It can be differentiated any number of times, and mapped by `torch.func`; the kernels are tested against it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....qcore.kernels.composed import composed_fake_quant
from .kernel import Form, Kernel, Tensors, inputs_of

__all__ = ["defined"]


def defined(kernel: Kernel, tensors: Tensors, form: Form) -> list[Tensor]:
    """The results of a kernel, step by step.

    Args:
        kernel: the kind of step.
        tensors: a flat list, see `Inputs`.
        form: of the sequence.

    Example:
        >>> from .elman import Elman
        >>> x, h, w = torch.ones(2, 1), torch.zeros(1, 1), torch.eye(1)
        >>> out, last = defined(Elman("relu"), [x, w, w, None, None, h, None, None], Form(None, False, (0, 0)))
        >>> out.tolist(), last.tolist()
        ([[1.0], [2.0]], [[2.0]])
    """
    inputs, settings = inputs_of(tensors, form), tensors[5 + kernel.states :]
    ends, order, first = form.ends, inputs.order, inputs.states
    grids = [_mover(settings[k], settings[k + 1], ends[k : k + 2]) for k in range(0, len(settings), 2)]
    states, found = [state[:0] for state in first], []
    for rows in order.each(inputs.x):
        size = rows.shape[0]
        states = [order.resized(state, start, size) for state, start in zip(states, first, strict=True)]
        states = kernel.step(rows, inputs._replace(states=states), grids)
        found.append(states)
    if not found:
        return [inputs.x.new_empty(0, first[0].shape[1]), *first]
    outs = [states[0] for states in found]
    lasts = [order.last([states[k] for states in found], first[k]) for k in range(kernel.states)]
    return [torch.cat(outs[::-1] if form.reverse else outs), *lasts]


def _mover(scale: Tensor | None, zero_point: Tensor | None, ends: Sequence[float]) -> Callable[[Tensor], Tensor]:
    if scale is None:
        return lambda x: x
    low, high = map(int, ends)
    return lambda x: composed_fake_quant(x, scale, low, high, zero_point)
