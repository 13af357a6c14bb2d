"""Loops over time as operators of ONNX: Scan, and LSTM, GRU and RNN where no step quantizes anything."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ....qcore.tracing import loop_steps

__all__ = ["OnnxLoops"]

Tensors = tuple[Tensor, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]


class _Kind(NamedTuple):
    """An operator of ONNX: which of torch's blocks of rows it wants where, and its settings."""

    operator: str
    blocks: tuple[int, ...] = (0,)
    settings: tuple[tuple[str, int], ...] = ()
    activation: str | None = None


_KINDS = {
    "LSTM": _Kind("LSTM", (0, 3, 1, 2)),  # torch: i, f, g, o; ONNX: i, o, f, c
    "GRU": _Kind("GRU", (1, 0, 2), (("linear_before_reset", 1),)),  # r, z, n; z, r, h
    "RNN_TANH": _Kind("RNN", activation="Tanh"),
    "RNN_RELU": _Kind("RNN", activation="Relu"),
}


class OnnxLoops:
    """What `bitwright.qcore.tracing.LoopOperators` asks for, while torch.export traces for ONNX."""

    def scan(self, step: Step, states: Tensors, inputs: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
        """Torch's operator, which its exporter writes as Scan.

        It is called past its wrapper, which runs dynamo: that takes no placeholders. In this form it has no derivative,
        and refuses tensors that share memory. The copies are none in the file.
        """
        count, split = len(states), len(states) + len(inputs)
        with loop_steps() as begin:

            def body(*given: Tensor) -> Tensors:
                begin(0)  # whenever it is traced
                after, results = step(given[:count], given[count:split], given[split:])
                return (*_copies(after), *_copies(results))

            found = torch.ops.higher_order.scan(body, [*_copies(states)], [*_copies(inputs)], _copies(constants))
        return tuple(found[:count]), tuple(found[count:])

    def recurrence(
        self, mode: str, x: Tensor, states: Tensors, weights: Sequence[Tensor], bias: bool, bidirectional: bool
    ) -> Tensors:
        """LSTM, GRU and RNN nodes; torch's exporter would fix the number of steps, and write steps one by one."""
        kind, directions, parts = _KINDS[mode], 2 if bidirectional else 1, 4 if bias else 2
        ends: list[Tensors] = []
        for start in range(0, states[0].shape[0], directions):
            first = start * parts
            cells = [weights[at : at + parts] for at in range(first, first + directions * parts, parts)]
            x, *last = _node(kind, x, tuple(each[start : start + directions] for each in states), cells)
            ends.append(tuple(last))
        return (x, *(torch.cat(each) for each in zip(*ends, strict=True)))


def _node(kind: _Kind, x: Tensor, states: Tensors, cells: Sequence[Sequence[Tensor]]) -> Tensors:
    """One layer, in both directions if it has two: its output (T, B, directions * H), and the states at the end."""
    directions, batch, size = states[0].shape
    weights = [torch.stack([_ordered(cell[at], kind) for cell in cells]) for at in (0, 1)]
    biases = [torch.cat([_ordered(each, kind) for each in cell[2:]]) for cell in cells if len(cell) > 2]
    settings: dict[str, Any] = {
        "hidden_size": int(size),
        "direction": "forward" if directions == 1 else "bidirectional",
        **dict(kind.settings),
    }
    if kind.activation is not None:
        settings["activations"] = [kind.activation] * directions
    steps = x.shape[0]
    y, *last = torch.onnx.ops.symbolic_multi_out(
        kind.operator,
        (x, *weights, torch.stack(biases) if biases else None, None, *states),
        settings,
        dtypes=[x.dtype] * (1 + len(states)),
        shapes=[(steps, directions, batch, size), *(each.shape for each in states)],
    )
    return (y.transpose(1, 2).flatten(2), *last)


def _ordered(parameter: Tensor, kind: _Kind) -> Tensor:
    """The rows of a parameter, its blocks in ONNX's order."""
    size = parameter.shape[0] // len(kind.blocks)
    blocks = [parameter[at * size : (at + 1) * size] for at in kind.blocks]
    return torch.cat(blocks) if len(blocks) > 1 else parameter


def _copies(tensors: Tensors) -> Tensors:
    return tuple(each.detach().clone(memory_format=torch.contiguous_format) for each in tensors)
