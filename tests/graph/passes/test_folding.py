import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.folding import fold_batch_norms
from bitwright.quantizers import Int4WeightPerChannel
from tests.graph.models.named import Net


def lived(norm):
    """A BatchNorm whose statistics and parameters are not those it starts with."""
    for number, tensor in enumerate((norm.running_mean, norm.running_var, norm.weight, norm.bias)):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5 if number == 1 else -2, 2)
    return norm


@st.composite
def pairs(draw):
    """A layer, a BatchNorm that fits, and the shape of an input."""
    torch.manual_seed(draw(st.integers(0, 99)))
    kinds = ["Linear", *(f"Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3))]
    kind, groups = draw(st.sampled_from(kinds)), draw(st.integers(1, 3))
    inputs, outputs = 2 * groups, draw(st.integers(1, 3)) * groups
    bias, affine = draw(st.booleans()), draw(st.booleans())
    if kind == "Linear":
        return nn.Linear(inputs, outputs, bias=bias), lived(nn.BatchNorm1d(outputs, affine=affine)), (3, inputs)
    dimensions = int(kind[-2])
    layer = getattr(nn, kind)(inputs, outputs, 2, groups=groups, bias=bias)
    return layer, lived(getattr(nn, f"BatchNorm{dimensions}d")(outputs, affine=affine)), (3, inputs, *[4] * dimensions)


@given(pairs(), st.sampled_from([(torch.float32, 2e-5), (torch.float64, 1e-12)]))
def test_output_is_unchanged(pair, precision):
    dtype, tolerance = precision
    layer, norm, shape = pair
    model = nn.Sequential(layer, norm).to(dtype).eval()
    x = torch.randn(shape, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model, x)
    assert isinstance(folded[1], nn.Identity)
    expected = model(x).detach()
    torch.testing.assert_close(folded(x).detach(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_numbers():
    layer, norm = nn.Linear(1, 2, bias=False), nn.BatchNorm1d(2, eps=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0], [3.0]]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0]))
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
        norm.weight.copy_(torch.tensor([-6.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0]))
    folded = fold_batch_norms(nn.Sequential(layer, norm), torch.ones(1, 1))
    assert folded[0].weight.tolist() == [[-3.0], [3.0]]
    assert folded[0].bias.tolist() == [3.5, -2.0]
    assert folded[0].folded_mean.tolist() == [0.5, 0.0]
    assert folded[0].folded_std.tolist() == [6.0, 1.0]


def test_statistics_survive_copies_and_are_no_state():
    folded = fold_batch_norms(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2, affine=False)), torch.ones(1, 1))
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
    copied = copy.deepcopy(folded)[0]
    assert copied.folded_mean.tolist() == [0.0, 0.0]
    assert copied.folded_std.tolist() == [1.0, 1.0]
    assert folded.double()[0].folded_std.dtype == torch.float64


def test_training_flags_and_gradients_stay():
    model = nn.Sequential(nn.Linear(1, 2, bias=False).requires_grad_(False), nn.BatchNorm1d(2)).train()
    model[1].eval()
    folded = fold_batch_norms(model, torch.ones(1, 1))
    assert [module.training for module in folded.modules()] == [True, True, False]
    assert [module.training for module in model.modules()] == [True, True, False]
    assert not folded[0].bias.requires_grad


def test_codes_per_channel_are_the_same():
    """Folding multiplies the rows of a weight, and per-channel scales go with them: only signs can change."""
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(3, 6, 3), lived(nn.BatchNorm2d(6))
    folded = fold_batch_norms(nn.Sequential(layer, norm).eval(), torch.randn(1, 3, 5, 5))

    def codes(conv):
        quantized = qnn.QuantConv2d(3, 6, 3, weight_quant=Int4WeightPerChannel)
        quantized.load_state_dict(conv.state_dict())
        return quantized.int_weight()

    signs = norm.weight.sign().reshape(-1, 1, 1, 1).to(torch.int8)
    assert torch.equal(codes(folded[0]), codes(layer) * signs)


def test_other_paths_of_a_batch_norm():
    """One BatchNorm registered twice and called once is replaced in both places."""
    model = Net(lambda self, x: self.bn(self.conv(x)), conv=nn.Conv1d(1, 2, 1), bn=nn.BatchNorm1d(2))
    model.alias = model.bn
    folded = fold_batch_norms(model.eval(), torch.ones(1, 1, 4))
    assert isinstance(folded.bn, nn.Identity)
    assert folded.alias is folded.bn


class SamePadding(nn.Conv2d):
    """A subclass as model zoos have it."""

    def forward(self, input):  # noqa: A002 - torch's name for it
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias)


class Standardized(nn.Conv2d):
    """A subclass whose output does not follow the scale of its weight."""

    def forward(self, input):  # noqa: A002 - torch's name for it
        return F.conv2d(input, self.weight / self.weight.norm(), self.bias)


def test_subclass_that_scales_with_its_weight():
    model = nn.Sequential(SamePadding(2, 3, 2), lived(nn.BatchNorm2d(3))).double().eval()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    folded = fold_batch_norms(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, input):  # noqa: A002 - torch's name for it
        return F.relu(super().forward(input))


def conv_and(bn=None, **layers):
    return {"conv": nn.Conv2d(1, 2, 1), "bn": bn or nn.BatchNorm2d(2), **layers}


def tied():
    layers = conv_and(other=nn.Conv2d(1, 2, 1))
    layers["other"].weight = layers["conv"].weight
    return layers


def hooked():
    layers = conv_and()
    layers["bn"].register_forward_hook(lambda module, args, output: None)
    return layers


LEFT = {
    "after an activation": (
        lambda self, x: self.bn(self.relu(self.conv(x))),
        conv_and(relu=nn.ReLU()),
        "its input comes from relu (ReLU), not from a convolution or linear layer",
    ),
    "after a function": (
        lambda self, x: self.bn(F.relu(self.conv(x))),
        conv_and(),
        "its input comes from relu (relu), not from a convolution or linear layer",
    ),
    "not reached": (lambda self, x: self.conv(x), conv_and(), "no example reaches it"),
    "called twice": (lambda self, x: self.bn(self.bn(self.conv(x))), conv_and(), "it is called 2 times"),
    "layer called twice": (
        lambda self, x: self.bn(self.conv(self.conv(x)[:, :1])),
        conv_and(),
        "conv is called 2 times",
    ),
    "no statistics": (
        lambda self, x: self.bn(self.conv(x)),
        conv_and(nn.BatchNorm2d(2, track_running_stats=False)),
        "it keeps no running statistics",
    ),
    "tied": (lambda self, x: self.bn(self.conv(x)), tied(), "conv shares its weight with other"),
    "parametrized": (
        lambda self, x: self.bn(self.conv(x)),
        conv_and() | {"conv": parametrizations.weight_norm(nn.Conv2d(1, 2, 1))},
        "conv has its weight computed, by a parametrization or a hook",
    ),
    "weights standardized": (
        lambda self, x: self.bn(self.conv(x)),
        conv_and() | {"conv": Standardized(1, 2, 1)},
        "conv is a Standardized, whose own forward does not scale with its weight",
    ),
    "norm with its own forward": (
        lambda self, x: self.bn(self.conv(x)),
        conv_and(OwnNorm(2)),
        "OwnNorm has a forward of its own",
    ),
    "hooks": (
        lambda self, x: self.bn(self.conv(x)),
        hooked(),
        "it has forward hooks, and an nn.Identity takes its place",
    ),
    "of an input": (
        lambda self, x: self.bn(x.expand(-1, 2, -1, -1) * 1),
        conv_and(),
        "its input comes from mul (mul), not from a convolution or linear layer",
    ),
}


def refused(model, x):
    with pytest.raises(GraphError) as raised:
        fold_batch_norms(model.eval(), x)
    return str(raised.value)


@pytest.mark.parametrize("name", LEFT)
def test_left_with_the_reason(name):
    forward, layers, reason = LEFT[name]
    message = refused(Net(forward, **layers), torch.ones(1, 1, 3, 3))
    assert message == f"fold_batch_norms: nothing to fold. bn: {reason}."


def test_second_reader():
    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + self.relu(x)

    message = refused(Net(forward, **conv_and(relu=nn.ReLU())), torch.ones(1, 1, 3, 3))
    assert message == "fold_batch_norms: nothing to fold. bn: relu reads the result of conv, too."


def test_result_that_the_model_returns():
    def forward(self, x):
        x = self.conv(x)
        return x, self.bn(x)

    message = refused(Net(forward, **conv_and()), torch.ones(1, 1, 3, 3))
    assert message == "fold_batch_norms: nothing to fold. bn: the model returns the result of conv, too."


def test_weight_that_a_function_reads():
    def forward(self, x):
        return self.bn(self.conv(x)) + F.conv2d(x, self.conv.weight)

    message = refused(Net(forward, **conv_and()), torch.ones(1, 1, 3, 3))
    assert message == "fold_batch_norms: nothing to fold. bn: conv has its weight read by a function, too."


def test_channels_of_a_linear_layer_that_are_the_last():
    model = nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(3))
    message = refused(model, torch.ones(1, 3, 5))
    assert message == (
        "fold_batch_norms: nothing to fold. 1: it normalizes dimension 1, and the channels of 0 are the last."
    )


def test_model_without_batch_norm():
    assert refused(nn.Linear(1, 1), torch.ones(1, 1)) == (
        "fold_batch_norms: nothing to fold. The model has no BatchNorm."
    )


def test_folded_model_has_nothing_left_to_fold():
    folded = fold_batch_norms(nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).eval(), torch.ones(1, 1))
    assert refused(folded, torch.ones(1, 1)) == "fold_batch_norms: nothing to fold. The model has no BatchNorm."


def test_quantized_model():
    assert refused(nn.Sequential(qnn.QuantConv2d(1, 2, 1), nn.BatchNorm2d(2)), torch.ones(1, 1, 3, 3)) == (
        "fold_batch_norms: 0 is a QuantConv2d, and fold_batch_norms changes float models. Call it before quantize."
    )


def test_residual_block():
    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += self.bn3(self.conv3(x))
        return F.relu(y)

    torch.manual_seed(0)
    layers = {f"bn{n}": lived(nn.BatchNorm2d(4)) for n in (1, 2, 3)}
    layers |= {
        "conv1": nn.Conv2d(2, 4, 3, padding=1),
        "conv2": nn.Conv2d(4, 4, 3, padding=1),
        "conv3": nn.Conv2d(2, 4, 1),
    }
    model = Net(forward, **layers).double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    folded = fold_batch_norms(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert str(folded.report) == (
        "fold_batch_norms: 3 changed, 0 left\n"
        "  bn1  folded into conv1\n"
        "  bn2  folded into conv2\n"
        "  bn3  folded into conv3"
    )


def test_failure_leaves_the_model():
    def forward(self, x):
        raise RuntimeError("no")

    model = Net(forward, **conv_and()).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="no"):
        fold_batch_norms(model, torch.ones(1, 1, 3, 3))
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
