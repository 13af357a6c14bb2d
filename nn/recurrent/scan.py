"""The general loop over the steps of a sequence."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Step", "Tensors", "scan"]

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]  # (states, inputs, constants): states, outputs


def scan(step: Step, states: Tensors, inputs: Tensors, constants: Tensors = ()) -> tuple[Tensors, Tensors]:
    """Call a function for each step of a sequence, each time with the states that the call before left.

    Args:
        step: ``(states, inputs, constants)`` to ``(states, outputs)``, all of them tuples of tensors.
        states: those that the first call gets.
        inputs: (T, ...) each, T at least 1; every call gets one of the T parts.
        constants: what every call gets.

    Returns:
        The states that the last call left, and all outputs, stacked: (T, ...) each.

    Example:
        >>> def add(states, inputs, constants):
        ...     total = states[0] + inputs[0] * constants[0]
        ...     return (total,), (total,)
        >>> scan(add, (torch.zeros(()),), (torch.tensor([1.0, 2.0, 3.0]),), (torch.tensor(10.0),))
        ((tensor(60.),), (tensor([10., 30., 60.]),))
    """
    collected = []
    for parts in zip(*(each.unbind(0) for each in inputs), strict=True):
        states, outputs = step(states, parts, constants)
        collected.append(outputs)
    return states, tuple(map(torch.stack, zip(*collected, strict=True)))
