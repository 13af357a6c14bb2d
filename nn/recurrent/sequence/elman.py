"""All steps of a simple recurrent layer (Elman) at once."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .grids import grid_grads
from .kernel import Inputs, Kernel, Results, Tensors
from .products import Product, product, weight_grad

__all__ = ["Elman"]


class Elman(Kernel):
    """The steps of a simple recurrent layer.

    Args:
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Example:
        >>> Elman("relu").name
        'rnn_relu'
    """

    states = 1

    def __init__(self, nonlinearity: str) -> None:
        self.name = f"rnn_{nonlinearity}"
        self._nonlinearity = nonlinearity

    def forward(self, inputs: Inputs, keep: bool) -> Results:
        """The results; kept are the states before their grid."""
        x, w_ih, w_hh, _, _, (h,), (hidden,), order = inputs
        raw = product(x, w_ih, inputs.total_bias())
        out = raw if hidden is None or not keep else torch.empty_like(raw)
        outs, recurrent, div = order.each(out), Product(w_hh, h.shape[0]), torch.div
        activate = _INPLACE[self._nonlinearity]
        h_now = order.started(h)
        for turn, before, h_next in zip(order.turns(), order.each(raw), outs, strict=True):
            recurrent.add_to(before, h_now)
            activate(before)
            if hidden is not None:
                div(before, hidden.scale, out=h_next).round_().clamp_(hidden.low, hidden.high).mul_(hidden.scale)
            h_now = h_next if turn is None else order.resized(h_next, h, turn)
        return Results(out, [order.last(outs, h)], [None if raw is out else raw] if keep else [])

    def widths(self, grids: Sequence[bool]) -> list[int]:
        """The columns of what `forward` keeps."""
        return [*map(int, grids)]

    def backward(
        self, grads: Sequence[Tensor], inputs: Inputs, out: Tensor, kept: Tensors, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one."""
        d_out, d_h = grads
        x, w_ih, w_hh, _, _, (h,), (hidden,), order = inputs
        (raw,) = kept
        values = out if raw is None else raw
        flow = _SLOPES[self._nonlinearity](values)  # what the gradient of a state is multiplied with, then the product
        if hidden is not None and raw is not None:
            hidden.passed(flow, raw, out=flow)
        grad = torch.empty_like(out) if needed[6] or needed[7] else None
        d_states = order.scratch(x, out.shape[1])[0] if grad is None else order.each(grad)
        recurrent = Product(w_hh.t(), h.shape[0])
        added, parts = order.each(d_out), order.each(flow)
        first, sizes, turns, added_to = torch.empty_like(h), order.sizes, order.turns(), False
        to_h = order.ended(d_h)
        for step in range(len(sizes) - 1, -1, -1):
            state, before = d_states[step], step - 1
            if not added_to:
                torch.add(to_h, added[step], out=state)
            parts[step].mul_(state)
            added_to = step > 0 and turns[before] is None
            if added_to:
                recurrent.sum(added[before], parts[step], out=d_states[before])
            else:
                to_h = recurrent.of(parts[step])
                if step:
                    to_h = order.returned(to_h, d_h, first, sizes[before])
        first[: len(to_h)] = to_h
        d_bias = flow.sum(0) if needed[3] or needed[4] else None
        return [
            product(flow, w_ih.t()) if needed[0] else None,
            weight_grad(flow, x).contiguous() if needed[1] else None,
            order.recurrent_grad(flow, out, h).contiguous() if needed[2] else None,
            d_bias if needed[3] else None,
            d_bias if needed[4] else None,
            first if needed[5] else None,
            *grid_grads(hidden, grad, raw, out, needed[6:8]),
        ]

    def step(self, x: Tensor, inputs: Inputs, grids: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """One step in torch's own operations."""
        total = F.linear(x, inputs.w_ih, inputs.b_ih) + F.linear(inputs.states[0], inputs.w_hh, inputs.b_hh)
        return [grids[0](_FUNCTIONS[self._nonlinearity](total))]


def _slope_of_tanh(values: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(values.new_ones(()).expand_as(values), values)


_FUNCTIONS = {"tanh": torch.tanh, "relu": torch.relu}
_INPLACE = {"tanh": Tensor.tanh_, "relu": Tensor.relu_}
_SLOPES = {"tanh": _slope_of_tanh, "relu": lambda values: (values > 0).to(values.dtype)}
