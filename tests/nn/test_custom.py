"""Quantizers of the user's own: one class for a scaling, one (or a function) for a rounding, nothing to register."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import (
    AbsMax,
    FloatScale,
    Grid,
    Integers,
    IntRange,
    Quantizer,
    QuantizerError,
    QuantTensor,
    TensorQuant,
    describe,
    value,
)
from bitwright.quantizers import (
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int32Bias,
    PerOutputChannel,
    PowerOfTwo,
    Shifted,
    Uint4Act,
)


class MyScaling(nn.Module):
    """A learned share of the mean magnitude; asks for two attributes of the quantizer and has a default."""

    def __init__(self, int_range, sigma, start=1.0):
        super().__init__()
        self.int_range, self.sigma = int_range, sigma
        self.share = nn.Parameter(torch.tensor(float(start)))

    def forward(self, x):
        return x.detach().abs().mean() * self.sigma * self.share / self.int_range.max_int


class MyWeight(Int8WeightPerTensor):
    """The example of the issue: a custom scheme is a subclass."""

    bit_width = 4
    scaling = MyScaling
    sigma = 2.0


class ChannelMeans(nn.Module):
    """One scale for each index of whatever axis the quantizer has."""

    def __init__(self, int_range, axis):
        super().__init__()
        self.top, self.axis = int_range.max_int, axis

    def forward(self, x):
        others = [dim for dim in range(x.ndim) if dim != self.axis % x.ndim]
        return (4 * x.detach().abs().mean(others, keepdim=True) / self.top).clamp_min(1e-6)


class UpFromAThird:
    """A rounding without state."""

    def __call__(self, x):
        return torch.floor(x + 2 / 3)

    def __eq__(self, other):
        return type(self) is type(other)

    def __hash__(self):
        return hash(type(self))


class Noisy(nn.Module):
    """A rounding with state, and a setting of its own."""

    def __init__(self, noise=0.25):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        return torch.round(x + self.noise * (2 * torch.rand_like(x) - 1) if self.training else x)


class Soft:
    """A rounding with a gradient of its own."""

    straight_through = False

    def __call__(self, x):
        return torch.round(x).detach() + 2 * (x - x.detach())


def to_even_numbers(x):
    """A rounding that is a plain function."""
    return torch.round(x / 2) * 2


class SecondLargest:
    """A statistic."""

    def __call__(self, x, axis=None):
        rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
        found = rows.abs().topk(2, 1).values[:, 1]
        return found[0] if axis is None else found


class Halves(FloatScale):
    """A restriction: multiples of a half."""

    def restrict(self, magnitude):
        return (magnitude * 2).ceil() / 2


class Middle:
    """A zero point: the middle of the range."""

    def __init__(self, int_range):
        self.middle = (int_range.min_int + int_range.max_int + 1) // 2

    def __call__(self, x, scale):
        return torch.full_like(scale, self.middle)


class Signs(TensorQuant):
    """A kind of quantization of its own."""

    def __init__(self, threshold=0.0):
        super().__init__()
        self.threshold, self.bit_width = threshold, 2

    def _quantize(self, x, *context):
        scale = x.detach().abs().mean()
        values = torch.where(x.detach() < self.threshold, -scale, scale) + (x - x.detach())
        return values, Grid(scale, number_format=Integers(2, narrow_range=True), source=self.source)

    def scheme(self):
        return f"signs from {self.threshold}"


class SignWeight(Quantizer):
    tensor_quant = Signs
    threshold = 0.1


CUSTOM = {
    "scaling": (lambda: qnn.QuantLinear(6, 4, weight_quant=MyWeight)),
    "scaling by keyword": (lambda: qnn.QuantLinear(6, 4, weight_scaling=MyScaling, weight_sigma=3.0, weight_start=0.5)),
    "scaling per channel": (lambda: qnn.QuantLinear(6, 4, weight_quant=Int8WeightPerChannel(scaling=ChannelMeans))),
    "scaling of an activation": (lambda: qnn.QuantReLU(scaling=MyScaling, sigma=3.0)),
    "scaling per channel of an activation": (lambda: qnn.QuantReLU(scaling=ChannelMeans, axis=1)),
    "rounding class": (lambda: qnn.QuantLinear(6, 4, weight_rounding=UpFromAThird)),
    "rounding instance": (lambda: qnn.QuantLinear(6, 4, weight_rounding=UpFromAThird())),
    "rounding module": (lambda: qnn.QuantLinear(6, 4, weight_rounding=Noisy, weight_noise=0.1)),
    "rounding function": (lambda: qnn.QuantReLU(rounding=to_even_numbers)),
    "rounding with a gradient": (lambda: qnn.QuantReLU(rounding=Soft, scale=0.1)),
    "rounding of a bias": (
        lambda: qnn.QuantLinear(6, 4, bias_quant=Int32Bias(rounding=to_even_numbers), input_quant=Int8Act)
    ),
    "statistic": (lambda: qnn.QuantLinear(6, 4, weight_statistic=SecondLargest)),
    "statistic of an activation": (lambda: qnn.QuantReLU(statistic=SecondLargest)),
    "restriction": (lambda: qnn.QuantLinear(6, 4, weight_restriction=Halves)),
    "zero point": (lambda: qnn.QuantReLU(act_quant=Int8Act(signed=False, zero_point=Middle))),
    "everything": (
        lambda: qnn.QuantLinear(6, 4, weight_quant=MyWeight, weight_rounding=UpFromAThird, weight_bit_width=3)
    ),
    "a kind of its own": (lambda: qnn.QuantLinear(6, 4, weight_quant=SignWeight)),
}


def quantizer_of(layer):
    return layer.weight_quant if hasattr(layer, "weight_quant") else layer.act_quant


def made(name):
    torch.manual_seed(0)
    layer = CUSTOM[name]()
    layer(torch.randn(5, 6))
    return layer


@pytest.mark.parametrize("name", CUSTOM)
def test_values_lie_on_the_grid(name):
    layer = made(name).eval()
    if hasattr(layer, "weight_quant"):
        weight = layer.quant_weight()
        assert weight.is_valid
        assert torch.equal((layer.int_weight() - weight.zero_point) * weight.scale, weight.value)
    else:
        layer.return_quant_tensor = True
        assert layer(torch.randn(5, 6)).is_valid


@pytest.mark.parametrize("name", CUSTOM)
def test_trains(name):
    layer = made(name)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1) if list(layer.parameters()) else None
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    x = torch.randn(5, 6, requires_grad=True)
    for _ in range(2):
        (layer(x) - 1).square().sum().backward()
        if optimizer:
            optimizer.step()
    assert x.grad.abs().sum() > 0
    if hasattr(layer, "weight"):
        assert not torch.equal(layer.weight, before[0])


@pytest.mark.parametrize("name", CUSTOM)
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_pickles(name, way):
    layer = made(name)
    copied = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    x = torch.randn(5, 6)
    assert torch.equal(copied.eval()(x), layer.eval()(x))
    assert quantizer_of(copied).quantizer == quantizer_of(layer).quantizer


@pytest.mark.parametrize("name", CUSTOM)
def test_state_loads(name):
    layer = made(name)
    other = CUSTOM[name]()
    other.load_state_dict(layer.state_dict())
    x = torch.randn(5, 6)
    assert torch.equal(other.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("name", [name for name in CUSTOM if name != "rounding module"])
def test_training_is_evaluation(name):
    layer = made(name)
    for module in layer.modules():
        if hasattr(module, "finish_calibration"):
            module.finish_calibration()
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("name", [name for name in CUSTOM if name != "rounding module"])
def test_compiles(name):
    torch._dynamo.reset()
    layer = made(name)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for seed in range(2):
        x, y = (torch.randn(5, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_() for _ in range(2))
        expected, out = layer(x), compiled(y)
        torch.testing.assert_close(out, expected)
        expected.square().sum().backward()
        out.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad)
    for one, two in zip(layer.parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad)


# What each does


def test_the_example_of_the_issue():
    conv = qnn.QuantConv2d(
        3, 6, 5, bias=True, weight_quant=MyWeight, weight_bit_width=3, bias_quant=Int32Bias, return_quant_tensor=True
    )
    act = qnn.QuantReLU(act_quant=Uint4Act, return_quant_tensor=True)
    model = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), conv, act)
    out = model(torch.randn(2, 3, 8, 8))
    assert isinstance(out, QuantTensor)
    assert (out.bit_width, out.signed) == (4, False)
    assert out.int().max() == 15
    weight = conv.quant_weight()
    assert weight.bit_width == 3
    expected = conv.weight.abs().mean() * 2.0 / 3
    torch.testing.assert_close(weight.scale, expected)
    assert weight.int().min() == -3
    assert [name for name, _ in conv.named_parameters()] == ["weight", "bias", "weight_quant.scaling.share"]


def test_literal_numbers_of_a_scaling():
    layer = qnn.QuantLinear(2, 1, False, weight_quant=MyWeight, weight_sigma=3.5)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -3.0]]))  # mean magnitude 2, times 3.5 / 7: steps of 1
    assert layer.int_weight().tolist() == [[1, -3]]
    with torch.no_grad():
        layer.weight_quant.scaling.share.fill_(0.25)
    assert layer.quant_weight().tolist() == [[1.0, -1.75]]  # clipped at 7 steps of 0.25


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (UpFromAThird, [0.0, 1.0, 1.0, -1.0, 0.0]),
        (UpFromAThird(), [0.0, 1.0, 1.0, -1.0, 0.0]),
        (to_even_numbers, [0.0, 0.0, 0.0, -2.0, 0.0]),
        (lambda x: torch.ceil(x), [1.0, 1.0, 1.0, -1.0, 0.0]),
        (torch.trunc, [0.0, 0.0, 0.0, -1.0, 0.0]),
    ],
)
def test_literal_numbers_of_a_rounding(rounding, expected):
    x = torch.tensor([0.2, 0.4, 0.6, -1.2, -0.3], requires_grad=True)
    out = qnn.QuantIdentity(rounding=rounding, scale=1.0)(x)
    assert out.tolist() == expected
    out.sum().backward()
    assert x.grad.tolist() == [1.0] * 5  # straight through


def test_a_rounding_may_bring_its_own_gradient():
    x = torch.tensor([0.2, 99.0], requires_grad=True)
    qnn.QuantIdentity(rounding=Soft, scale=0.1)(x).sum().backward()
    assert x.grad.tolist() == [2.0, 0.0]


def test_a_rounding_module_follows_training_and_evaluation():
    layer = qnn.QuantIdentity(rounding=Noisy, noise=0.49, scale=1.0)
    x = torch.full((1000,), 0.3)
    assert 0 < layer(x).mean() < 1
    assert layer.eval()(x).tolist() == [0.0] * 1000


def test_a_statistic_serves_every_scaling():
    x = torch.tensor([[1.0, -7.0, 3.5]])
    for scaling in ("statistic", "calibrated", "learned", "running"):
        layer = qnn.QuantIdentity(statistic=SecondLargest, scaling=scaling, bit_width=4, narrow_range=True)
        assert layer(x).tolist() == [[1.0, -3.5, 3.5]]


def test_a_restriction():
    layer = qnn.QuantLinear(2, 1, False, weight_restriction=Halves, weight_bit_width=2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, -0.7]]))
    assert layer.quant_weight().tolist() == [[1.0, -1.0]]


def test_a_zero_point():
    layer = qnn.QuantIdentity(act_quant=Int8Act(signed=False, zero_point=Middle), scale=0.5, return_quant_tensor=True)
    out = layer(torch.tensor([-1.0, 0.0, 3.0]))
    assert out.int().tolist() == [126, 128, 134]
    assert out.tolist() == [-1.0, 0.0, 3.0]


def test_a_kind_of_its_own():
    layer = qnn.QuantLinear(3, 1, False, weight_quant=SignWeight)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.05, 0.25, -0.6]]))
    torch.testing.assert_close(layer.quant_weight().value, torch.tensor([[-0.3, 0.3, -0.3]]))
    assert layer.int_weight().tolist() == [[-1, 1, -1]]
    with pytest.raises(RuntimeError, match=r"the file holds signs from 0\.1, the model is signs from 0\.5"):
        qnn.QuantLinear(3, 1, False, weight_quant=SignWeight, weight_threshold=0.5).load_state_dict(layer.state_dict())


def test_attributes_derived_from_others():
    class Wider(MyWeight):
        @value
        def sigma(bit_width):  # noqa: N805
            return 2.0 * bit_width

    layer = qnn.QuantLinear(4, 2, weight_quant=Wider, weight_bit_width=5)
    assert layer.weight_quant.scaling.sigma == 10.0


def test_fragments_combine():
    class Mine(PerOutputChannel, PowerOfTwo, Int8WeightPerTensor):
        bit_width = 5

    layer = qnn.QuantLinear(4, 3, weight_quant=Mine)
    scale = layer.quant_weight().scale
    assert scale.shape == (3, 1)
    assert torch.equal(scale.log2(), scale.log2().round())

    class Offset(Shifted, Int8WeightPerTensor):
        statistic = "min_max"
        bit_width = 3

    assert qnn.QuantLinear(4, 3, weight_quant=Offset).int_weight().max() == 7


def test_one_instance_is_shared_within_a_quantizer():
    class Both(nn.Module):
        def __init__(self, int_range, statistic):
            super().__init__()
            self.int_range, self.statistic = int_range, statistic

        def forward(self, x):
            return self.statistic(x) / self.int_range.threshold

    layer = qnn.QuantLinear(4, 2, weight_scaling=Both)
    assert layer.weight_quant.scaling.int_range is layer.weight_quant.int_range
    assert isinstance(layer.weight_quant.int_range, IntRange)
    assert isinstance(layer.weight_quant.scaling.statistic, AbsMax)


def test_two_layers_have_a_scaling_each():
    one, other = (qnn.QuantLinear(4, 2, weight_quant=MyWeight) for _ in range(2))
    assert one.weight_quant.scaling is not other.weight_quant.scaling


def test_describe_shows_the_class_of_the_user():
    tree = describe(qnn.QuantLinear(4, 2, weight_quant=MyWeight))
    assert tree.find("scaling").value == "MyScaling"
    assert "MyWeight" in tree.find("sigma").set_by


def test_what_a_class_asks_for_must_be_there():
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantReLU(scaling=MyScaling)
    assert str(caught.value) == (
        "QuantReLU(): MyScaling asks for 'sigma', which Uint8Act(scaling=MyScaling) does not have "
        "(tensor_quant > scaling > sigma). Write `sigma = ...` in the quantizer, or give the argument a default. Or "
        "build on a complete one: act_quant=Int8Act, or a subclass of it."
    )


MODULE = """
import torch
from torch import nn
import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerTensor, Uint8Act

class Mean(nn.Module):
    def __init__(self, int_range, factor):
        super().__init__()
        self.int_range = int_range
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, x):
        return x.detach().abs().mean() * self.factor / self.int_range.max_int

class UpFromAThird:
    def __call__(self, x):
        return torch.floor(x + 2 / 3)

def coarse(x):
    return torch.round(x / 2) * 2

class Mine(Int8WeightPerTensor):
    scaling = Mean
    rounding = UpFromAThird
    factor = 3.0

def model():
    torch.manual_seed(0)
    return nn.Sequential(qnn.QuantLinear(6, 4, weight_quant=Mine, weight_bit_width=5), qnn.QuantReLU(rounding=coarse))
"""
SAVES = """
import sys, torch, theirs
model = theirs.model()
model(torch.ones(2, 6))
torch.save(model.eval(), sys.argv[1])
torch.save(model(torch.arange(12.0).reshape(2, 6)).detach(), sys.argv[2])
"""
LOADS = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(model(torch.arange(12.0).reshape(2, 6)), torch.load(sys.argv[2]))
import theirs
assert model[0].weight_quant.quantizer == theirs.Mine(bit_width=5)
assert repr(model[0].weight_quant.quantizer) == "Mine(bit_width=5)"
"""


@pytest.mark.slow
def test_classes_of_the_users_own_load_in_another_process(tmp_path):
    (tmp_path / "theirs.py").write_text(MODULE)
    files = [str(tmp_path / "model.pt"), str(tmp_path / "out.pt")]
    for script in (SAVES, LOADS):
        program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"
        done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


# A statistic with parameters of its own


class Share(nn.Module):
    """A learned share of the largest magnitude."""

    def __init__(self, share=0.5):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(float(share)))

    def forward(self, x, axis=None):
        rows = x.detach().reshape(1, -1) if axis is None else x.detach().movedim(axis, 0).flatten(1)
        found = rows.abs().amax(1) * self.share
        return found[0] if axis is None else found


SHARES = {
    "weight_quant": lambda: qnn.QuantLinear(6, 4, bias=False, weight_statistic=Share, weight_share=0.25),
    "act_quant": lambda: qnn.QuantIdentity(statistic=Share, share=0.25, scaling="statistic"),
}


@pytest.mark.parametrize("slot", SHARES)
def test_a_statistic_keeps_its_own_parameters(slot):
    key = f"{slot}.scaling.statistic.share"
    layer, twin = SHARES[slot](), SHARES[slot]()
    assert [name for name, _ in layer.named_parameters() if name.startswith(slot)] == [key]
    assert layer.state_dict()[key].item() == 0.25
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    copied, before = copy.deepcopy(layer), layer(x)
    optimizer = torch.optim.SGD(layer.parameters(), 0.125)
    (layer(x) - x.sum()).square().sum().backward()
    share = layer.get_parameter(key)
    expected = 0.25 - 0.125 * share.grad.item()
    optimizer.step()
    assert share.item() == pytest.approx(expected)
    assert expected != 0.25
    assert not torch.equal(layer(x), before)
    assert copied.get_parameter(key).item() == 0.25  # not shared with the copy
    assert torch.equal(copied(x), before)
    twin.load_state_dict(layer.state_dict())
    assert twin.get_parameter(key).item() == share.item()
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


def test_the_scale_of_a_learned_share():
    layer = SHARES["weight_quant"]()
    nn.init.constant_(layer.weight, 5.08)
    assert layer.quant_weight().scale.item() == pytest.approx(0.25 * 5.08 / 127)
    layer.weight_quant.scaling.statistic.share.data.fill_(0.5)
    assert layer.quant_weight().scale.item() == pytest.approx(0.02)


@pytest.mark.parametrize("scaling", ["calibrated", "running", "learned"])
def test_a_measured_range_uses_the_parameter_of_its_statistic_and_leaves_it(scaling):
    layer = qnn.QuantIdentity(statistic=Share, share=0.25, scaling=scaling)
    layer(torch.tensor([1.0, -5.08]))
    assert layer.act_quant.scaling(torch.ones(2)).item() == pytest.approx(0.25 * 5.08 / 128, rel=0.5)
    share = layer.act_quant.scaling.statistic.share
    layer.act_quant.scaling.reset_parameters()
    assert share.item() == 0.25
    qnn.finish_calibration(layer)
    twin = qnn.QuantIdentity(statistic=Share, share=0.75, scaling=scaling)
    twin.load_state_dict(layer.state_dict())
    assert twin.act_quant.scaling.statistic.share.item() == 0.25


def test_layers_that_are_given_one_statistic_share_its_parameter():
    statistic = Share()
    layers = nn.Sequential(*(qnn.QuantLinear(4, 4, bias=False, weight_statistic=statistic) for _ in range(2)))
    assert layers[0].weight_quant.scaling.statistic is layers[1].weight_quant.scaling.statistic is statistic
    assert [name for name, _ in layers.named_parameters()] == [
        "0.weight",
        "0.weight_quant.scaling.statistic.share",
        "1.weight",
    ]
