"""What quantize checks of its own work."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.conversion.self_check import check_called, check_equal, outputs_of
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W8A8

X = torch.randn(2, 4)
CALLS = []


class Counting(nn.Linear):
    """Returns something else each time."""

    def forward(self, x):  # type: ignore[override]
        CALLS.append(1)
        return super().forward(x) + len(CALLS)


def test_layers_that_differ_are_named():
    model = nn.Sequential(nn.Linear(4, 4), Counting(4, 4), nn.ReLU(), nn.Linear(4, 4))
    message = (
        "quantize: with all quantizers off, 1 (QuantCounting) does not return what it did in the float model, on the "
        "same input. If its results are random, or depend on earlier calls, leave examples out; otherwise write "
        '"1": None to leave it float.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(model, W8A8, examples=X)


def test_random_results_come_from_one_seed():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return F.dropout(self.layer(x), 0.5, training=True)

    model, state = Noisy(), torch.random.get_rng_state()
    quantize(model, W8A8, examples=X)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_differs_by_the_sign_of_zero():
    model = nn.Sequential(nn.Identity())
    before = outputs_of(model, torch.tensor([0.0, 1.0]))
    assert outputs_of(model, torch.tensor([-0.0, 1.0])) == before
    assert outputs_of(model, torch.tensor([0.0, 1.1])) != before
    check_equal(before, model, torch.tensor([-0.0, 1.0]), {})


def test_weights_that_functions_read_are_told():
    class Past(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(x, self.layer.weight)

    line = Past.forward.__code__.co_firstlineno + 1
    message = (
        f"quantize: layer is never called: linear at test_self_check.py:{line} reads its weight, past the quantizers "
        'that it would have. Call the layer there, or write "layer": None to leave it float.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Past(), W8A8, examples=X)
    quantize(Past(), {nn.Linear: W8A8, "layer": None}, examples=X)


def test_layers_that_are_not_called_are_told():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    slow = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=torch.tanh).eval()
    check_called(slow, ["linear1"], torch.randn(2, 3, 8))
    message = (
        "quantize: linear1 was converted, and evaluation never calls it: torch's fused TransformerEncoderLayer reads "
        'its weight. Convert the layer as a whole, or write "linear1": None to leave it float.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check_called(model, ["linear1"], torch.randn(2, 3, 8))


def test_transformers_are_checked_as_they_are_evaluated():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    q = quantize(model, {nn.Linear: {"weight_bit_width": 2}}, examples=torch.randn(2, 3, 8))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert not torch.allclose(q(x), model(x), atol=1e-2)


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    state = {key: item.clone() for key, item in model.state_dict().items()}
    q = quantize(model, W8A8, examples=X)
    assert q.training
    assert all(each.training for each in q.modules())
    assert all(torch.equal(item, state[key]) for key, item in model.state_dict().items())
    assert all(torch.equal(q.state_dict()[key], item) for key, item in state.items())
    assert not q[1].input_quant.calibrated
