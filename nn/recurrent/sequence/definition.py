"""The definition of a sequence: one step after the other in torch's own operations.

It can be differentiated any number of times, and mapped by `torch.func`; the kernels are tested against it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ....qcore.kernels.composed import composed_fake_quant
from .kernel import Form, Kernel, Tensors
from .order import Order

__all__ = ["defined"]


def defined(kernel: Kernel, tensors: Tensors, form: Form) -> list[Tensor]:
    """The results of a kernel, step by step.

    Args:
        kernel: the kind of step.
        tensors: as `Kernel` says.
        form: of the sequence.

    Example:
        >>> from .elman import Elman
        >>> x, h, w = torch.ones(2, 1), torch.zeros(1, 1), torch.eye(1)
        >>> out, last = defined(Elman("relu"), [x, h, w, w, None, None, None, None], Form(None, False, ()))
        >>> out.tolist(), last.tolist()
        ([[1.0], [2.0]], [[2.0]])
    """
    count = kernel.states
    x, *rest = tensors
    assert x is not None
    first = [state for state in rest[:count] if state is not None]
    weights, settings = rest[count : count + 4], rest[count + 4 :]
    grids = [_mover(*settings[2 * k : 2 * k + 2], form.ends[2 * k : 2 * k + 2]) for k in range(count)]
    order = Order(x.shape[0], first[0].shape[0], form.sizes, form.reverse)
    states, found = [state[:0] for state in first], []
    for rows in order.each(x):
        size = rows.shape[0]
        states = [order.resized(state, start, size) for state, start in zip(states, first, strict=True)]
        states = kernel.step(rows, states, weights, grids)
        found.append(states)
    if not found:
        return [x.new_empty(0, first[0].shape[1]), *first]
    outs = [states[0] for states in found]
    lasts = [order.last([states[k] for states in found], first[k]) for k in range(count)]
    return [torch.cat(outs[::-1] if form.reverse else outs), *lasts]


def _mover(scale: Tensor | None, zero_point: Tensor | None, ends: Sequence[float]) -> Callable[[Tensor], Tensor]:
    if scale is None:
        return lambda x: x
    low, high = map(int, ends)
    return lambda x: composed_fake_quant(x, scale, low, high, zero_point)
