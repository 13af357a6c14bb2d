"""Tables of levels, fixed and learned, and two or three levels, in layers."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import (
    AdditivePowersOfTwo,
    Codebook,
    GridQuant,
    QuantizerError,
    SettingError,
    describe,
    powers_of_two,
)
from bitwright.quantizers import (
    Apot4Act,
    Apot4WeightPerChannel,
    Apot4WeightPerTensor,
    BinaryWeightPerChannel,
    CodebookAct,
    CodebookWeight,
    PerGroup,
    Pot4Act,
    Pot4WeightPerChannel,
    Pot4WeightPerTensor,
    TernaryWeightPerChannel,
)

TABLE = (-1.0, -0.3, 0.0, 0.3, 1.0)


class Mine(CodebookWeight):
    levels = TABLE


class Grouped(PerGroup, Mine):
    learned_levels = True


Learned = Mine(learned_levels=True)
GRIDS = {
    Mine: "codebook (-1, -0.300000012, 0, 0.300000012, 1), per tensor, float scale",
    Learned: "learned codebook of 5 levels, per tensor, float scale",
    Grouped: "learned codebook of 5 levels, groups of 32 along axis 1, float scale",
    Learned(axis=0, scaling="learned"): "learned codebook of 5 levels, axis 0, float scale",
    Pot4WeightPerTensor: "e3m0b7fn, per tensor, float scale",
    Pot4WeightPerChannel: "e3m0b7fn, axis 0, float scale",
    Apot4WeightPerTensor: "additive powers of two, 4 bits, per tensor, float scale",
    Apot4WeightPerChannel: "additive powers of two, 4 bits, axis 0, float scale",
}
SCHEMES = {
    **GRIDS,
    BinaryWeightPerChannel: "binary, axis 0, float scale, signs times the mean",
    TernaryWeightPerChannel: "int2 narrow, axis 0, float scale, ternary above 0.7 of the mean",
}
weights = pytest.mark.parametrize("quantizer", SCHEMES, ids=repr)


def layer(quantizer, **settings):
    torch.manual_seed(0)
    return qnn.QuantLinear(72, 5, weight_quant=quantizer, **settings)


@pytest.fixture
def x():
    return torch.randn(8, 72, generator=torch.Generator().manual_seed(0))


@weights
def test_grid(quantizer):
    module = layer(quantizer)
    assert isinstance(module.weight_quant, GridQuant)
    assert module.weight_quant.scheme() == SCHEMES[quantizer]
    weight = module.quant_weight()
    assert weight.is_valid
    assert torch.equal(weight.grid.from_int(weight.int()), weight.value)


@weights
def test_trains(quantizer, x):
    model = nn.Sequential(layer(quantizer), nn.ReLU(), qnn.QuantLinear(5, 1, weight_quant=quantizer))
    target = x[:, :1].abs() - x[:, 1:2]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.3 * losses[0]


@weights
def test_state_and_copies(quantizer, x):
    one, other = layer(quantizer), qnn.QuantLinear(72, 5, weight_quant=quantizer)
    if quantizer in (Learned, Grouped):
        with torch.no_grad():
            one.weight_quant.levels.table.mul_(torch.tensor([0.9, 1.1, 1.0, 1.2, 0.8]))
    other.load_state_dict(one.state_dict())
    for each in (other, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(each(x), one(x))
        assert each.quant_weight().grid.number_format == one.quant_weight().grid.number_format
    floats = nn.Linear(72, 5)
    other.load_state_dict(floats.state_dict())  # strictly
    assert torch.equal(other.weight, floats.weight)


@weights
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(quantizer, x, dtype):
    module = layer(quantizer).to(dtype)
    y = module(x.to(dtype))
    y.sum().backward()
    assert y.dtype == module.weight.grad.dtype == dtype
    assert module.quant_weight().is_valid


@pytest.mark.parametrize("quantizer", [Grouped, BinaryWeightPerChannel, TernaryWeightPerChannel], ids=repr)
def test_compiles_and_transforms(quantizer, x):
    torch.compiler.reset()
    module = layer(quantizer)
    module(x)  # starts what starts from the weight
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, parameters = module(x), dict(module.named_parameters())
    expected = torch.autograd.grad(y.square().mean(), list(parameters.values()))
    z = compiled(x)
    assert torch.equal(z, y)
    found = torch.autograd.grad(z.square().mean(), list(parameters.values()))

    def loss(weights):
        return torch.func.functional_call(module, weights, (x,)).square().mean()

    for others in (found, torch.func.grad(loss)(parameters).values()):
        for one, other in zip(others, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_learned_levels_move_and_the_grid_says_so(x):
    module = layer(Learned)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()
    table = module.weight_quant.levels.table.detach()
    assert (table - torch.tensor(TABLE)).abs().min() > 0
    weight = module.quant_weight()
    assert weight.grid.number_format == Codebook(table.sort().values.tolist())
    assert weight.value.unique().numel() <= 5
    assert weight.is_valid


def test_gradient_of_levels():
    module = qnn.QuantLinear(4, 1, bias=False, weight_quant=Learned)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[2.0, 0.5, 0.7, -0.1]]))
    module(torch.tensor([[1.0, 2.0, 4.0, 8.0]])).sum().backward()
    assert module.weight_quant.levels.table.grad.tolist() == [0, 0, 16, 12, 2]  # times the scale, 2


def test_described():
    found = describe(Learned).find("number_format")
    assert [(each.attribute, each.value) for each in found.needs][:2] == [
        ("levels", repr(TABLE)),
        ("learned_levels", "True"),
    ]


@pytest.mark.parametrize(
    ("quantizer", "number_format"),
    [
        (Pot4WeightPerTensor(bit_width=3), powers_of_two(3)),
        (Apot4WeightPerTensor(bit_width=8), AdditivePowersOfTwo(8)),
        (Mine(levels=(-1, 0, 2)), Codebook((-1, 0, 2))),
    ],
    ids=repr,
)
def test_settings(quantizer, number_format):
    assert layer(quantizer).quant_weight().grid.number_format == number_format


@pytest.mark.parametrize(
    ("quantizer", "expected"),
    [
        (Pot4Act, [-1, -0.25, 0, 0.5, 1]),
        (Apot4Act, [0, 0, 0, 0.5, 1.5]),
        (CodebookAct(levels=TABLE), [-1, torch.tensor(-0.3).item(), 0, torch.tensor(0.3).item(), 1]),
        (
            CodebookAct(levels=TABLE, learned_levels=True),
            [-1, torch.tensor(-0.3).item(), 0, torch.tensor(0.3).item(), 1],
        ),
    ],
    ids=repr,
)
def test_activations(quantizer, expected):
    x = torch.tensor([-2.0, -0.3, -0.001, 0.51, 9.0])
    act = qnn.QuantIdentity(act_quant=quantizer, scale=1.0, return_quant_tensor=True)
    y = act(x)
    assert y.is_valid
    assert y.value.tolist() == expected
    calibrated = qnn.QuantIdentity(act_quant=quantizer, calibration_steps=1)
    calibrated(x)
    calibrated(x.requires_grad_()).sum().backward()
    assert all(each.grad is not None for each in calibrated.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 3}, "levels=3 is not possible: expected 2 or more finite numbers in ascending order."),
        ({"levels": TABLE, "learned_levels": 1}, "learned_levels=1 is not possible: expected True or False."),
    ],
)
def test_refusals(settings, message):
    quantizer = CodebookWeight(**settings)
    with pytest.raises(SettingError) as error:
        qnn.QuantLinear(4, 2, weight_quant=quantizer)
    assert str(error.value) == f"QuantLinear(in_features=4, out_features=2, bias=True): in {quantizer!r}, {message}"


def test_a_table_is_needed():
    message = "asks for 'levels', which CodebookWeight does not have (tensor_quant > number_format > levels)."
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.QuantLinear(4, 2, weight_quant=CodebookWeight)
