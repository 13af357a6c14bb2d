"""Recurrent layers that compute their steps one by one, so that what meets their weights can be seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ....nn.recurrent.cells import RecurrentCell
from ....nn.recurrent.recurrent_layer import RecurrentLayer

__all__ = ["unrolled"]


@contextmanager
def unrolled(model: nn.Module) -> Iterator[None]:
    """No kernel computes several steps, or a whole step, of a recurrent layer for the length of the block.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLSTM(2, 2)
        >>> with unrolled(layer):
        ...     print(layer._has_kernel())
        False
        >>> layer._has_kernel()
        True
    """
    instead: list[tuple[nn.Module, dict[str, Callable[..., Any]]]] = []
    for module in model.modules():
        if isinstance(module, RecurrentLayer):
            instead.append((module, {"_has_kernel": lambda: False, "_has_sequence": lambda inside: False}))
        elif isinstance(module, RecurrentCell):
            instead.append((module, {"_kernel": _step_of(module)}))
    before = [(module, {name: vars(module).get(name) for name in each}) for module, each in instead]
    try:
        for module, each in instead:
            vars(module).update(each)
        yield
    finally:
        for module, each in before:
            for name, former in each.items():
                vars(module).pop(name, None)
                if former is not None:
                    vars(module)[name] = former


def _step_of(cell: RecurrentCell) -> Callable[..., Any]:
    """What a cell's kernel computes, by its step."""

    def computed(
        x: Tensor, start: Any, weight: Tensor, weight_hh: Tensor, bias: Tensor | None, bias_hh: Tensor | None
    ) -> tuple[Tensor, ...]:
        states = (start,) if isinstance(start, Tensor) else tuple(start)
        constants = (weight_hh,) if bias_hh is None else (weight_hh, bias_hh)
        return cell._step({}).states_after(states, F.linear(x, weight, bias), constants)

    return computed
