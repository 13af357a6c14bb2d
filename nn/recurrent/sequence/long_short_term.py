"""All steps of an LSTM at once.

At usual sizes an operation costs more than its arithmetic, so there are few of them: the gates lie in the order output,
input, forget, candidate, so that one sigmoid serves three, and one product gives the gradients of the last three.
Derivatives that depend on no later step are worked out before the backward loop, for all steps at once.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .grids import grid_grads
from .kernel import Inputs, Kernel, Results, Tensors
from .products import Product, product, weight_grad

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
        """The results; kept are gates, cells and their tanh, and states before their grid."""
        x, w_hh, (h, c), (hidden, cell), order = inputs.x, inputs.w_hh, inputs.states, inputs.grids, inputs.order
        width, bias = w_hh.shape[1], inputs.total_bias()
        table = product(x, _turned(inputs.w_ih), None if bias is None else _turned(bias))
        recurrent = Product(_turned(w_hh), h.shape[0])

        def rows(wanted: bool = True) -> Tensor | None:
            return x.new_empty(x.shape[0], width) if wanted else None

        out, cells = x.new_empty(x.shape[0], width), x.new_empty(x.shape[0], width)
        tanh_cell, cell_raw, hidden_raw = rows(keep), rows(keep and cell is not None), rows(keep and hidden is not None)
        outs, after, scratch = order.each(out), order.each(cells), order.scratch(x, width)[0]
        mul, div, tanh = torch.mul, torch.div, torch.tanh
        h_now, c_now = order.started(h), order.started(c)
        steps = zip(
            order.turns(),
            order.each(table),
            order.each(table[:, : 3 * width]),
            *(order.each(columns) for columns in table.split(width, 1)),
            scratch,
            after if cell_raw is None else order.each(cell_raw),
            after,
            scratch if tanh_cell is None else order.each(tanh_cell),
            outs if hidden_raw is None else order.each(hidden_raw),
            outs,
            strict=True,
        )
        for turn, gates, three, o, i, f, g, memory, raw_c, c_next, tanh_c, raw_h, h_next in steps:
            recurrent.add_to(gates, h_now)
            three.sigmoid_()
            mul(f, c_now, out=raw_c)
            raw_c.add_(mul(i, g.tanh_(), out=memory))  # not addcmul: ONNX rounds the product
            if cell is not None:
                div(raw_c, cell.scale, out=c_next).round_().clamp_(cell.low, cell.high).mul_(cell.scale)
            mul(o, tanh(c_next, out=tanh_c), out=raw_h)
            if hidden is not None:
                div(raw_h, hidden.scale, out=h_next).round_().clamp_(hidden.low, hidden.high).mul_(hidden.scale)
            h_now, c_now = h_next, c_next
            if turn is not None:
                h_now, c_now = order.resized(h_next, h, turn), order.resized(c_next, c, turn)
        kept = [table, cells, tanh_cell, cell_raw, hidden_raw] if keep else []
        return Results(out, [order.last(outs, h), order.last(after, c)], kept)

    def widths(self, grids: Sequence[bool]) -> list[int]:
        """The columns of what `forward` keeps."""
        hidden, cell = map(int, grids)
        return [4, 1, 1, cell, hidden]

    def backward(
        self, grads: Sequence[Tensor], inputs: Inputs, out: Tensor, kept: Tensors, needed: Sequence[bool]
    ) -> list[Tensor | None]:
        """The gradients of those tensors that need one."""
        d_out, d_h, d_c = grads
        x, w_hh, (h, c), (hidden, cell), order = inputs.x, inputs.w_hh, inputs.states, inputs.grids, inputs.order
        table, cells, tanh_cell, cell_raw, hidden_raw = kept
        assert table is not None
        assert cells is not None
        assert tanh_cell is not None
        rows, width = x.shape[0], w_hh.shape[1]

        # What the gradients of hidden state (o) and cell (the others) are multiplied with, then the products, which are
        # the gradients of the gates; and what leads from hidden state to cell, and from cell to the cell before
        flow, through = torch.empty_like(table), torch.ops.aten.tanh_backward(table[:, :width], tanh_cell)
        o, i, f, g = table.split(width, 1)
        of_o, of_i, of_f, of_g = flow.split(width, 1)
        others = flow.view(rows, 4, width)[:, 1:]
        _sigmoid_backward(tanh_cell, o, grad_input=of_o)
        _sigmoid_backward(g, i, grad_input=of_i)
        for at, before in order.before(cells, c):
            _sigmoid_backward(before, f[at], grad_input=of_f[at])
        _tanh_backward(i, g, grad_input=of_g)
        if hidden is not None and hidden_raw is not None:
            for each in (of_o, through):
                hidden.passed(each, hidden_raw, out=each)
        if cell is not None and cell_raw is not None:
            cell.passed(others, cell_raw.unsqueeze(1), out=others)
            f = cell.passed(f, cell_raw)

        recurrent = Product(_turned(w_hh).t(), h.shape[0])
        _, memory, hidden_scratch, cell_scratch = order.scratch(x, width, width, width)
        hidden_grad = x.new_empty(rows, width) if needed[7] or needed[8] else None
        cell_grad = x.new_empty(rows, width) if needed[9] or needed[10] else None
        hidden_grads = hidden_scratch if hidden_grad is None else order.each(hidden_grad)
        cell_grads = cell_scratch if cell_grad is None else order.each(cell_grad)
        added, gates, forget = order.each(d_out), order.each(flow), order.each(f)
        of_hidden, of_cell = order.each(of_o), order.each(others.transpose(0, 1), 1)
        passed, sizes, turns, begun = order.each(through), order.sizes, order.turns(), False
        add, mul, addcmul = torch.add, torch.mul, torch.addcmul
        first_h, first_c = torch.empty_like(h), torch.empty_like(c)
        to_h, to_c = order.ended(d_h), order.ended(d_c)
        for step in range(len(sizes) - 1, -1, -1):
            at_h, at_c = hidden_grads[step], cell_grads[step]
            if not begun:
                add(to_h, added[step], out=at_h)
            of_hidden[step].mul_(at_h)
            of_cell[step].mul_(addcmul(to_c, at_h, passed[step], out=at_c))
            to_c, before = mul(at_c, forget[step], out=memory[step]), step - 1
            begun = step > 0 and turns[before] is None
            if begun:
                recurrent.sum(added[before], gates[step], out=hidden_grads[before])
            else:
                to_h = recurrent.of(gates[step])
                if step:
                    to_h = order.returned(to_h, d_h, first_h, sizes[before])
                    to_c = order.returned(to_c, d_c, first_c, sizes[before])
        first_h[: len(to_h)], first_c[: len(to_c)] = to_h, to_c

        d_bias = _turned_back(flow.sum(0)) if needed[3] or needed[4] else None
        return [
            product(flow, _turned(inputs.w_ih).t()) if needed[0] else None,
            _turned_back(weight_grad(flow, x)) if needed[1] else None,
            _turned_back(order.recurrent_grad(flow, out, h)) if needed[2] else None,
            d_bias if needed[3] else None,
            d_bias if needed[4] else None,
            first_h if needed[5] else None,
            first_c if needed[6] else None,
            *grid_grads(hidden, hidden_grad, hidden_raw, out, needed[7:9]),
            *grid_grads(cell, cell_grad, cell_raw, cells, needed[9:11]),
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
