"""The general loop over the steps of a sequence."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...qcore.tracing import loop_operators, loop_steps

__all__ = ["Step", "Tensors", "scan"]

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]  # (states, inputs, constants): states, outputs


def scan(step: Step, states: Tensors, inputs: Tensors, constants: Tensors = ()) -> tuple[Tensors, Tensors]:
    """Call a function for each step of a sequence, each time with the states that the call before left.

    In Python, one step after the other; while a file is exported that has loops, as one operator whose body is the
    step, so that the number of steps stays open. There the step may use no tensors but those it gets.

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
    operators = loop_operators()
    if operators is not None:
        return operators.scan(step, states, inputs, constants)
    collected = []
    slices = zip(*(each.unbind(0) for each in inputs), strict=True)
    if torch.compiler.is_compiling():
        for parts in slices:
            states, outputs = step(states, parts, constants)
            collected.append(outputs)
    else:
        with loop_steps() as begin:
            for number, parts in enumerate(slices):
                begin(number)
                states, outputs = step(states, parts, constants)
                collected.append(outputs)
    return states, tuple(map(torch.stack, zip(*collected, strict=True)))
