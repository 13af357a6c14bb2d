"""The general loop of recurrent layers: one step after the other, or one operator of an exported file."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...qcore.tracing import loop_steps, loops_become_operators

__all__ = ["Tensors", "scan"]

Tensors = tuple[Tensor, ...]
StepFunction = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(step: StepFunction, states: Tensors, inputs: Tensors, constants: Tensors = ()) -> tuple[Tensors, Tensors]:
    """Run a step over time, from the first to the last.

    A Python loop. While a file is exported that has loops (ONNX), one operator instead, whose body is the step: so the
    number of steps stays open. There the step may use no tensors other than those it is given.

    Args:
        step: called as ``step(states, inputs, constants)``; returns the next states and the outputs of the step. The
            next states have the shapes and types of the states.
        states: what the first step starts from.
        inputs: time is their first dimension, (T, ...); the step gets one index of it.
        constants: what every step gets as it is, such as weights.

    Returns:
        The states after the last step, and the outputs, stacked along a new first dimension.

    Example:
        >>> def step(states, inputs, constants):
        ...     total = states[0] + inputs[0]
        ...     return (total,), (total * constants[0],)
        >>> scan(step, (torch.tensor(0.0),), (torch.tensor([1.0, 2.0, 3.0]),), (torch.tensor(10.0),))
        ((tensor(6.),), (tensor([10., 30., 60.]),))
    """
    if loops_become_operators():
        return _operator(step, states, inputs, constants)
    outputs: list[Tensors] = []
    slices = zip(*(each.unbind(0) for each in inputs), strict=True)
    if torch.compiler.is_compiling():
        for given in slices:
            states, results = step(states, given, constants)
            outputs.append(results)
    else:
        with loop_steps() as begin:
            for number, given in enumerate(slices):
                begin(number)
                states, results = step(states, given, constants)
                outputs.append(results)
    return states, tuple(torch.stack(each) for each in zip(*outputs, strict=True))


def _operator(step: StepFunction, states: Tensors, inputs: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
    """The loop as torch's operator, called past its wrapper: that runs dynamo, which takes no placeholders of ONNX.

    The operator has no derivative in this form, and refuses tensors that share memory; the copies are none in the file.
    """
    count, split = len(states), len(states) + len(inputs)
    with loop_steps() as begin:

        def body(*given: Tensor) -> Tensors:
            begin(0)  # whenever it is traced
            after, results = step(given[:count], given[count:split], given[split:])
            return (*_copies(after), *_copies(results))

        found = torch.ops.higher_order.scan(body, [*_copies(states)], [*_copies(inputs)], _copies(constants))
    return tuple(found[:count]), tuple(found[count:])


def _copies(tensors: Tensors) -> Tensors:
    return tuple(each.detach().clone() for each in tensors)
