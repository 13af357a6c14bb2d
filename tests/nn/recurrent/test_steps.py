"""One step of each kind, against literal numbers, and torch's cells."""

import pytest
import torch
from torch import nn

from bitwright.nn.recurrent.steps import GRUStep, LSTMStep, RNNStep

ZERO = torch.zeros(1, 1)


def logit(p):
    return torch.tensor(p, dtype=torch.float64).logit().item()


def gates(*values):
    return torch.tensor([values], dtype=torch.float64)


def test_an_lstm_step():
    """i = 0.5, f = 0.25, g = tanh(1), o = 0.75, from c = 2."""
    step = LSTMStep({}, bias=False)
    states = (torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64))
    weight = torch.zeros(4, 1, dtype=torch.float64)
    (h, c), (out,) = step(states, (gates(0.0, logit(0.25), 1.0, logit(0.75)),), (weight,))
    assert c.item() == pytest.approx(0.25 * 2 + 0.5 * 0.7615941559557649)
    assert h.item() == pytest.approx(0.75 * torch.tensor(c.item(), dtype=torch.float64).tanh().item())
    assert out is h


def test_coupled_gates_forget_what_they_let_in():
    """i = 0.25, g = tanh(1): c = 0.75 * 2 + 0.25 * g."""
    step = LSTMStep({}, bias=False, coupled=True)
    states = (torch.zeros(1, 1, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64))
    (_, c), _ = step(states, (gates(logit(0.25), 1.0, 0.0),), (torch.zeros(3, 1, dtype=torch.float64),))
    assert c.item() == pytest.approx(0.75 * 2 + 0.25 * 0.7615941559557649)


def test_a_gru_step():
    """r = 0.5, z = 0.25, n = tanh(1 + 0.5 * 4), from h = 2; the weight of h is 0, its bias 0, 0, 4."""
    step = GRUStep({}, bias=True)
    constants = (torch.zeros(3, 1, dtype=torch.float64), torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64))
    (h,), _ = step((torch.full((1, 1), 2.0, dtype=torch.float64),), (gates(0.0, logit(0.25), 1.0),), constants)
    assert h.item() == pytest.approx(0.75 * 0.9950547536867305 + 0.25 * 2)


@pytest.mark.parametrize(("nonlinearity", "expected"), [("tanh", 0.9640275800758169), ("relu", 2.0)])
def test_a_simple_step(nonlinearity, expected):
    step = RNNStep({}, bias=True, nonlinearity=nonlinearity)
    constants = (torch.eye(1, dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64))
    (h,), _ = step((torch.ones(1, 1, dtype=torch.float64),), (gates(3.0),), constants)
    assert h.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "cell"),
    [
        (lambda sites: LSTMStep(sites, True), nn.LSTMCell),
        (lambda sites: GRUStep(sites, True), nn.GRUCell),
        (lambda sites: RNNStep(sites, True), nn.RNNCell),
    ],
)
def test_steps_are_torchs_cells(step, cell):
    torch.manual_seed(0)
    torchs, x = cell(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    states = [torch.randn(2, 3, dtype=torch.float64) for _ in step({}).states]
    expected = torchs(x, tuple(states) if len(states) > 1 else states[0])
    expected = expected if isinstance(expected, tuple) else (expected,)
    projected = nn.functional.linear(x, torchs.weight_ih, torchs.bias_ih)
    found, _ = step({})(states, (projected,), (torchs.weight_hh, torchs.bias_hh))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        (LSTMStep, 4, ["gate", "sigmoid", "sigmoid", "tanh", "sigmoid", "cell", "tanh", "hidden"]),
        (GRUStep, 3, ["gate", "sigmoid", "gate", "sigmoid", "gate", "tanh", "hidden"]),
        (RNNStep, 1, ["gate", "hidden"]),
    ],
)
def test_every_slot_is_passed(kind, rows, expected):
    seen = []

    def site(slot):
        def passed(x):
            seen.append(slot)
            return x

        return passed

    step = kind({slot: site(slot) for slot in kind.slots}, bias=False)
    step(tuple(ZERO for _ in kind.states), (torch.zeros(1, rows),), (torch.zeros(rows, 1),))
    assert seen == expected


def test_a_projection_is_of_what_its_slot_gives():
    """h = 0.5 * tanh(c), quantized to 1, times 3, less 1 at the slot of the hidden state."""
    step = LSTMStep({"projection": torch.ones_like, "hidden": lambda x: x - 1}, bias=False, projects=True)
    constants = (torch.zeros(8, 1), torch.tensor([[3.0, 4.0]]))
    (h, c), _ = step((ZERO, torch.zeros(1, 2)), (torch.zeros(1, 8),), constants)
    assert h.tolist() == [[6.0]]
    assert c.shape == (1, 2)
