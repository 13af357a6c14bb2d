"""Sequences as functions, against a plain loop that is written here."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bitwright.nn.recurrent.sequence import Steps, gru, lstm, rnn
from bitwright.qcore import QuantizerError
from bitwright.qcore.kernels.composed import composed_fake_quant

KINDS = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}  # rows of a weight for each hidden number
DOUBLE = torch.float64


def on_grid(x: Tensor, steps: Steps | None) -> Tensor:
    if steps is None:
        return x
    return composed_fake_quant(x, steps.scale, int(steps.low), int(steps.high), steps.zero_point)


def one_step(kind: str, x: Tensor, states: list[Tensor], weights: tuple, grids: list[Steps | None]) -> list[Tensor]:
    w_ih, w_hh, b_ih, b_hh = weights
    from_x, from_h = F.linear(x, w_ih, b_ih), F.linear(states[0], w_hh, b_hh)
    if kind == "lstm":
        i, f, g, o = (from_x + from_h).chunk(4, 1)
        c = on_grid(f.sigmoid() * states[1] + i.sigmoid() * g.tanh(), grids[1])
        return [on_grid(o.sigmoid() * c.tanh(), grids[0]), c]
    if kind == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        return [on_grid((1 - z) * (x_n + r * h_n).tanh() + z * states[0], grids[0])]
    return [on_grid((from_x + from_h).tanh() if kind == "tanh" else (from_x + from_h).relu(), grids[0])]


def looped(
    kind: str, x: Tensor, sizes: list[int], states: list[Tensor], weights: tuple, grids: list, reverse: bool
) -> list:
    """What the functions compute, one step after the other."""
    rows, outs = x.split(sizes), {}
    for at in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        size = sizes[at]
        after = one_step(kind, rows[at], [each[:size] for each in states], weights, grids)
        outs[at] = after[0]
        states = [torch.cat([new, old[size:]]) for new, old in zip(after, states, strict=True)]
    return [torch.cat([outs[at] for at in range(len(sizes))]), *states]


class Case(NamedTuple):
    """A sequence to compute."""

    kind: str
    x: Tensor
    sizes: list[int]
    states: list[Tensor]
    weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    grids: list[Steps | None]
    reverse: bool

    def tensors(self) -> list[Tensor]:
        """What has a gradient."""
        found = [self.x, *self.states, *self.weights]
        for grid in self.grids:
            found += [] if grid is None else [grid.scale, grid.zero_point]
        return [each for each in found if each is not None]

    def by_function(self, even: bool = False) -> list[Tensor]:
        sizes = None if even else self.sizes
        if self.kind == "lstm":
            h, c = self.states
            return list(lstm(self.x, sizes, h, c, self.weights, *self.grids, self.reverse))
        if self.kind == "gru":
            return list(gru(self.x, sizes, *self.states, self.weights, self.grids[0], self.reverse))
        return list(rnn(self.x, sizes, *self.states, self.weights, self.grids[0], self.kind, self.reverse))

    def by_loop(self) -> list[Tensor]:
        return looped(self.kind, self.x, self.sizes, self.states, self.weights, self.grids, self.reverse)

    def gradients(self, results: list[Tensor], **options: Any) -> list[Tensor]:
        """Of a sum in which every number counts differently."""
        generator = torch.Generator().manual_seed(1)
        total = sum((each * torch.randn(each.shape, generator=generator, dtype=each.dtype)).sum() for each in results)
        return list(torch.autograd.grad(total, self.tensors(), **options))


def made(
    kind: str,
    sizes: list[int],
    inputs: int = 3,
    hidden: int = 4,
    bias: bool = True,
    reverse: bool = False,
    grids: str = "",
    seed: int = 0,
    dtype: torch.dtype = DOUBLE,
) -> Case:
    """A case; ``grids`` has a letter for each state: ``-`` for none, ``s`` for a scale, ``z`` for a zero point, too."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype).requires_grad_()

    rows, states = KINDS[kind] * hidden, 2 if kind == "lstm" else 1
    weights = random(rows, inputs), random(rows, hidden), *(random(rows) if bias else None for _ in range(2))
    settled = []
    for letter in grids or "s" * states:
        scale = torch.tensor(0.3, dtype=dtype, requires_grad=True)
        zero_point = torch.tensor(1.0, dtype=dtype, requires_grad=True) if letter == "z" else None
        settled.append(None if letter == "-" else Steps(scale, -2, 3, zero_point))
    first = [random(max(sizes), hidden) for _ in range(states)]
    return Case(kind, random(sum(sizes), inputs), sizes, first, weights, settled, reverse)


def near(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-12) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=6).map(lambda found: sorted(found, reverse=True))


@pytest.mark.parametrize("kind", KINDS)
@given(
    sizes=SIZES,
    inputs=st.integers(1, 3),
    hidden=st.integers(1, 4),
    bias=st.booleans(),
    reverse=st.booleans(),
    grids=st.tuples(st.sampled_from("-sz"), st.sampled_from("-sz")).map("".join),
    seed=st.integers(0, 9),
)
def test_results_and_gradients_are_those_of_the_loop(
    kind: str, sizes: list[int], inputs: int, hidden: int, bias: bool, reverse: bool, grids: str, seed: int
) -> None:
    case = made(kind, sizes, inputs, hidden, bias, reverse, grids[: 2 if kind == "lstm" else 1], seed)
    found, expected = case.by_function(), case.by_loop()
    near(found, expected)
    near(case.gradients(found), case.gradients(expected), 1e-11)
    with torch.no_grad():
        near(case.by_function(), expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_sizes_every_step_has_as_many_rows_as_there_are_sequences(kind: str, reverse: bool) -> None:
    case = made(kind, [3, 3, 3], reverse=reverse)
    found, expected = case.by_function(even=True), case.by_function()
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, case.gradients(found), case.gradients(expected)))


@pytest.mark.parametrize(("kind", "module"), [("lstm", nn.LSTM), ("gru", nn.GRU), ("tanh", nn.RNN)])
def test_without_grids_it_is_torchs_layer(kind: str, module: type[nn.RNNBase]) -> None:
    case = made(kind, [3, 3, 2, 1], grids="--" if kind == "lstm" else "-")
    layer = module(3, 4).double()
    with torch.no_grad():
        for own, given_ in zip(layer.parameters(), case.weights, strict=True):
            own.copy_(given_)
    packed = nn.utils.rnn.PackedSequence(case.x, torch.tensor(case.sizes))
    first = tuple(each[None] for each in case.states)
    out, last = layer(packed, first if kind == "lstm" else first[0])
    lasts = last if kind == "lstm" else (last,)
    near(case.by_function(), [out.data, *(each[0] for each in lasts)])


@pytest.mark.parametrize("kind", KINDS)
def test_no_steps_give_the_states_back(kind: str) -> None:
    case = made(kind, [2])
    empty = case._replace(x=case.x[:0], sizes=[])
    for sizes in (False, True):
        out, *states = empty.by_function(even=sizes)
        assert out.shape == (0, 4)
        assert all(map(torch.equal, states, case.states))
    gradients = torch.autograd.grad(sum(each.sum() for each in states), case.states)
    assert all(torch.equal(each, torch.ones(2, 4, dtype=DOUBLE)) for each in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_needs_a_gradient_gets_one(kind: str) -> None:
    case = made(kind, [2, 2, 1])
    plain = case._replace(
        x=case.x.detach(),
        states=[each.detach() for each in case.states],
        grids=[Steps(grid.scale.detach(), grid.low, grid.high) for grid in case.grids if grid],
    )
    weights = list(case.weights)
    found = torch.autograd.grad(plain.by_function()[0].sum(), weights)
    near(list(found), list(torch.autograd.grad(case.by_loop()[0].sum(), weights)))


@pytest.mark.parametrize("kind", KINDS)
def test_many_integers_whose_products_would_cancel(kind: str) -> None:
    states = 2 if kind == "lstm" else 1
    case = made(kind, [3] * 4)
    wide = [Steps(torch.tensor(2.0**-12, dtype=DOUBLE, requires_grad=True), -(2**15), 2**15 - 1)] * states
    case = case._replace(grids=wide)
    near(case.gradients(case.by_function()), case.gradients(case.by_loop()), 1e-11)


def test_an_infinite_state_that_is_clipped_has_a_finite_gradient() -> None:
    scale = torch.tensor(1.0, requires_grad=True)
    x, w = torch.tensor([[1.0], [float("inf")]]), torch.ones(1, 1, requires_grad=True)
    out, _ = rnn(x, None, torch.zeros(1, 1), (w.detach(), w.detach(), None, None), Steps(scale, 0, 3), "relu", False)
    assert out.tolist() == [[1.0], [3.0]]
    out.sum().backward()
    assert scale.grad == 3.0  # the second state lies at the end of the range, the first one on the grid


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_are_those_of_the_loop(kind: str) -> None:
    case = made(kind, [2, 2, 1], reverse=True)

    def again(results: list[Tensor]) -> list[Tensor]:
        first = case.gradients(results, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in first), case.tensors()))

    near(again(case.by_function()), again(case.by_loop()), 1e-10)


def test_several_gradients_at_once_are_those_of_each() -> None:
    case = made("lstm", [2, 2])
    (out, *_), weight = case.by_function(), case.weights[0]
    several = torch.stack([torch.ones_like(out), torch.arange(out.numel(), dtype=DOUBLE).reshape(out.shape)])
    (found,) = torch.autograd.grad(out, weight, several, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(out, weight, one, retain_graph=True)[0] for one in several]
    near([found], [torch.stack(each)])


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_of_functions(kind: str) -> None:
    case = made(kind, [2, 2, 1])

    def total(function: Callable[[Case], list[Tensor]]) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.stack([each.sum() for each in function(case._replace(x=x))]).sum()

    near([torch.func.grad(total(Case.by_function))(case.x)], [torch.func.grad(total(Case.by_loop))(case.x)])
    several = torch.stack([case.x, -case.x]).detach()
    near(
        [torch.func.vmap(total(Case.by_function))(several)],
        [torch.stack([total(Case.by_loop)(one) for one in several])],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    case = made(kind, [3, 2])
    again = checkpoint(lambda: tuple(case.by_function()), use_reentrant=False)
    near(case.gradients(list(again)), case.gradients(case.by_function()), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_share_no_memory(kind: str) -> None:
    case = made(kind, [2, 2], grids="--" if kind == "lstm" else "-")
    with torch.no_grad():
        results = [*case.by_function(), *case.by_function(even=True), *case.states]
        assert len({each.untyped_storage().data_ptr() for each in results}) == len(results)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind: str) -> None:
    half = made(kind, [2, 2, 1], dtype=torch.bfloat16)
    single = half._replace(
        x=half.x.float(),
        states=[each.float() for each in half.states],
        weights=tuple(None if each is None else each.float() for each in half.weights),
        grids=[Steps(grid.scale.float(), grid.low, grid.high) for grid in half.grids if grid],
    )
    found = half.by_function()
    assert {each.dtype for each in found} == {torch.bfloat16}
    near(found, [each.bfloat16() for each in single.by_function()], 0)
    assert all(each.dtype == torch.bfloat16 for each in half.gradients(found))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_the_type_of_the_weights(kind: str) -> None:
    case = made(kind, [2, 2, 1], dtype=torch.float32)
    expected = case._replace(x=case.x.bfloat16().float()).by_function()
    with torch.autocast("cpu"):
        found = case._replace(x=case.x.bfloat16()).by_function()
        assert torch.is_autocast_enabled("cpu")
    near(found, expected, 0)


def test_states_of_another_type_are_refused() -> None:
    case = made("gru", [2], dtype=torch.float32)
    message = (
        "gru: the weights are torch.float32 and the input or a state is torch.float64. Convert one of them: "
        "x.to(torch.float32)."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        case._replace(states=[each.double() for each in case.states]).by_function()


@pytest.mark.parametrize("kind", KINDS)
def test_large_products_by_the_other_library(kind: str) -> None:
    case = made(kind, [64] * 2, inputs=128, hidden=160, dtype=torch.float32)
    small = 0.02
    with torch.no_grad():
        for each in (case.x, *case.weights):
            each.mul_(small)
    case = case._replace(grids=[None] * len(case.states))
    found, expected = case.by_function(), case.by_loop()
    near(found, expected, 1e-5)
    near(case.gradients(found), case.gradients(expected), 1e-3)
