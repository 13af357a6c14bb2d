"""The general loop: one step after the other."""

import torch

from bitwright.nn.recurrent.scan import scan
from bitwright.qcore.tracing import current_step, loop_operators, loops_become


def step(states, inputs, constants):
    one, other = states
    x, y = inputs
    return (one + x * constants[0], other * y), (one, other + x)


def test_states_go_from_step_to_step_and_outputs_are_stacked():
    start = (torch.tensor([1.0]), torch.tensor([2.0]))
    inputs = (torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [3.0], [5.0]]))
    (one, other), (first, second) = scan(step, start, inputs, (torch.tensor(10.0),))
    assert (one.item(), other.item()) == (61.0, 60.0)
    assert first.flatten().tolist() == [1.0, 11.0, 31.0]
    assert second.flatten().tolist() == [3.0, 6.0, 15.0]
    assert first.shape == (3, 1)


def test_a_step_knows_its_number():
    seen = []

    def note(states, inputs, constants):
        seen.append(current_step())
        return states, inputs

    scan(note, (), (torch.arange(3),))
    assert [each.number for each in seen] == [0, 1, 2]
    assert len({id(each.loop) for each in seen}) == 1
    assert current_step() is None
    scan(note, (), (torch.arange(1),))
    assert seen[-1].loop is not seen[0].loop


def test_the_step_is_over_when_it_fails():
    def fail(states, inputs, constants):
        raise KeyError

    try:
        scan(fail, (), (torch.arange(3),))
    except KeyError:
        assert current_step() is None


def test_an_exporter_gets_the_loop_as_it_is():
    class Operators:
        def scan(self, *given):
            return given

    start, inputs, constants = (torch.zeros(1),), (torch.ones(3, 1),), (torch.ones(2),)
    with loops_become(Operators()):
        assert scan(step, start, inputs, constants) == (step, start, inputs, constants)
    assert loop_operators() is None


def test_it_compiles():
    def add(states, inputs, constants):
        total = states[0] + inputs[0]
        return (total,), (total * constants[0],)

    def run(x):
        return scan(add, (torch.zeros(2),), (x,), (torch.tensor(3.0),))

    x = torch.randn(4, 2)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    (total,), (outputs,) = compiled(x)
    (expected_total,), (expected,) = run(x)
    assert torch.equal(total, expected_total)
    assert torch.equal(outputs, expected)
