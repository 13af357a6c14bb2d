"""Kinds of functions."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitwright.graph.recording.kinds import KINDS, OPERATORS, is_homogeneous, keeps_grid, kind_of, name_of

X = torch.ones(1, 2, 4, 4)


class Called(TorchFunctionMode):
    """The functions that torch reports."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "functions"),
    {
        "add": [torch.add, Tensor.add, Tensor.add_, Tensor.__iadd__, Tensor.__radd__, operator.add, operator.iadd],
        "sub": [torch.sub, torch.subtract, Tensor.sub_, Tensor.__rsub__, operator.sub],
        "mul": [torch.mul, torch.multiply, Tensor.__mul__, operator.imul],
        "div": [torch.div, torch.true_divide, Tensor.__rtruediv__, operator.truediv],
        "cat": [torch.cat, torch.concat],
        "matmul": [torch.matmul, torch.bmm, torch.einsum, Tensor.matmul, operator.matmul],
        "relu": [torch.relu, torch.relu_, F.relu, F.relu_, Tensor.relu, Tensor.relu_, nn.ReLU],
        "softmax": [torch.softmax, F.softmax, Tensor.softmax, nn.Softmax],
        "attention": [F.scaled_dot_product_attention],
        "max_pool": [F.max_pool2d, torch.max_pool2d, F.adaptive_max_pool1d, nn.MaxPool3d],
        "reshape": [torch.flatten, Tensor.view, Tensor.reshape, nn.Flatten],
        "conv": [F.conv2d, torch.conv1d, nn.Conv2d],
    }.items(),
)
def test_one_kind_for_all_spellings(kind, functions):
    assert [kind_of(each) for each in functions] == [kind] * len(functions)


@pytest.mark.parametrize(
    ("kind", "call"),
    {
        "add": lambda x: x + x,
        "sub": lambda x: 1 - x,
        "mul": lambda x: 2 * x,
        "div": lambda x: 1 / x,
        "matmul": lambda x: x @ x,
        "permute": lambda x: x.mT,
        "getitem": lambda x: x[0],
        "split": lambda x: x.split(1),
        "reshape": lambda x: x.unflatten(-1, (2, 2)),
        "max_pool": lambda x: F.max_pool2d(x, 2),
        "avg_pool": lambda x: F.adaptive_avg_pool2d(x, 1),
        "contiguous": lambda x: x.data,
        "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
        "dropout": lambda x: F.dropout(x, training=False),
        "pad": lambda x: F.pad(x, (1, 1)),
        "interpolate": lambda x: F.interpolate(x, scale_factor=2),
        "layer_norm": lambda x: F.layer_norm(x, (4,)),
        "linear": lambda x: F.linear(x, torch.ones(4, 4)),
        "hardswish": lambda x: F.hardswish(x),
        "mean": lambda x: x.mean((2, 3)),
        "to": lambda x: x.float(),
    }.items(),
)
def test_what_torch_reports_has_the_kind(kind, call):
    x = X.clone()
    with Called() as called:
        call(x)
    assert kind in [kind_of(each) for each in called.functions]


def test_operators_of_torch_ops():
    assert kind_of(torch.ops.aten.add.Tensor) == kind_of(torch.ops.aten.add) == "add"
    assert (kind_of(torch.ops.prim.device), name_of(torch.ops.aten.erf.default)) == (None, "erf")


def test_without_a_kind():
    class Own(nn.ReLU):
        def forward(self, input):  # noqa: A002
            return input

    class Same(nn.ReLU):
        pass

    assert [kind_of(each) for each in (Own, Same, nn.Module, print, [], None)] == [None, "relu", None, None, None, None]
    assert [name_of(each) for each in (torch.erf, Tensor.erf_, Tensor.__and__, Tensor.real.__get__)] == [
        *("erf", "erf", "and", "real")
    ]


def test_no_function_has_two_kinds():
    functions = [each for some in KINDS.values() for each in some]
    assert len(functions) == len(set(functions))
    assert set(OPERATORS) <= set(KINDS)


def test_what_keeps_a_grid_takes_values_from_its_input():
    torch.manual_seed(0)
    x = torch.tensor([[[[1.0, -3.0], [2.0, 7.0]]]])
    for call in (
        (F.interpolate, (x, None, 2), {}),
        (F.pad, (x, (1, 1)), {}),
        (F.max_pool2d, (x, 2), {}),
        (F.dropout, (x,), {"training": False}),
        (Tensor.transpose, (x, 2, 3), {}),
        (torch.flatten, (x,), {}),
        (Tensor.repeat, (x, 2, 2, 1, 1), {}),
    ):
        function, args, kwargs = call
        assert keeps_grid(function, args, kwargs)
        assert set(function(*args, **kwargs).flatten().tolist()) <= {0.0, 1.0, -3.0, 2.0, 7.0}
    for call in (
        (F.interpolate, (x, None, 2, "bilinear"), {}),
        (F.pad, (x, (1, 1)), {"value": 5.0}),
        (F.avg_pool2d, (x, 2), {}),
        (F.dropout, (x,), {}),
        (torch.add, (x, x), {}),
    ):
        function, args, kwargs = call
        assert not keeps_grid(function, args, kwargs)
        assert not set(function(*args, **kwargs).flatten().tolist()) <= {0.0, 1.0, -3.0, 2.0, 7.0}


def test_what_is_homogeneous_carries_over_scales_of_channels():
    torch.manual_seed(0)
    x, scale = torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0, 3.0]).view(1, 3, 1, 1)
    yes = {
        F.relu: {},
        F.leaky_relu: {"negative_slope": 0.2},
        F.max_pool2d: {"kernel_size": 2},
        F.avg_pool2d: {"kernel_size": 2},
        F.interpolate: {"scale_factor": 2, "mode": "bilinear"},
        F.pad: {"pad": (1, 1)},
        torch.mean: {"dim": (2, 3), "keepdim": True},
    }
    no = {
        F.relu6: {},
        F.gelu: {},
        torch.sigmoid: {},
        torch.mean: {"dim": 1, "keepdim": True},
        F.pad: {"pad": (1, 1), "value": 1.0},
    }
    for function, settings in yes.items():
        assert is_homogeneous(function, (x,), settings), function
        torch.testing.assert_close(function(x * scale, **settings), function(x, **settings) * scale)
    for function, settings in no.items():
        assert not is_homogeneous(function, (x,), settings), function
        assert not torch.allclose(function(x * scale, **settings), function(x, **settings) * scale)
    assert is_homogeneous(nn.PReLU)
    assert not is_homogeneous(Tensor.permute)  # the channels may end up in another order
