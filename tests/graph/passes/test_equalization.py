import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.equalization import equalize
from bitwright.graph.passes.folding import fold_batch_norms
from tests.graph.models.named import Net

GOLDEN = Path(__file__).parent / "golden"


def uneven(model):
    """Weights whose channels differ in range."""
    for parameter in model.parameters():
        spread = torch.rand(parameter.shape[0], *[1] * (parameter.ndim - 1)) * 6 - 3
        parameter.data.copy_(torch.randn(parameter.shape) * spread.exp())
    return model


def ranges(layer, axis):
    """The largest magnitudes of the channels along an axis of the weight."""
    return layer.weight.detach().abs().transpose(0, axis).flatten(1).amax(1)


def test_pair():
    """Largest magnitudes 8 and 2 become 4 and 4; bias and the second channel, which is equal already, follow."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-8.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([6.0, 3.0]))
        model[2].weight.copy_(torch.tensor([[2.0, 1.0]]))
    equalized = equalize(model, torch.ones(1, 1))
    assert equalized[0].weight.tolist() == [[-4.0], [1.0]]
    assert equalized[0].bias.tolist() == [3.0, 3.0]
    assert equalized[2].weight.tolist() == [[4.0, 1.0]]
    assert torch.equal(equalized[2].bias, model[2].bias)


MEANS = {
    # magnitudes of three channels: first rows, depthwise, last columns -> their geometric mean
    (8.0, 1.0, 1.0): 2.0,
    (1.0, 27.0, 1.0): 3.0,
    (2.0, 2.0, 2.0): 2.0,
    (0.001, 1.0, 1000.0): 1.0,
}


def test_depthwise_between_is_solved_at_once():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    with torch.no_grad():
        for layer, numbers in zip(model[::2], zip(*MEANS, strict=True), strict=True):
            layer.weight.copy_(torch.tensor(numbers).reshape(layer.weight.shape))
    equalized = equalize(model, torch.ones(1, 1, 2, 2), sweeps=1)
    for layer in equalized[::2]:  # type: ignore[misc]
        torch.testing.assert_close(layer.weight.flatten(), torch.tensor(list(MEANS.values())))


SEPARABLE = ["Conv2d", "ConvTranspose2d"]


@st.composite
def models(draw):
    """A model with pairs, depthwise and grouped convolutions, residual sums and concatenations."""
    torch.manual_seed(draw(st.integers(0, 999)))
    width = draw(st.sampled_from([4, 6]))
    act = draw(st.sampled_from([F.relu, nn.PReLU(), nn.LeakyReLU(0.2), nn.PReLU(width), nn.MaxPool2d(3, 1, 1)]))
    kind = getattr(nn, draw(st.sampled_from(SEPARABLE)))
    bias = draw(st.booleans())
    blocks = draw(st.lists(st.sampled_from(["plain", "residual", "depthwise", "grouped", "concatenated"]), max_size=3))
    layers = {"stem": kind(3, width, 2, bias=bias), "head": nn.Linear(width * 4, 5), "act": nn.Identity()}
    if isinstance(act, nn.Module):
        layers["act"] = act
    for number, block in enumerate(blocks):
        groups = {"depthwise": width, "grouped": 2}.get(block, 1)
        inner = 2 * width if block == "concatenated" else width
        layers[f"a{number}"] = kind(width, width, 1, groups=groups, bias=bias)
        layers[f"b{number}"] = kind(inner, width, 3, padding=1, bias=bias)

    def forward(self, x):
        act_ = self.act if isinstance(act, nn.Module) else act
        x = act_(self.stem(x))
        for number, block in enumerate(blocks):
            y = act_(getattr(self, f"a{number}")(x))
            y = torch.cat([y, x], 1) if block == "concatenated" else y
            y = getattr(self, f"b{number}")(y)
            x = act_(x + y if block == "residual" else y)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))

    return uneven(Net(forward, **layers))


@settings(max_examples=20)
@given(models(), st.sampled_from([(torch.float32, 1e-4), (torch.float64, 1e-11)]))
def test_output_is_unchanged(model, precision):
    dtype, tolerance = precision
    model = model.to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    equalized = equalize(model, x)
    with torch.no_grad():
        expected, got = model.eval()(x), equalized.eval()(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@settings(max_examples=15)
@given(models())
def test_ends_where_it_does_not_move(model):
    """Twice is once: the ranges of writers and readers are equal, in the limit where regions share layers."""
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64)
    once = equalize(model.double(), x, sweeps=400, tolerance=1e-9)
    twice = equalize(once, x, sweeps=1)
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=1e-5, atol=0)


def test_one_sweep_ends_disjoint_pairs():
    torch.manual_seed(0)
    model = uneven(
        nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 4), nn.Linear(4, 2))
    )
    once = equalize(model.double(), torch.randn(1, 3, dtype=torch.float64), sweeps=1)
    twice = equalize(once, torch.randn(1, 3, dtype=torch.float64), sweeps=1)
    torch.testing.assert_close(twice.state_dict(), once.state_dict(), rtol=1e-14, atol=0)
    torch.testing.assert_close(ranges(once[0], 0), ranges(once[2], 1), rtol=1e-14, atol=0)
    torch.testing.assert_close(ranges(once[4], 0), ranges(once[5], 1), rtol=1e-14, atol=0)


def test_residual_sum_takes_the_largest_of_all_writers_and_readers():
    def forward(self, x):
        return self.c(self.a(x) + self.b(x))

    model = Net(forward, a=nn.Linear(1, 2), b=nn.Linear(1, 2), c=nn.Linear(2, 1))
    with torch.no_grad():
        model.a.weight.copy_(torch.tensor([[16.0], [1.0]]))
        model.b.weight.copy_(torch.tensor([[2.0], [4.0]]))
        model.c.weight.copy_(torch.tensor([[1.0, 1.0]]))
    equalized = equalize(model, torch.ones(1, 1))
    assert equalized.a.weight.flatten().tolist() == [4.0, 0.5]
    assert equalized.b.weight.flatten().tolist() == [0.5, 2.0]
    assert equalized.c.weight.flatten().tolist() == [4.0, 2.0]


def test_flattened_channels_take_the_largest_of_their_positions():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[4.0, 2.0, 1.0, 3.0]]))
    equalized = equalize(model, torch.ones(1, 1, 1, 2))
    assert equalized[0].weight.flatten().tolist() == [2.0, 3.0]
    assert equalized[2].weight.tolist() == [[2.0, 1.0, 1.0, 3.0]]


@pytest.mark.parametrize("dead", ["row", "column", "both"])
def test_zero_channels_stay(dead):
    torch.manual_seed(0)
    model = uneven(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        if dead != "column":
            model[0].weight[1] = 0
        if dead != "row":
            model[2].weight[:, 1] = 0
    equalized = equalize(model, torch.randn(1, 3))
    assert all(bool(each.isfinite().all()) for each in equalized.parameters())
    assert torch.equal(equalized[0].weight[1], model[0].weight[1])
    assert torch.equal(equalized[0].bias[1], model[0].bias[1])
    assert torch.equal(equalized[2].weight[:, 1], model[2].weight[:, 1])


def test_statistics_of_folded_batch_norms_follow():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
    nn.init.uniform_(model[1].bias)
    folded = fold_batch_norms(model, torch.randn(1, 3))
    equalized = equalize(folded, torch.randn(1, 3))
    scale = folded[0].bias / equalized[0].bias
    torch.testing.assert_close(equalized[0].folded_mean, folded[0].folded_mean / scale)
    torch.testing.assert_close(equalized[0].folded_std, folded[0].folded_std / scale)


def test_parameters_stay_tied_and_trainable():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2), nn.Linear(2, 2))
    model[4].weight = model[3].weight
    model[0].weight.requires_grad_(False)
    equalized = equalize(model, torch.ones(1, 2))
    assert equalized[4].weight is equalized[3].weight
    assert [each.requires_grad for each in equalized.parameters()] == [
        each.requires_grad for each in model.parameters()
    ]
    assert equalized.report["3"].text == "left: it shares its weight with 4"


def relu6_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 2), nn.ReLU6())


def test_relu6_is_kept():
    message = (
        'equalize: nothing to equalize. 0: its output reaches 1 (ReLU6); pass relu6="replace" to have a ReLU there. '
        "2: its output reaches 3 (ReLU6)"
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}"):
        equalize(relu6_net(), torch.ones(1, 3))


def test_relu6_is_replaced_where_scales_pass():
    model = uneven(relu6_net())
    x = torch.randn(5, 3)
    equalized = equalize(model, x, relu6="replace")
    assert [type(each) for each in equalized] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU6]
    replaced = copy.deepcopy(model)
    replaced[1] = nn.ReLU()
    torch.testing.assert_close(equalized(x), replaced(x), rtol=1e-5, atol=1e-5)
    assert equalized.report["1"].action == "replaced by ReLU"
    assert isinstance(model[1], nn.ReLU6)


def test_unknown_choice_for_relu6():
    message = 'equalize: relu6=True is neither "keep" nor "replace".'
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        equalize(relu6_net(), torch.ones(1, 3), relu6=True)


def test_report():
    def forward(self, x):
        return self.d(F.gelu(self.c(F.relu(self.b(F.relu(self.a(x)))))))

    layers = {name: nn.Linear(2, 2) for name in "abcde"}
    for layer in layers.values():
        nn.init.constant_(layer.weight, 1.0)
    layers["b"].weight.data[1] = 0.25
    report = equalize(Net(forward, **layers), torch.ones(1, 2), sweeps=1).report
    assert str(report) == (
        "equalize: 3 changed, 2 left\n"
        "  a  equalized outputs with b (balance before 1, balance after 1)\n"
        "  b  equalized outputs with c, inputs with a (balance before 0.625, balance after 0.75)\n"
        "  c  equalized inputs with b: its output reaches gelu (gelu)\n"
        "  d  left: the model returns its output\n"
        "  e  left: no example reaches it"
    )


def test_model_without_layers():
    message = "equalize: nothing to equalize. The model has no convolution or linear layer."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        equalize(nn.ReLU(), torch.ones(1))


def test_quantized_model():
    message = "equalize: 0 is a QuantLinear, and equalize changes float models. Call it before quantize."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        equalize(nn.Sequential(qnn.QuantLinear(2, 2)), torch.ones(1, 2))


def test_weight_read_behind_the_back_of_the_recorder():
    """Equalization that would change the result is refused, and the model stays."""

    def forward(self, x):
        y = F.relu(self.a(x))
        return self.b(y) * float(self.a.weight.detach().numpy().sum())

    torch.manual_seed(0)
    model = uneven(Net(forward, a=nn.Linear(2, 3), b=nn.Linear(3, 2)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GraphError, match=r"^equalize: the result is no longer the model's: it differs by "):
        equalize(model, torch.ones(1, 2))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def loaded(model, arrays):
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), arrays, strict=True):
            parameter.copy_(torch.from_numpy(array))
    return model


def test_golden_pair():
    """An independent program in numpy gives the same weights."""
    golden = np.load(GOLDEN / "dfq.npz")
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)).double()
    equalized = equalize(loaded(model, [golden[name] for name in ("W1", "b1", "W3")]), torch.randn(1, 3, 4, 4).double())
    for parameter, name in zip(equalized.parameters(), ("W1", "b1", "W3"), strict=True):
        torch.testing.assert_close(parameter.data, torch.from_numpy(golden[f"pair_{name}"]), rtol=1e-14, atol=0)


def test_golden_depthwise_triple():
    golden, names = np.load(GOLDEN / "dfq.npz"), ("W1", "b1", "Wd", "bd", "W3")
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)
    model = loaded(nn.Sequential(*layers).double(), [golden[name] for name in names])
    equalized = equalize(model, torch.randn(1, 3, 8, 8).double())
    for parameter, name in zip(equalized.parameters(), names, strict=True):
        torch.testing.assert_close(parameter.data, torch.from_numpy(golden[f"dw_{name}"]), rtol=1e-14, atol=0)


def test_golden_of_another_library():
    """Brevitas ends its sweeps within 5 % of where they lead."""
    golden = np.load(GOLDEN / "brevitas_cle.npz")
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), depthwise, nn.ReLU(), nn.Conv2d(6, 4, 1)
    model = loaded(nn.Sequential(*layers).double(), [golden[f"p{number}"] for number in range(6)])
    x = torch.from_numpy(golden["x"])
    equalized = equalize(model, x)
    torch.testing.assert_close(equalized(x), torch.from_numpy(golden["y"]), rtol=0, atol=1e-12)
    for number, parameter in enumerate(equalized.parameters()):
        expected = torch.from_numpy(golden[f"maxabs_10_p{number}"])
        torch.testing.assert_close(parameter.data, expected, rtol=0.05, atol=0)
