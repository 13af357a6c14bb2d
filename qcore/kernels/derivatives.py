"""Derivatives of what is rounded and clipped, in torch's own operations.

What is built of these can be differentiated any number of times, backward and forward, mapped by `torch.func` and
traced by `torch.jit`. None relies on the gradient of `torch.clamp`, which differs between versions of torch where a
value lies on a bound.
"""

import torch
from torch import Tensor

from ..tracing import recording

__all__ = ["clamp_through", "straight_through"]


def straight_through(x: Tensor, values: Tensor) -> Tensor:
    """The values, with the derivative of ``x``; none where ``x`` is infinite or not a number.

    Example:
        >>> x = torch.tensor([0.6, 1.4], requires_grad=True)
        >>> straight_through(x, x.round())
        tensor([1., 1.], grad_fn=<AddBackward0>)
    """
    if not recording():
        return values
    finite = torch.nan_to_num(x, 0.0, 0.0, 0.0)
    return values.detach() + (finite - finite.detach())


def clamp_through(x: Tensor, low: float | Tensor | None = None, high: float | Tensor | None = None) -> Tensor:
    """`torch.clamp` whose gradient is 1 from ``low`` to ``high``, both included, and 0 outside.

    Args:
        x: the values.
        low: the smallest, broadcastable to ``x``. Where it is a tensor, the gradient of what was clipped goes to it.
        high: the largest.

    Example:
        >>> x = torch.tensor([-9.0, -8.0, 7.0, 9.0], requires_grad=True)
        >>> torch.autograd.grad(clamp_through(x, -8, 7).sum(), x)
        (tensor([0., 1., 1., 0.]),)
    """
    if low is not None:
        x = torch.where(x < low, low, x)
    return x if high is None else torch.where(x > high, high, x)
