"""All steps of a GRU at once.

Every gradient of a step is that of its result times something that depends on no later step: in backward a step is one
product of all of them, and one matrix product.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .grids import grid_grads
from .kernel import Inputs, Kernel, Results, Tensors
from .products import Product, product, weight_grad

__all__ = ["Gated"]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Gated(Kernel):
    """The steps of a GRU.

    Example:
        >>> Gated().name
        'gru'
    """

    name = "gru"
    states = 1

    def forward(self, inputs: Inputs, keep: bool) -> Results:
        """The results; kept are the gates, states less candidates, and states before their grid."""
        x, w_ih, w_hh, b_ih, b_hh, (h,), (hidden,), order = inputs
        rows, width = x.shape[0], w_hh.shape[1]
        table = x.new_empty(rows, 4 * width)  # reset, update, the state's part of the candidate, the candidate
        two, part, last = table[:, : 2 * width], table[:, 2 * width : 3 * width], table[:, 3 * width :]
        total = inputs.total_bias()
        bias = None if total is None or b_ih is None else torch.cat([total[: 2 * width], b_ih[2 * width :]])
        gates = product(x, w_ih, bias)
        two.copy_(gates[:, : 2 * width])
        last.copy_(gates[:, 2 * width :])
        part.copy_(part.new_zeros(()) if b_hh is None else b_hh[2 * width :])
        recurrent = Product(w_hh, h.shape[0])

        out = x.new_empty(rows, width)
        less = x.new_empty(rows, width) if keep else None
        raw = x.new_empty(rows, width) if keep and hidden is not None else None
        outs, turns = order.each(out), order.turns()
        scratch = order.scratch(x, width)[0]
        h_now = order.started(h)
        sub, mul, div = torch.sub, torch.mul, torch.div
        steps = zip(
            turns,
            order.each(table[:, : 3 * width]),
            order.each(two),
            order.each(table[:, :width]),
            order.each(table[:, width : 2 * width]),
            order.each(part),
            order.each(last),
            scratch,
            scratch if less is None else order.each(less),
            outs if raw is None else order.each(raw),
            outs,
            strict=True,
        )
        for turn, three, gates, reset, update, of_state, candidate, memory, difference, before, h_next in steps:
            recurrent.add_to(three, h_now)
            gates.sigmoid_()
            candidate.add_(mul(reset, of_state, out=memory)).tanh_()
            mul(sub(h_now, candidate, out=difference), update, out=before).add_(candidate)
            if hidden is not None:
                div(before, hidden.scale, out=h_next).round_().clamp_(hidden.low, hidden.high).mul_(hidden.scale)
            h_now = h_next if turn is None else order.resized(h_next, h, turn)
        return Results(out, [order.last(outs, h)], [table, less, raw] if keep else [])

    def widths(self, grids: Sequence[bool]) -> list[int]:
        """The columns of what `forward` keeps."""
        return [4, 1, *map(int, grids)]

    def backward(
        self, grads: Sequence[Tensor], inputs: Inputs, out: Tensor, kept: Tensors, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one."""
        d_out, d_h = grads
        x, w_ih, w_hh, _, _, (h,), (hidden,), order = inputs
        table, less, raw = kept
        assert table is not None
        assert less is not None
        rows, width = x.shape[0], w_hh.shape[1]

        # What the gradient of a state is multiplied with, and then the products: the gradients of reset and update
        # gate, of the state's part of the candidate, of the candidate and, directly, of the state before
        flow = x.new_empty(rows, 5 * width)
        of_reset, of_update, of_part, of_candidate, of_state = flow.split(width, 1)
        reset, update, part, candidate = table.split(width, 1)
        _tanh_backward(1 - update, candidate, grad_input=of_candidate)
        _sigmoid_backward(less, update, grad_input=of_update)
        of_state.copy_(update)
        torch.mul(of_candidate, reset, out=of_part)
        _sigmoid_backward(part, reset, grad_input=of_reset).mul_(of_candidate)
        if hidden is not None and raw is not None:
            each = flow.view(rows, 5, width)
            hidden.passed(each, raw.unsqueeze(1), out=each)

        grad = x.new_empty(rows, width) if needed[6] or needed[7] else None
        d_states = order.scratch(x, width)[0] if grad is None else order.each(grad)
        added, parts, cells = order.each(d_out), order.each(flow[:, : 3 * width]), order.each(of_state)
        views = order.each(flow.view(rows, 5, width).transpose(0, 1), 1)
        first, sizes, turns, added_to = torch.empty_like(h), order.sizes, order.turns(), False
        to_h = order.ended(d_h)
        recurrent = Product(w_hh.t(), h.shape[0])
        for step in range(len(sizes) - 1, -1, -1):
            state, before = d_states[step], step - 1
            if not added_to:
                torch.add(to_h, added[step], out=state)
            views[step].mul_(state)
            added_to = step > 0 and turns[before] is None
            if added_to:
                torch.add(added[before], cells[step], out=d_states[before])
                recurrent.add_to(d_states[before], parts[step])
            else:
                to_h = cells[step] + recurrent.of(parts[step])
                if step:
                    to_h = order.returned(to_h, d_h, first, sizes[before])
        first[: len(to_h)] = to_h

        d_two, d_parts = flow[:, : 2 * width], flow[:, : 3 * width]
        d_x = d_w = None
        if needed[0]:
            d_x = product(d_two, w_ih[: 2 * width].t()).add_(product(of_candidate, w_ih[2 * width :].t()))
        if needed[1]:
            d_w = torch.cat([weight_grad(d_two, x), weight_grad(of_candidate, x)])
        sums = flow[:, : 4 * width].sum(0) if needed[3] or needed[4] else flow.new_empty(0)
        return [
            d_x,
            d_w,
            order.recurrent_grad(d_parts, out, h).contiguous() if needed[2] else None,
            torch.cat([sums[: 2 * width], sums[3 * width :]]) if needed[3] else None,
            sums[: 3 * width] if needed[4] else None,
            first if needed[5] else None,
            *grid_grads(hidden, grad, raw, out, needed[6:8]),
        ]

    def step(self, x: Tensor, inputs: Inputs, grids: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """One step in torch's own operations."""
        (h,) = inputs.states
        x_r, x_z, x_n = F.linear(x, inputs.w_ih, inputs.b_ih).chunk(3, 1)
        h_r, h_z, h_n = F.linear(h, inputs.w_hh, inputs.b_hh).chunk(3, 1)
        candidate = (x_n + (x_r + h_r).sigmoid() * h_n).tanh()
        return [grids[0]((h - candidate) * (x_z + h_z).sigmoid() + candidate)]
