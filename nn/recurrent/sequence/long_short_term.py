"""All steps of an LSTM at once.

At usual sizes an operation costs more than its arithmetic, so there are few of them: the gates lie in the order output,
input, forget, candidate, so that one sigmoid serves three, and the candidate lies beside the cell that it is added to.
Derivatives that depend on no later step are worked out before the backward loop, for all steps at once.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .grids import grid_grads
from .kernel import Inputs, Kernel, Results, Tensors
from .products import Product, product

__all__ = ["LongShortTerm"]

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class LongShortTerm(Kernel):
    """The steps of an LSTM.

    Example:
        >>> LongShortTerm().name
        'lstm'
    """

    name = "lstm"
    states = 2

    def forward(self, inputs: Inputs, keep: bool) -> Results:
        """The results; kept are gates and cells before each step, tanh of the cells, and states before their grid."""
        x, w_hh, (h, c), (hidden, cell), order = inputs.x, inputs.w_hh, inputs.states, inputs.grids, inputs.order
        rows, width = x.shape[0], w_hh.shape[1]
        table = x.new_empty(rows, 5 * width)  # output, input, forget, candidate, and the cell before the step
        bias = inputs.total_bias()
        table[:, : 4 * width] = product(x, _turned(inputs.w_ih), None if bias is None else _turned(bias))
        recurrent = Product(_turned(w_hh), h.shape[0])

        out = x.new_empty(rows, width)
        tanh_cell = x.new_empty(rows, width) if keep else None
        hidden_raw = x.new_empty(rows, width) if keep and hidden is not None else None
        cell_raw = x.new_empty(rows, width) if keep and cell is not None else None
        outs, slots, turns = order.each(out), order.each(table[:, 4 * width :]), order.turns()
        products, left, right = order.scratch(x, width, width)
        cells = order.handed_on(slots)
        h_now = h[: order.sizes[0]] if order.sizes else h
        if order.sizes:
            slots[0].copy_(c[: order.sizes[0]])
        add, mul, div, tanh = torch.add, torch.mul, torch.div, torch.tanh
        for step, (
            gates,
            three,
            candidate,
            o,
            two,
            pair,
            both,
            one,
            other,
            raw_c,
            c_now,
            t,
            raw_h,
            h_next,
        ) in enumerate(
            zip(
                order.each(table[:, : 4 * width]),
                order.each(table[:, : 3 * width]),
                order.each(table[:, 3 * width : 4 * width]),
                order.each(table[:, :width]),
                order.each(table[:, width : 3 * width]),
                order.each(table[:, 3 * width :]),
                products,
                left,
                right,
                cells if cell_raw is None else order.each(cell_raw),
                cells,
                left if tanh_cell is None else order.each(tanh_cell),
                outs if hidden_raw is None else order.each(hidden_raw),
                outs,
                strict=True,
            )
        ):
            recurrent.add_to(gates, h_now)
            three.sigmoid_()
            candidate.tanh_()
            mul(two, pair, out=both)
            add(one, other, out=raw_c)  # not addcmul: ONNX rounds the products, too
            if cell is not None:
                div(raw_c, cell.scale, out=c_now).round_().clamp_(cell.low, cell.high).mul_(cell.scale)
            mul(o, tanh(c_now, out=t), out=raw_h)
            if hidden is not None:
                div(raw_h, hidden.scale, out=h_next).round_().clamp_(hidden.low, hidden.high).mul_(hidden.scale)
            h_now, turn = h_next, turns[step]
            if turn is not None:
                h_now = order.resized(h_next, h, turn)
                slots[step + 1].copy_(order.resized(c_now, c, turn))
        kept = [table, tanh_cell, hidden_raw, cell_raw] if keep else []
        return Results(out, [order.last(outs, h), order.last(cells, c)], kept)

    def widths(self, grids: Sequence[bool]) -> list[int]:
        """The columns of what `forward` keeps."""
        return [5, 1, *map(int, grids)]

    def backward(
        self, grads: Sequence[Tensor], inputs: Inputs, out: Tensor, kept: Tensors, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one."""
        d_out, d_h, d_c = grads
        x, w_hh, (h, c), (hidden, cell), order = inputs.x, inputs.w_hh, inputs.states, inputs.grids, inputs.order
        table, tanh_cell, hidden_raw, cell_raw = kept
        assert table is not None
        assert tanh_cell is not None
        rows, width = x.shape[0], w_hh.shape[1]

        # What the gradients of hidden state (o) and cell (the rest) are multiplied with, and then the products: the
        # gradients of output, input, forget gate, candidate and of the cell before the step
        flow = x.new_empty(rows, 5 * width)
        of_o, of_cell = flow[:, :width], flow[:, width:].view(rows, 4, width)
        o, i, f, g, before = table.split(width, 1)
        _sigmoid_backward(tanh_cell, o, grad_input=of_o)
        _sigmoid_backward(g, i, grad_input=of_cell[:, 0])
        _sigmoid_backward(before, f, grad_input=of_cell[:, 1])
        _tanh_backward(i, g, grad_input=of_cell[:, 2])
        of_cell[:, 3].copy_(f)
        through = torch.ops.aten.tanh_backward(o, tanh_cell)  # from hidden state to cell
        hidden_inside = cell_inside = None
        if hidden is not None:
            hidden_inside = hidden.inside(out if hidden_raw is None else hidden_raw)
            of_o.mul_(hidden_inside)
            through.mul_(hidden_inside)
        if cell is not None and cell_raw is not None:
            cell_inside = cell.inside(cell_raw)
            of_cell.mul_(cell_inside.unsqueeze(1))

        recurrent = Product(_turned(w_hh).t(), h.shape[0])
        hidden_grad = x.new_empty(rows, width) if needed[7] or needed[8] else None
        cell_grad = x.new_empty(rows, width) if needed[9] or needed[10] else None
        first_h, first_c = torch.empty_like(h), torch.empty_like(c)
        scratch = order.scratch(x, width, width)
        hidden_grads = scratch[1] if hidden_grad is None else order.each(hidden_grad)
        cell_grads = scratch[2] if cell_grad is None else order.each(cell_grad)
        added, gates, cells = order.each(d_out), order.each(flow[:, : 4 * width]), order.each(flow[:, 4 * width :])
        steps = zip(order.each(of_o), order.each(of_cell.transpose(0, 1), 1), order.each(through), strict=True)
        add, addcmul = torch.add, torch.addcmul
        sizes, turns, added_to = order.sizes, order.turns(), False
        to_h, to_c = d_h[: sizes[-1]] if sizes else d_h, d_c[: sizes[-1]] if sizes else d_c
        for step, (outputs, others, passed) in reversed(list(enumerate(steps))):
            at_h, at_c = hidden_grads[step], cell_grads[step]
            if not added_to:
                add(to_h, added[step], out=at_h)
            outputs.mul_(at_h)
            others.mul_(addcmul(to_c, at_h, passed, out=at_c))
            to_c, before = cells[step], step - 1
            added_to = step > 0 and turns[before] is None
            if added_to:
                recurrent.sum(added[before], gates[step], out=hidden_grads[before])
            else:
                to_h = recurrent.of(gates[step])
                if step:
                    to_h = order.returned(to_h, d_h, first_h, sizes[before])
                    to_c = order.returned(to_c, d_c, first_c, sizes[before])
        first_h[: len(to_h)], first_c[: len(to_c)] = to_h, to_c

        d_gates = flow[:, : 4 * width]
        d_bias = _turned_back(d_gates.sum(0)) if needed[3] or needed[4] else None
        moved = None if cell is None or cell_grad is None or cell_raw is None else cell.moved(cell_raw)
        return [
            product(d_gates, _turned(inputs.w_ih).t()) if needed[0] else None,
            _turned_back(product(d_gates.t(), x.t())) if needed[1] else None,
            _turned_back(order.recurrent_grad(d_gates, out, h)) if needed[2] else None,
            d_bias if needed[3] else None,
            d_bias if needed[4] else None,
            first_h if needed[5] else None,
            first_c if needed[6] else None,
            *grid_grads(hidden, hidden_grad, hidden_inside, hidden_raw, out, needed[7:9]),
            *grid_grads(cell, cell_grad, cell_inside, cell_raw, moved, needed[9:11]),
        ]

    def step(self, x: Tensor, inputs: Inputs, grids: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        """One step in torch's own operations."""
        h, c = inputs.states
        gates = F.linear(x, inputs.w_ih, inputs.b_ih) + F.linear(h, inputs.w_hh, inputs.b_hh)
        i, f, g, o = gates.chunk(4, 1)
        c = grids[1](f.sigmoid() * c + i.sigmoid() * g.tanh())
        return [grids[0](o.sigmoid() * c.tanh()), c]


def _turned(weight: Tensor) -> Tensor:
    """Rows of input, forget, candidate, output in the order output, input, forget, candidate."""
    *others, output = weight.chunk(4)
    return torch.cat([output, *others])


def _turned_back(weight: Tensor) -> Tensor:
    output, *others = weight.chunk(4)
    return torch.cat([*others, output])
