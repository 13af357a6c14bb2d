"""Loops over time in a program: every step by itself."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...qcore.tracing import loop_steps

__all__ = ["UnrolledLoops"]

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]


class UnrolledLoops:
    """What `bitwright.qcore.tracing.LoopOperators` asks for: as many steps as the example has."""

    def scan(self, step: Step, states: Tensors, inputs: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
        """The steps one by one; each counts as a step of one loop, so that calls have the numbers of the recording."""
        collected: list[Tensors] = []
        with loop_steps() as begin:
            for number, parts in enumerate(zip(*(each.unbind(0) for each in inputs), strict=True)):
                begin(number)
                states, outputs = step(states, parts, constants)
                collected.append(outputs)
        return states, tuple(map(torch.stack, zip(*collected, strict=True)))

    def recurrence(
        self, mode: str, x: Tensor, states: Tensors, weights: Sequence[Tensor], bias: bool, bidirectional: bool
    ) -> Tensors:
        """The operator of torch itself for all layers."""
        layers = states[0].shape[0] // (2 if bidirectional else 1)
        kernel = getattr(torch._VF, mode.lower())
        start = states if mode == "LSTM" else states[0]
        return tuple(kernel(x, start, list(weights), bias, layers, 0.0, False, bidirectional, False))
