"""Sequences in compiled graphs."""

import pytest
import torch
from torch import Tensor

from bitwright.nn.recurrent.sequence import Steps, gru, lstm, rnn
from bitwright.nn.recurrent.sequence.kernel import Form
from bitwright.nn.recurrent.sequence.long_short_term import LongShortTerm
from bitwright.nn.recurrent.sequence.operators import compiled

GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def sequence(kind: str, sizes: list[int] | None, x: Tensor, h: Tensor, weights: tuple, scale: Tensor) -> tuple:
    steps = Steps(scale, -128, 127)
    if kind == "lstm":
        return lstm(x, sizes, h, h, weights, steps, None, reverse=True)
    if kind == "gru":
        return gru(x, sizes, h, weights, steps, reverse=False)
    return rnn(x, sizes, h, weights, None if kind == "relu" else steps, kind, reverse=False)


def inputs(kind: str, steps: int, bias: bool = True) -> tuple[Tensor, Tensor, tuple, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    rows = GATES[kind] * 4
    biases = (random(rows), random(rows)) if bias else (None, None)
    weights = random(rows, 3), random(rows, 4), *biases
    return random(2 * steps, 3), random(2, 4), weights, torch.tensor(0.1, requires_grad=True)


@pytest.mark.parametrize("sizes", [None, [2, 2, 1, 1]])
@pytest.mark.parametrize("kind", GATES)
def test_a_compiled_sequence_is_the_eager_one(kind: str, sizes: list[int] | None) -> None:
    x, h, weights, scale = inputs(kind, 3, bias=kind != "gru")
    graph = torch.compile(sequence, fullgraph=True, backend="aot_eager")
    found, expected = [f(kind, sizes, x, h, weights, scale) for f in (graph, sequence)]
    assert all(map(torch.equal, found, expected))
    wanted = [each for each in (x, h, *weights, scale) if each is not None and not (kind == "relu" and each is scale)]
    gradients = [
        torch.autograd.grad(sum(each.square().sum() for each in results), wanted) for results in (found, expected)
    ]
    assert all(map(torch.equal, *gradients))
    with torch.no_grad():
        assert all(map(torch.equal, graph(kind, sizes, x, h, weights, scale), expected))


def test_a_graph_holds_one_operator_for_each_direction() -> None:
    x, h, weights, scale = inputs("lstm", 5)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(sequence, fullgraph=True, backend=backend)("lstm", None, x, h, weights, scale)
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert [each for each in targets if "bitwright" in each] == ["bitwright.lstm_sequence.default"]


def test_the_number_of_steps_may_vary_in_one_graph() -> None:
    compiled_ = torch.compile(sequence, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps in (3, 5, 8):
        x, h, weights, scale = inputs("gru", steps)
        with torch._dynamo.config.patch(error_on_recompile=steps > 3):
            found = compiled_("gru", None, x, h, weights, scale)
        assert all(map(torch.equal, found, sequence("gru", None, x, h, weights, scale)))


@pytest.mark.parametrize("kind", GATES)
def test_the_operators_are_what_they_say(kind: str) -> None:
    x, h, weights, scale = inputs(kind, 3)
    states = [h, h.detach().clone()] if kind == "lstm" else [h]
    settings = [scale, None, None, None] if kind == "lstm" else [scale, None]
    name = kind if kind in ("lstm", "gru") else f"rnn_{kind}"
    ends = [-128.0, 127.0] * len(states)
    operator = getattr(torch.ops.bitwright, f"{name}_sequence").default
    torch.library.opcheck(operator, (x, *weights, *states, *settings, None, False, ends, True))


def test_outside_of_a_graph_the_operator_gives_the_same() -> None:
    x, h, weights, scale = inputs("lstm", 3)
    tensors = [x, *weights, h, h.detach().clone(), scale, None, None, None]
    form = Form(None, True, (-128.0, 127.0, 0.0, 0.0))
    found = compiled(LongShortTerm(), tensors, form, learned=False)
    assert len(found) == 3
    assert all(map(torch.equal, found, sequence("lstm", None, x, h, weights, scale)))


@pytest.mark.slow
def test_the_inductor_compiles_it() -> None:
    x, h, weights, scale = inputs("lstm", 50)
    graph = torch.compile(sequence, fullgraph=True)
    found, expected = [f("lstm", None, x, h, weights, scale) for f in (graph, sequence)]
    assert all(map(torch.equal, found, expected))
