"""Rotations that are learned on the loss of the quantized model."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitwright.graph import GraphError, quantize, rotate
from bitwright.graph.rotation.learning import cayley_step, relative_error
from bitwright.quantizers import Int4DynamicActPerToken, Int4WeightPerChannel, Int8Act
from tests.graph.rotation.prenorm import Llama, ids, of

RULES = {nn.Linear: {"weight_quant": Int4WeightPerChannel, "input_quant": Int4DynamicActPerToken}}


@settings(max_examples=10)
@given(st.integers(1, 8), st.floats(1e-3, 1e3), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_steps_are_orthogonal(size, rate, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.eye(size, dtype=torch.float64)
    for _ in range(5):
        gradient = scale * torch.randn(size, size, generator=generator, dtype=torch.float64)
        rotation = cayley_step(rotation, gradient, rate)
        assert float((rotation @ rotation.T - torch.eye(size)).abs().max()) < 1e-10


def test_a_step_numbers():
    """Y = [[0, 1], [-1, 0]] and a = 1 / |Y| = .7071: the rotation by 2 atan(a / 2), about .6797."""
    rotation = cayley_step(torch.eye(2, dtype=torch.float64), torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), 1.0)
    assert rotation.tolist() == [
        pytest.approx([7 / 9, -4 * 2**0.5 / 9]),
        pytest.approx([4 * 2**0.5 / 9, 7 / 9]),
    ]


def test_steps_descend():
    """From the identity to the rotation that takes one vector to another."""
    x, y = torch.tensor([[3.0, 4.0, 0.0]]).double(), torch.tensor([[0.0, 0.0, 5.0]]).double()
    rotation, losses = torch.eye(3, dtype=torch.float64), list[float]()
    for _ in range(60):
        leaf = rotation.clone().requires_grad_()
        loss = (x @ leaf - y).square().sum()
        rotation = cayley_step(rotation, torch.autograd.grad(loss, leaf)[0], 0.02)
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-3 * losses[0]


def outliers():
    model = of(Llama, dtype=torch.float32)
    with torch.no_grad():
        model.embed.weight[:, 5] *= 10
        model.blocks[0].norm1.weight[3] = 20
    return model


def test_the_loss_falls():
    model, batches = outliers(), [ids(seed) for seed in range(2)]
    start = rotate(model, batches)
    learned = rotate(model, batches, kind="learned", rules=RULES, steps=8, learning_rate=0.3)
    losses = [
        sum(float(relative_error(quantize(each, RULES, examples=ids())(x), model(x)).detach()) for x in batches) / 2
        for each in (start, learned)
    ]
    figures = learned.report.figures
    assert losses == [pytest.approx(figures["loss before"], rel=1e-3), pytest.approx(figures["loss after"], rel=1e-3)]
    assert losses[1] < 0.95 * losses[0]
    assert figures["orthogonality"] < 1e-10
    assert learned.report["embed"].action == "output rotated (learned from Hadamard 16)"
    torch.testing.assert_close(learned(ids(9)), model(ids(9)), rtol=1e-4, atol=1e-4)


def test_nothing_better():
    """A loss that no rotation changes: the start is kept."""
    rules = {nn.Linear: {"weight_quant": Int4WeightPerChannel, "input_quant": Int8Act}}
    model = outliers()
    learned = rotate(model, ids(), kind="learned", rules=rules, loss=lambda result, _: 0 * result.sum() + 1, steps=2)
    assert learned.report.figures == {
        "loss before": 1.0,
        "loss after": 1.0,
        "orthogonality": pytest.approx(0, abs=1e-12),
    }
    assert learned.report["embed"].action == "output rotated (Hadamard 16, nothing better was learned)"
    assert torch.equal(learned.embed.weight, rotate(model, ids()).embed.weight)


def test_losses():
    one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert float(relative_error((one, torch.tensor([1])), (other, torch.tensor([3])))) == pytest.approx(4 / 17)
    assert float(relative_error(one, torch.zeros(2))) > 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: rotate(of(Llama), ids(), kind="learned", rules=RULES, where="hidden"),
            "rotate: kind='learned' learns rotations of the stream and of values, and there are none. Write "
            "kind='hadamard'.",
        ),
        (
            lambda: rotate(
                outliers(), ids(), kind="learned", rules=RULES, loss=lambda result, _: result.sum().abs() / 0
            ),
            "rotate: the loss is inf in step 0. Lower the learning_rate.",
        ),
    ],
)
def test_errors(call, said):
    with pytest.raises(GraphError, match=f"^{re.escape(said)}$"):
        call()
