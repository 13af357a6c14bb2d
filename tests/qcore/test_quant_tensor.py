"""QuantTensor: a torch.Tensor first, and integers wherever an operation keeps them."""

import copy
import itertools
import pickle
import subprocess
import sys
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.qcore import BitwrightError, Grid, Integers, PerAxis, QuantTensor, QuantTensorError, grid_of, values_of
from bitwright.qcore.granularity import granularity_of
from bitwright.qcore.grid import bits_to_spare, products_source
from bitwright.qcore.quant_tensor import grid_lost
from bitwright.quantizers import Int32Bias

SHAPE = (2, 4, 6, 6)
STEP = 0.25


def codes_of(shape=SHAPE, low=-8, high=7, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def grid_for(axis=None, shape=SHAPE, zero_point=False, source="one quantizer"):
    """Signed 4 bit; with an axis, another scale (and zero point) for each index of it."""
    if axis is None:
        return Grid(
            torch.tensor(STEP), torch.tensor(3.0) if zero_point else None, number_format=Integers(4), source=source
        )
    along = [-1 if dim == axis else 1 for dim in range(len(shape))]
    scale = (torch.arange(shape[axis]) * 0.375 + 0.125).reshape(along)
    zero = (torch.arange(shape[axis]) % 5 - 2.0).reshape(along) if zero_point else None
    return Grid(scale, zero, number_format=Integers(4), granularity=granularity_of(axis), source=source)


def quantized(axis=None, shape=SHAPE, seed=0, **kwargs):
    grid = grid_for(axis, shape, **kwargs)
    return QuantTensor.wrap(grid.from_int(codes_of(shape, seed=seed)), grid)


def seeded(function):
    """Layers with weights of their own, the same in every test."""
    torch.manual_seed(0)
    return function()


# What timm's ResNet, MobileNet and ViT families apply to activations between layers.

CONV = seeded(lambda: nn.Conv2d(4, 4, 3, padding=1))
DEPTHWISE = seeded(lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4))
LINEAR = seeded(lambda: nn.Linear(6, 5))
LAYER_NORM = seeded(lambda: nn.LayerNorm(6))
GROUP_NORM = seeded(lambda: nn.GroupNorm(2, 4))
TO_FOUR = torch.tensor([[0], [1], [2], [0], [1], [2]]).T.reshape(1, 1, 1, 6)
PICK = torch.tensor([3, 0, 0])
KEEP = torch.ones(2, 1, 1, 1).index_fill(0, torch.tensor(0), 0.0)

KEPT = {  # one scale for the whole tensor: the result is a QuantTensor
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x.clone(), inplace=True),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "max pool 1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "max pool 3d": lambda x: F.max_pool3d(x.unsqueeze(0), 2),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "flatten": lambda x: x.flatten(1),
    "flatten last two, transpose (patch embedding)": lambda x: x.flatten(2).transpose(1, 2),
    "view": lambda x: x.view(2, -1),
    "view as heads": lambda x: x.flatten(2).transpose(1, 2).reshape(2, 36, 2, 2).permute(0, 2, 1, 3),
    "reshape of a transposed tensor": lambda x: x.transpose(1, 2).reshape(2, -1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(-2, -1),
    "swapaxes": lambda x: x.swapaxes(1, 3),
    "movedim": lambda x: x.movedim(1, -1),
    "mT": lambda x: x.mT,
    "t": lambda x: x[0, 0].t(),
    "squeeze": lambda x: x[:1].squeeze(0),
    "squeeze all": lambda x: x[:1].squeeze(),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: x.split(3, 1)[1],
    "split into sizes": lambda x: x.split([1, 3], 1)[1],
    "tensor_split": lambda x: x.tensor_split(2, 1)[0],
    "unbind": lambda x: x.unbind(0)[1],
    "iteration": lambda x: list(x)[1],
    "cat of one grid": lambda x: torch.cat([x, x[:, 1:]], 1),
    "concat by another name": lambda x: torch.hstack([x, x]),
    "stack of one grid": lambda x: torch.stack([x, x], 1),
    "shortcut +": lambda x: x + x.flip(3),
    "shortcut +=": lambda x: _plus_equals(x),
    "shortcut -": lambda x: x - x.flip(3),
    "zero padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "padding by reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "padding by replication": lambda x: F.pad(x, (1, 0, 2, 1), mode="replicate"),
    "padding by reflection 1d": lambda x: F.pad(x.flatten(2), (1, 1), mode="reflect"),
    "padding by replication 3d": lambda x: F.pad(x.unsqueeze(0), (1, 0, 2, 1, 1, 1), mode="replicate"),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    "dropout that does nothing": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True),
    "unfold (im2col)": lambda x: F.unfold(x, 2),
    "unfold (windows)": lambda x: x.unfold(2, 2, 2),
    "interpolate nearest": lambda x: F.interpolate(x, scale_factor=2),
    "interpolate nearest to a size": lambda x: F.interpolate(x, size=(9, 9)),
    "interpolate nearest exact": lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "expand": lambda x: x[:1].expand(3, -1, -1, -1),
    "expand_as": lambda x: x[:1].expand_as(x),
    "repeat": lambda x: x.repeat(2, 1, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "roll (shifted windows)": lambda x: x.roll((1, -2), (2, 3)),
    "flip": lambda x: x.flip(3),
    "index one": lambda x: x[0],
    "class token": lambda x: x.flatten(2).transpose(1, 2)[:, 0],
    "slice": lambda x: x[:, 1:3, ..., ::2],
    "index with None": lambda x: x[:, None],
    "index with a list": lambda x: x[:, [0, 2]],
    "index with a tensor": lambda x: x[:, PICK],
    "index with a mask": lambda x: x[x > 0],
    "index_select": lambda x: x.index_select(1, PICK),
    "gather": lambda x: x.gather(3, TO_FOUR.expand_as(x[..., :6])),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "select": lambda x: x.select(1, 1),
    "contiguous": lambda x: x.transpose(1, 2).contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "clone": torch.clone,
    "to double": lambda x: x.double(),
    "to float16": lambda x: x.half(),
    "to bfloat16": lambda x: x.to(torch.bfloat16),
    "to a device": lambda x: x.to("cpu").cpu(),
    "type_as": lambda x: x.type_as(torch.zeros(1, dtype=torch.float64)),
}

PLAIN = {  # the result is an ordinary tensor of the right values
    "conv": lambda x: CONV(x),
    "depthwise conv": lambda x: DEPTHWISE(x),
    "linear": lambda x: LINEAR(x),
    "batch norm": lambda x: F.batch_norm(x, torch.full((4,), 0.5), torch.full((4,), 2.0)),
    "batch norm, training": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True),
    "layer norm": lambda x: LAYER_NORM(x),
    "group norm": lambda x: GROUP_NORM(x),
    "rms norm": lambda x: F.rms_norm(x, (6,)),
    "relu6": F.relu6,
    "leaky relu": F.leaky_relu,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1])),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "clamp": lambda x: x.clamp(-0.3, 0.3),
    "avg pool": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive avg pool": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive avg pool to 4": lambda x: F.adaptive_avg_pool2d(x, 4),
    "mean over space": lambda x: x.mean((2, 3)),
    "mean kept": lambda x: x.mean((2, 3), keepdim=True),
    "sum": lambda x: x.sum(1),
    "var": lambda x: x.var(1),
    "norm": lambda x: F.normalize(x, dim=-1),
    "squeeze and excitation": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "layer scale": lambda x: x * torch.full((6,), 0.1),
    "drop path": lambda x: x * (KEEP / 0.5),
    "dropout of everything": lambda x: F.dropout(x, 1.0, training=True),
    "alpha dropout": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "feature alpha dropout": lambda x: F.feature_alpha_dropout(x, 0.3, training=True),
    "times noise": lambda x: x * torch.empty_like(x).fill_(0.7),
    "random leaky relu": lambda x: F.rrelu(x, training=True),
    "times a number": lambda x: x * 2.0,
    "negation": lambda x: -x,
    "division": lambda x: x / 3,
    "power": lambda x: x**2,
    "plus a number": lambda x: x + 1.0,
    "number minus": lambda x: 1.0 - x,
    "plus a tensor": lambda x: x + torch.ones(6),
    "plus a position embedding, in place": lambda x: _plus_equals(x, torch.full((6,), 0.1)),
    "product": lambda x: x * x,
    "matmul": lambda x: x @ x.transpose(-2, -1),
    "bmm": lambda x: torch.bmm(x[0], x[1]),
    "einsum": lambda x: torch.einsum("bchw,bcwd->bchd", x, x),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.flip(2), x.roll(1, 2)),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "attention by hand": lambda x: ((x * 6**-0.5) @ x.transpose(-2, -1)).softmax(-1) @ x,
    "cat with a class token": lambda x: torch.cat([torch.zeros(1, 4, 6, 6), x]),
    "cat with its own values": lambda x: torch.cat([x, values_of(x)], 1),
    "padding with a number": lambda x: F.pad(x, (1, 1), value=1.0),
    "padding by wrapping around": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "interpolate bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "interpolate bicubic": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic"),
    "masked_fill": lambda x: x.masked_fill(x > 0, -torch.inf),
    "where": lambda x: torch.where(x > 0, x, -0.1),
    "where of one grid": lambda x: torch.where(x > 0, x, x.flip(3)),
    "maximum of one grid": lambda x: torch.maximum(x, x.flip(3)),
    "topk": lambda x: x.topk(2)[0],
    "sort": lambda x: x.sort(descending=True)[0],
    "cumsum": lambda x: x.cumsum(1),
    "fold": lambda x: F.fold(F.unfold(x, 2, stride=2), (6, 6), 2, stride=2),
    "glu": lambda x: F.glu(x, 1),
    "lerp": lambda x: torch.lerp(x, x.flip(1), 0.3),
    "addmm": lambda x: torch.addmm(x[0, 0], x[0, 1], x[0, 2]),
    "comparison": lambda x: x > 0.1,
    "equality": lambda x: x == x.flip(1),
    "argmax": lambda x: x.argmax(1),
    "isnan": torch.isnan,
    "to an integer type": lambda x: x.to(torch.int32),
    "zeros_like": torch.zeros_like,
    "new_zeros": lambda x: x.new_zeros(3),
}

WITH_AXIS = {  # operation: the axis of the result for one scale per index of dimension 1, None where it gets lost
    "relu": 1,
    "max pool": 1,
    "max pool 1d": 1,
    "adaptive max pool": 1,
    "interpolate nearest": 1,
    "zero padding": 1,
    "padding by reflection": 1,
    "padding by replication": 1,
    "channel shuffle": None,
    "permute": 3,
    "transpose": 1,
    "swapaxes": 3,
    "movedim": 3,
    "flatten last two, transpose (patch embedding)": 2,
    "class token": 1,
    "index one": 0,
    "index with None": 2,
    "unsqueeze": 2,
    "unbind": 0,
    "expand": 1,
    "contiguous": 2,
    "channels last": 1,
    "clone": 1,
    "shortcut +": None,  # its flip gathers values of one scale, but is not told apart from others
    "flatten": None,
    "chunk": None,
    "slice": None,
    "cat of one grid": None,
    "unfold (im2col)": None,
    "index with a tensor": None,
    "roll (shifted windows)": None,
    "pixel shuffle": None,
    "t": None,
    "select": None,
    "repeat": None,
}


@contextmanager
def naming(*case):
    """An error inside says which case of a sweep it is of."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"case: {case}")
        raise


MODES = {"with gradients": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def _plus_equals(x, other=None):
    other = x.flip(3) if other is None else other
    x += other
    return x


def in_mode(mode, function, *args):
    """What a function gives for plain values and for a QuantTensor of them, with one sequence of random numbers."""
    with MODES[mode]():
        results = []
        for x in args:
            torch.manual_seed(1)
            results.append(function(x() if callable(x) else x))
    return results


def assert_same(got, expected):
    got = values_of(got).detach()
    assert (got.shape, got.dtype, got.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(got, expected.detach())


@pytest.mark.parametrize("operation", KEPT)
def test_operations_that_keep_the_grid(operation):
    function, codes = KEPT[operation], codes_of()
    for zero_point, mode in itertools.product([False, True], MODES):
        grid = grid_for(zero_point=zero_point)
        values = grid.from_int(codes)
        with naming("zero point" if zero_point else "symmetric", mode):
            expected, out = in_mode(mode, function, values.clone, lambda: QuantTensor.wrap(values, grid))  # noqa: B023
            assert type(out) is QuantTensor
            assert_same(out, expected)
            assert out.is_valid
            assert out.scale.item() == STEP
            assert torch.equal((out.int().double() - out.zero_point.double()) * STEP, expected.double())
            if not zero_point:  # values and integers then take the same way through the operation
                assert torch.equal(out.int().double(), function(codes.clone()).double())


@pytest.mark.parametrize("operation", PLAIN)
def test_operations_that_leave_the_grid_give_plain_values(operation):
    for axis, mode in itertools.product([None, 1, 3], MODES):
        grid = grid_for(axis)
        values = grid.from_int(codes_of())
        with naming(f"axis {axis}", mode):
            expected, out = in_mode(
                mode,
                PLAIN[operation],
                values.clone,
                lambda: QuantTensor.wrap(values, grid),  # noqa: B023
            )
            assert type(out) is Tensor
            assert_same(out, expected)


@pytest.mark.parametrize("operation", WITH_AXIS)
def test_scales_of_an_axis_follow_it(operation):
    function, axis, codes = KEPT[operation], WITH_AXIS[operation], codes_of()
    for zero_point, mode in itertools.product([False, True], MODES):
        grid = grid_for(1, zero_point=zero_point)
        values = grid.from_int(codes)
        with naming("zero point" if zero_point else "symmetric", mode):
            expected, out = in_mode(mode, function, values.clone, lambda: QuantTensor.wrap(values, grid))  # noqa: B023
            assert_same(out, expected)
            if axis is None:
                assert type(out) is Tensor
                continue
            assert type(out) is QuantTensor
            assert grid_of(out).axis == axis
            assert out.scale.shape == tuple(4 if dim == axis else 1 for dim in range(out.ndim))
            assert torch.equal(out.scale.reshape(-1), grid.scale.reshape(-1))
            assert torch.equal((out.int() - out.zero_point) * out.scale, expected)
            if not zero_point:
                assert torch.equal(out.int().float(), function(codes))


@pytest.mark.parametrize("cut", ["chunk", "split", "slice", "unbind", "roll", "cat", "pad"])
def test_cutting_along_an_axis_drops_its_scales_and_along_another_keeps_them(cut):
    functions = {
        "chunk": lambda x, dim: x.chunk(2, dim)[0],
        "split": lambda x, dim: x.split([1, x.shape[dim] - 1], dim)[0],
        "slice": lambda x, dim: x.narrow(dim, 0, 1),
        "unbind": lambda x, dim: x.unbind(dim)[0],
        "roll": lambda x, dim: x.roll(1, dim),
        "cat": lambda x, dim: torch.cat([x, x], dim),
        "pad": lambda x, dim: F.pad(x, [0, 0] * (3 - dim) + [1, 0]),
    }
    for axis, dim in itertools.product(range(4), range(4)):
        x = quantized(axis)
        out = functions[cut](x, dim)
        with naming(f"axis {axis}, dim {dim}"):
            assert torch.equal(values_of(out), functions[cut](x.value, dim))
            if cut == "roll":  # never kept with an axis
                assert type(out) is Tensor
            else:
                assert isinstance(out, QuantTensor) == (axis != dim)
                assert axis == dim or torch.equal(out.int(), functions[cut](x.int(), dim))


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operation", ["max pool", "max pool with indices", "adaptive max pool", "interpolate nearest"])
def test_spatial_operations_keep_scales_of_batch_and_channels_only(operation, axis):
    x = quantized(axis)
    out = KEPT[operation](x)
    assert torch.equal(values_of(out), KEPT[operation](x.value))
    assert isinstance(out, QuantTensor) == (axis <= 1)
    assert axis > 1 or out.is_valid


@pytest.mark.parametrize("operation", WITH_AXIS)
def test_an_axis_may_be_counted_from_the_end(operation):
    x = quantized(1)
    twin = QuantTensor.wrap(x.value, grid_of(x).replace(granularity=PerAxis(-3)))
    assert grid_of(twin).axis == 1
    out, expected = KEPT[operation](twin), KEPT[operation](x)
    assert type(out) is type(expected)
    assert torch.equal(values_of(out), values_of(expected))
    assert type(out) is Tensor or torch.equal(out.int(), expected.int())


@given(
    st.lists(st.integers(1, 3), min_size=2, max_size=4).map(tuple),
    st.data(),
)
def test_any_sequence_of_views_keeps_values_and_integers_together(shape, data):
    axis = data.draw(st.sampled_from([None, *range(len(shape))]))
    x = quantized(axis, shape)
    codes = x.int()
    for _ in range(data.draw(st.integers(1, 4))):
        ndim = codes.ndim
        move = data.draw(st.sampled_from(["permute", "flatten", "unsqueeze", "squeeze", "select", "expand"]))
        if move == "permute":
            order = data.draw(st.permutations(range(ndim)))
            x, codes = x.permute(order), codes.permute(order)
        elif move == "flatten":
            start = data.draw(st.integers(0, ndim - 1)) if ndim else 0
            x, codes = x.flatten(start), codes.flatten(start)
        elif move == "unsqueeze":
            dim = data.draw(st.integers(0, ndim))
            x, codes = x.unsqueeze(dim), codes.unsqueeze(dim)
        elif move == "squeeze":
            x, codes = x.squeeze(), codes.squeeze()
        elif move == "select" and ndim:
            dim = data.draw(st.integers(0, ndim - 1))
            index = data.draw(st.integers(0, codes.shape[dim] - 1))
            x, codes = x.select(dim, index), codes.select(dim, index)
        elif move == "expand":
            x, codes = x.expand(2, *x.shape), codes.expand(2, *codes.shape)
        if not isinstance(x, QuantTensor):
            assert axis is not None
            return
        assert torch.equal(x.int(), codes)
    assert torch.equal(x.int() * x.scale, x.value)


# Gradients


def differentiable():
    skipped = {"comparison", "equality", "argmax", "isnan", "to an integer type", "zeros_like", "new_zeros"}
    return {name: function for name, function in {**KEPT, **PLAIN}.items() if name not in skipped}


def gradients(function, grid):
    """Of the plain computation, and of the one on a QuantTensor."""
    grads = []
    for wrap in (lambda x: x, lambda x: QuantTensor.wrap(x, grid)):
        leaf = grid.from_int(codes_of()).requires_grad_()
        torch.manual_seed(1)
        out = function(wrap(leaf * 1))
        assert out.requires_grad
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape).to(out.dtype)
        weights[~torch.isfinite(values_of(out).detach())] = 0
        out.backward(weights)
        grads.append(leaf.grad)
    return grads


@pytest.mark.parametrize("operation", differentiable())
def test_gradients_are_those_of_the_plain_computation(operation):
    for axis in (None, 1):
        with naming(f"axis {axis}"):
            plain, quantized_too = gradients(differentiable()[operation], grid_for(axis))
            assert type(quantized_too) is Tensor
            assert torch.equal(plain, quantized_too)
            assert plain.abs().sum() > 0 or operation == "dropout of everything"


def test_gradients_pass_through_wrap_value_and_values_of():
    grid = grid_for()
    leaf = torch.tensor([0.5, -1.0], requires_grad=True)
    q = QuantTensor.wrap(leaf, grid)
    (q.value * torch.tensor([2.0, 3.0])).sum().backward()
    (values_of(q) * 10).sum().backward()
    assert leaf.grad.tolist() == [12.0, 13.0]
    assert not q.scale.requires_grad


def test_second_derivatives():
    leaf = torch.tensor([0.5, -1.0], requires_grad=True)
    (first,) = torch.autograd.grad((QuantTensor.wrap(leaf, grid_for()) ** 3).sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    assert second.tolist() == [3.0, -6.0]


def test_hooks_see_the_gradient():
    seen = []
    leaf = torch.tensor([0.5, -1.0], requires_grad=True)
    q = QuantTensor.wrap(leaf, grid_for())
    q.register_hook(lambda grad: seen.append(grad.tolist()))
    (q * 3).sum().backward()
    assert seen == [[3.0, 3.0]]


# Blocks as timm writes them, in training and evaluation


class Bottleneck(nn.Module):
    """ResNet: convolutions with batch norm, squeeze and excitation, drop path, and a shortcut added in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.down = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        shortcut = x
        x = self.act(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        gate = x.mean((2, 3), keepdim=True)
        x = x * self.excite(self.act(self.squeeze(gate))).sigmoid()
        if self.training:
            x = x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.9).div_(0.9)
        x += shortcut
        x = self.act(x)
        return self.down(F.max_pool2d(x, 3, 2, 1))


class InvertedResidual(nn.Module):
    """MobileNet: expansion, depthwise convolution, hard swish in place, projection, shortcut."""

    def __init__(self):
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.bn3 = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.act, self.act6, self.silu = nn.Hardswish(inplace=True), nn.ReLU6(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x):
        shortcut = x
        x = self.act(self.bn1(self.expand(F.pad(x, (1, 1, 1, 1)))))
        x = self.act6(self.bn2(self.depthwise(x)))[:, :, 1:-1, 1:-1]
        x = self.bn3(self.project(x)) + shortcut
        return self.silu(F.adaptive_avg_pool2d(x, 1).flatten(1))


class VisionBlock(nn.Module):
    """ViT: patches, class token, position embedding, attention by qkv, layer scale, MLP, pooling of the tokens."""

    def __init__(self):
        super().__init__()
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 37, 4))
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.1), nn.Linear(8, 4))
        self.gamma = nn.Parameter(torch.full((4,), 1e-2))

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1) + self.pos
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, 2, 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.gamma * self.proj(attended)
        x = x + self.mlp(self.norm2(x))
        return x[:, 0] + x[:, 1:].mean(1)


@pytest.mark.parametrize("mode", ["train", "eval", "eval without gradients", "inference_mode"])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("block", [Bottleneck, InvertedResidual, VisionBlock])
def test_blocks_of_vision_models(block, axis, mode):
    torch.manual_seed(0)
    model = block().train(mode == "train")
    other = copy.deepcopy(model)
    grid = grid_for(axis)
    values = grid.from_int(codes_of())
    context = {"eval without gradients": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode)
    with (context or torch.enable_grad)():
        torch.manual_seed(1)
        expected = model(values.clone())
        torch.manual_seed(1)
        out = other(QuantTensor.wrap(values.clone(), grid))
    assert type(out) is Tensor
    assert torch.equal(out, expected)
    if context is None:
        expected.square().sum().backward()
        out.square().sum().backward()
        for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
            assert torch.equal(one.grad, two.grad), name
    for (name, one), two in zip(model.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two), name


# Dropout: what it keeps, it divides by the share that it keeps

DROPOUTS = {
    "dropout": lambda x, p: F.dropout(x, p),
    "dropout in place": lambda x, p: F.dropout(x.clone(), p, inplace=True),
    "dropout of channels": lambda x, p: F.dropout2d(x, p),
    "dropout of channels 1d": lambda x, p: F.dropout1d(x.flatten(2), p),
    "dropout of channels 3d": lambda x, p: F.dropout3d(x.unsqueeze(2), p),
    "dropout of channels in place": lambda x, p: F.dropout2d(x.clone(), p, inplace=True),
    "dropout and its mask": lambda x, p: torch.native_dropout(x, p, True)[0],
    "drop path": lambda x, p: x * x.new_empty((2, 1, 1, 1)).bernoulli_(1 - p).div_(1 - p),
}


@pytest.mark.parametrize("dropout", DROPOUTS)
def test_dropout_scales_the_grid(dropout):
    for axis, zero_point, p, mode in itertools.product([None, 1], [False, True], [0.5, 0.1, 0.3], MODES):
        grid = grid_for(axis, zero_point=zero_point)
        values = grid.from_int(codes_of())
        run = lambda x: DROPOUTS[dropout](x, p)  # noqa: B023, E731
        with naming(f"axis {axis}", f"zero point {zero_point}", p, mode):
            expected, out = in_mode(mode, run, values.clone, lambda: QuantTensor.wrap(values, grid))  # noqa: B023
            assert type(out) is QuantTensor
            assert_same(out, expected)
            assert out.is_valid
            assert grid_of(out).axis == axis
            assert out.bit_width == 4
            torch.testing.assert_close(out.scale.reshape(-1), grid.scale.reshape(-1) / (1 - p), rtol=1e-6, atol=0)
            zeros = QuantTensor.wrap(values, grid).zero_point
            assert torch.equal(out.zero_point.reshape(-1), zeros.reshape(-1))
            centred = out.int().reshape(SHAPE) - zeros
            before = QuantTensor.wrap(values, grid).int() - zeros
            assert torch.equal(centred, torch.where(centred == 0, 0, before))


@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("axis", [None, 1])
def test_gradients_through_dropout(dropout, axis):
    plain, quantized_too = gradients(lambda x: DROPOUTS[dropout](x, 0.3), grid_for(axis))
    assert type(quantized_too) is Tensor
    assert torch.equal(plain, quantized_too)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_modules(training):
    x = quantized()
    for module in (nn.Dropout(0.5), nn.Dropout1d(0.5), nn.Dropout2d(0.5), nn.Dropout3d(0.5)):
        given = x[0] if isinstance(module, nn.Dropout1d) else x
        out = module.train(training)(given)
        assert type(out) is QuantTensor
        assert out.scale.item() == (2 * STEP if training else STEP)
        assert training or torch.equal(out.int(), given.int())
    for module in (nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)):
        assert type(module.train(training)(x)) is (Tensor if training else QuantTensor)


@given(bit_width=st.integers(2, 16), scale=st.floats(1e-6, 1e6), p=st.floats(0, 0.99), seed=st.integers(0, 2**31))
def test_dropout_keeps_integers_of_any_scale(bit_width, scale, p, seed):
    grid = Grid(torch.tensor(scale), number_format=Integers(bit_width))
    codes = codes_of((200,), *grid.bounds, seed)
    out = F.dropout(QuantTensor.wrap(grid.from_int(codes), grid), p)
    assert out.is_valid
    assert torch.equal(out.int(), torch.where(out.value == 0, 0, codes).int())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dropout_of_other_precisions_gives_the_right_integers_or_none(dtype):
    x = quantized()
    for p in (0.5, 0.1, 0.3):
        out = F.dropout(x.to(dtype), p)
        assert (type(out), out.dtype) == (QuantTensor, dtype)
        assert out.is_valid or (dtype != torch.float64 and p != 0.5)
        if out.is_valid:
            assert torch.equal(out.int(), torch.where(out.value == 0, 0, x.int()))


def test_dropout_in_place_of_a_view_moves_the_whole_and_leaves_older_views_without_a_grid():
    x = quantized()
    first, flat = x[0], x.flatten(1)
    torch.manual_seed(1)
    out = F.dropout(flat, 0.5, inplace=True)
    assert out is flat
    assert flat.is_valid
    assert x.is_valid
    assert (flat.scale.item(), x.scale.item()) == (2 * STEP, 2 * STEP)
    assert torch.equal(x.int().flatten(1), flat.int())
    assert grid_of(first) is None
    assert x[0].is_valid
    part = x[1]
    F.dropout(part, 0.5, inplace=True)  # the rest of x is not scaled
    assert grid_of(part) is None
    assert grid_of(x) is None


def test_a_second_dropout_in_place_is_seen_by_views_of_the_first():
    for source in ("one quantizer", None):
        x = quantized(source=source)
        views = [x.flatten()]
        for factor in (2, 4):
            F.dropout(x, 0.5, inplace=True)
            assert x.scale.item() == factor * STEP
            assert x.is_valid
            assert all(grid_of(view) is None for view in views)
            views.append(x.flatten())
            assert views[-1].is_valid


def test_what_dropout_returns_is_on_the_grid_of_nothing_else():
    x = quantized()
    half, tenth = F.dropout(x, 0.5), F.dropout(x, 0.1)
    for join in (lambda a, b: a + b, lambda a, b: torch.cat([a, b])):
        assert type(join(half, x)) is Tensor
        assert type(join(half, tenth)) is Tensor
        assert join(half, F.dropout(x, 0.5)).is_valid  # the same multiple of the same scale
        dynamic = quantized(source=None)
        assert type(join(F.dropout(dynamic, 0.5), F.dropout(dynamic, 0.5))) is Tensor


def test_an_empty_tensor_of_the_same_kind_is_on_no_grid():
    x = quantized()
    noise = torch.empty_like(x)
    assert grid_of(noise) is None
    assert type(noise + x) is Tensor
    assert type(x.new_empty(3)) is Tensor
    assert type(torch.empty_like(x, dtype=torch.int64)) is Tensor
    noise.bernoulli_(0.5)
    assert (noise.scale.item(), noise.bit_width, noise.signed, noise.is_valid) == (1.0, 1, False, True)
    noise.div_(0.5)
    assert (noise.scale.item(), noise.is_valid) == (2.0, True)
    noise.div_(0.5)
    assert grid_of(noise) is None


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("dropout", ["dropout", "dropout in place", "dropout of channels"])
def test_compiled_dropout(dropout, backend):
    torch._dynamo.reset()
    grid = grid_for()
    values = grid.from_int(codes_of(low=1))

    def through(x):
        out = F.relu(DROPOUTS[dropout](QuantTensor.wrap(x * 1, grid), 0.5))
        return out.detach(), values_of(out)

    leaf = values.clone().requires_grad_()
    out, plain = torch.compile(through, backend=backend, fullgraph=True)(leaf)
    plain.sum().backward()
    assert type(out) is QuantTensor
    assert (out.scale.item(), out.is_valid) == (2 * STEP, True)
    assert torch.equal(out.int(), torch.where(out.value == 0, 0, codes_of(low=1)).int())
    assert torch.equal(leaf.grad, torch.where(out.value == 0, 0.0, 2.0))
    assert 0 < (out.value == 0).float().mean() < 1


# Sums and concatenations


def test_sums_on_one_grid_add_integers_and_grow_by_a_bit():
    one, other = quantized(seed=1), quantized(seed=2)
    total = one + other
    assert torch.equal(total.int(), one.int() + other.int())
    assert (total.bit_width, total.signed, total.scale.item()) == (5, True, STEP)
    again = total + one
    assert torch.equal(again.int(), 2 * one.int() + other.int())
    assert again.bit_width == 6
    difference = one - other
    assert torch.equal(difference.int(), one.int() - other.int())
    assert difference.bit_width == 5


def test_the_extremes_of_sums_fit_their_bit_width():
    grid = grid_for()
    low, high = (QuantTensor.wrap(torch.tensor([code * STEP]), grid) for code in (-8.0, 7.0))
    assert [(x + y).int().item() for x, y in ((low, low), (high, high))] == [-16, 14]
    assert (low - high).int().item() == -15
    assert (high - low).int().item() == 15
    assert all((x - y).is_valid and (x + y).is_valid for x in (low, high) for y in (low, high))


def test_sums_of_unsigned_and_signed_integers():
    unsigned = Grid(torch.tensor(STEP), number_format=Integers(4, signed=False), source="one quantizer")
    high = QuantTensor.wrap(torch.tensor([15 * STEP]), unsigned)
    assert ((high + high).int().item(), (high + high).bit_width, (high + high).signed) == (30, 5, False)
    difference = high - (high + high)
    assert (difference.int().item(), difference.signed, difference.is_valid) == (-15, True, True)
    opposite = QuantTensor.wrap(torch.tensor([0.0]), unsigned) - high
    assert (opposite.int().item(), opposite.signed) == (-15, True)


def test_an_unsigned_sum_and_a_difference():
    unsigned = Grid(torch.tensor(STEP), number_format=Integers(4, signed=False), source="one quantizer")
    low, high = (QuantTensor.wrap(torch.tensor([code * STEP]), unsigned) for code in (0.0, 15.0))
    for total, expected in [((high + high) + (high - low), 45), ((low - high) - (high + high), -45)]:
        assert (total.int().item(), total.is_valid) == (expected, True)


@given(st.lists(st.sampled_from("+-"), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_chains_of_sums_hold_integers_and_zero_points(signs, signed, with_zero_point):
    zero = torch.tensor(3.0) if with_zero_point else None
    grid = Grid(torch.tensor(STEP), zero, number_format=Integers(4, signed=signed), source="one quantizer")
    low, high = grid.bounds
    total = None
    for index, sign in enumerate(signs):
        term = QuantTensor.wrap(grid.from_int(codes_of((64,), low, high, seed=index)), grid)
        total = term if total is None else (total + term if sign == "+" else total - term)
    assert total.is_valid
    assert torch.equal((total.int() - total.zero_point) * STEP, total.value)


def test_zero_points_add_up():
    x = quantized(zero_point=True)
    assert (x + x).zero_point.item() == 6
    assert (x - x).zero_point.item() == 0
    assert torch.equal((x + x).int(), 2 * x.int())


@pytest.mark.parametrize("join", [lambda x, y: x + y, lambda x, y: x - y, lambda x, y: torch.cat([x, y])])
def test_different_grids_dequantize_even_with_equal_numbers(join):
    one, other = quantized(source="one"), quantized(source="another")
    assert type(join(one, other)) is Tensor
    assert torch.equal(join(one, other), join(one.value, other.value))
    assert type(join(one, one.value)) is Tensor
    assert type(join(one.value, one)) is Tensor


JOINS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "cat": lambda x, y: torch.cat([x, y]),
    "stack": lambda x, y: torch.stack([x, y]),
}
DYNAMIC = [None, ("products", None, 2), ("products", 1, ("products", None, 2)), ("sum", None, 2)]


@pytest.mark.parametrize("source", DYNAMIC)
@pytest.mark.parametrize("join", JOINS)
def test_a_scale_that_belongs_to_one_tensor_is_shared_with_nothing(join, source):
    one, other = quantized(source=source), quantized(source=source)
    assert type(JOINS[join](one, other)) is Tensor
    assert type(JOINS[join](one, one)) is Tensor  # not with itself either: it is one rule, compiled and eager
    assert torch.equal(JOINS[join](one, other), JOINS[join](one.value, other.value))


@pytest.mark.parametrize("join", JOINS)
def test_products_share_a_grid_if_both_factors_do(join):
    one, other = (quantized(source=products_source("input", weight)) for weight in ("one", "another"))
    assert type(JOINS[join](one, other)) is Tensor  # two layers with weights of their own
    assert torch.equal(JOINS[join](one, other), JOINS[join](one.value, other.value))
    assert JOINS[join](one, quantized(source=products_source("input", "one"))).is_valid
    assert products_source("input", None) is products_source(None, "weight") is None
    assert products_source(("products", 1, None), 2) is None


def test_integers_of_another_range_do_not_concatenate_into_one_grid():
    x = quantized()
    wider = QuantTensor.wrap(x.value * 4, grid_of(x).replace(number_format=Integers(6)))
    assert type(torch.cat([x, wider])) is Tensor
    assert (x + wider).is_valid


def test_scales_along_different_axes_do_not_concatenate():
    square = quantized(0, (3, 3))
    for dim in (0, 1):
        joined = torch.cat([square, square.t()], dim)
        assert type(joined) is Tensor
        assert torch.equal(joined, torch.cat([square.value, square.value.t()], dim))


def test_doubling_a_tensor_many_times_stays_cheap():
    total = QuantTensor.wrap(torch.tensor([0.0, STEP]), grid_for())
    for _ in range(40):
        total = total + total
    assert (total.bit_width, total.tolist()) == (44, [0.0, STEP * 2**40])
    assert type(torch.cat([total, total])) is QuantTensor


def test_sums_with_a_factor_leave_the_grid():
    x = quantized()
    assert type(torch.add(x, x, alpha=2)) is Tensor
    assert torch.equal(torch.add(x, x, alpha=2), 3 * x.value)


def test_sums_per_channel():
    x = quantized(1)
    assert torch.equal((x + x).int(), 2 * x.int())
    assert torch.equal((x + x.mT).int(), x.int() + x.int().mT)
    square = quantized(0, (3, 3))
    assert type(square + square.t()) is Tensor  # there, the scales run along another axis
    assert torch.equal(square + square.t(), square.value + square.value.t())


def test_sums_that_broadcast():
    x = quantized()
    assert torch.equal((x + x[:1, :, :1]).int(), x.int() + x.int()[:1, :, :1])
    per_channel = quantized(1)
    assert type(per_channel + per_channel[0]) is Tensor  # there, dimension 1 is another one
    assert torch.equal(per_channel + per_channel[0], per_channel.value + per_channel.value[0])


def test_a_sum_and_its_terms_do_not_concatenate_into_one_grid():
    x = quantized()
    joined = torch.cat([x + x, x])
    assert type(joined) is Tensor
    assert torch.equal(joined, torch.cat([2 * x.value, x.value]))
    assert torch.equal(torch.cat([x + x, x + x]).int(), torch.cat([2 * x.int()] * 2))


def test_python_sum_starts_from_a_number():
    x = quantized()
    assert torch.equal(sum([x, x, x]), 3 * x.value)


# In place


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.mul_(1.1),
        lambda x: x.add_(0.1),
        lambda x: F.silu(x, inplace=True),
        lambda x: F.relu6(x, inplace=True),
        lambda x: F.hardswish(x, inplace=True),
        lambda x: x.sigmoid_(),
        lambda x: x.masked_fill_(x > 0, 0.1),
        lambda x: x.clamp_(-0.3, 0.3),
        lambda x: x.copy_(torch.full(SHAPE, 0.1)),
        lambda x: x.fill_(0.1),
        lambda x: torch.mul(x, 1.1, out=x),
        lambda x: x.__setitem__((0, 1, 2, 3), 0.1),
        lambda x: x.__setitem__(x > 0, 0.1),
        lambda x: x.__setitem__(0, 0.1),
        lambda x: x[:, 1:].mul_(1.1),
        lambda x: x.view(-1)[3:].add_(0.1),
        lambda x: x.unbind(1)[2].zero_().add_(0.1),
        lambda x: vars(torch)["_foreach_mul_"]([x], 1.1),
        lambda x: x[:1].bernoulli_(0.5, generator=torch.Generator().manual_seed(0)).div_(0.7),
    ],
)
@pytest.mark.parametrize("mode", ["with gradients", "no_grad"])
def test_changes_in_place_leave_the_grid_through_views_too(change, mode):
    with MODES[mode]():
        x = quantized()
        expected = x.value.clone()
        change(x)
        change(expected)
    assert torch.equal(x.value, expected)
    assert grid_of(x) is None
    assert not x.is_valid
    message = (
        "This QuantTensor was changed in place by an operation that leaves its grid. Use the operation that returns "
        "a new tensor (x = x * 2 instead of x.mul_(2)), or quantize the result again."
    )
    for ask in (lambda: x.int(), lambda: x.zero_point, lambda: x.bit_width, lambda: x.signed):
        with pytest.raises(QuantTensorError) as caught:
            ask()
        assert str(caught.value) == message
    assert repr(x).endswith("off its grid)")
    assert type(x + x) is Tensor


def test_other_views_see_that_a_view_left_the_grid():
    x = quantized()
    first = x[0]
    x[1].mul_(1.1)
    assert grid_of(first) is None
    assert grid_of(x.clone()) is None


@pytest.mark.parametrize("change", ["squeeze_", "t_"])
def test_shapes_are_not_changed_in_place(change):
    x = quantized(shape=(3, 1))
    with pytest.raises(QuantTensorError) as caught:
        getattr(x, change)()
    assert str(caught.value) == (
        f"{change} changes the shape of a QuantTensor in place, which is not supported. Use an operation that returns "
        "a new tensor (x = x.squeeze() instead of x.squeeze_())."
    )
    assert x.is_valid
    assert x.detach_().is_valid


def test_what_writes_into_another_tensor_leaves_the_grid_alone():
    x = quantized()
    target = torch.zeros(SHAPE)
    assert target.copy_(x) is target
    assert torch.equal(target, x.value)
    assert type(target.add_(x)) is Tensor
    assert x.is_valid


@pytest.mark.parametrize("change", [F.relu_, lambda x: x.zero_()])
def test_changes_in_place_that_stay_on_the_grid(change):
    x = quantized()
    expected = x.int().clone()
    change(x)
    change(expected)
    assert torch.equal(x.int(), expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_augmented_assignment_makes_a_new_tensor(sign):
    x = quantized()
    before, alias = x.value.clone(), x
    if sign > 0:
        x += 1.0
    else:
        x -= 1.0
    assert torch.equal(alias.value, before)
    assert alias.is_valid
    assert torch.equal(x, before + sign)
    x = alias
    x *= 3
    assert alias.is_valid
    assert torch.equal(x, before * 3)


# Being a tensor


def test_it_is_a_tensor():
    x = quantized()
    assert isinstance(x, Tensor)
    assert (len(x), x.dim(), x.shape, x.dtype) == (2, 4, SHAPE, torch.float32)
    assert x.device.type == "cpu"
    assert x.stride() == (144, 36, 6, 1)
    assert x.is_contiguous()
    assert x.numel() == 288
    assert torch.is_tensor(x)
    assert torch.is_floating_point(x)
    assert len({x, x}) == 1


def test_its_attributes():
    x = quantized(zero_point=True)
    assert (x.scale.item(), x.zero_point.item(), x.bit_width, x.signed) == (0.25, 3.0, 4, True)
    assert quantized().zero_point.item() == 0
    assert grid_of(x).bounds == (-8, 7)
    assert grid_of(torch.ones(2)) is None
    plain = torch.ones(2)
    assert values_of(plain) is plain


def test_numbers_come_out():
    x = QuantTensor.wrap(torch.tensor([[0.5, -1.0], [0.0, 1.75]]), grid_for())
    assert x[1, 1].item() == 1.75
    assert float(x[0, 1]) == -1.0
    assert x.tolist() == [[0.5, -1.0], [0.0, 1.75]]
    assert x[1, 1].tolist() == 1.75
    assert isinstance(x.numpy(), np.ndarray)
    assert x.numpy().tolist() == [[0.5, -1.0], [0.0, 1.75]]
    assert np.asarray(x).tolist() == [[0.5, -1.0], [0.0, 1.75]]
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    assert f"{x[1, 1]:.1f}" == "1.8"
    assert bool(x[1, 1] > 1)
    assert x.max().item() == 1.75
    assert x.int().numpy().dtype == np.int8


def test_numpy_asks_for_detach_where_torch_does():
    x = QuantTensor.wrap(torch.tensor([0.5], requires_grad=True), grid_for())
    with pytest.raises(RuntimeError, match="Can't call numpy\\(\\) on Tensor that requires grad"):
        x.numpy()
    assert x.detach().numpy().tolist() == [0.5]
    assert x.detach().int().tolist() == [2]


def test_comparisons_with_tensors_and_numbers():
    x = QuantTensor.wrap(torch.tensor([0.5, -1.0]), grid_for())
    assert (x > 0).tolist() == [True, False]
    assert (torch.zeros(2) < x).tolist() == [True, False]
    assert (x == x.value).tolist() == [True, True]
    assert torch.equal(x, x)
    assert torch.allclose(x, x.value)


def test_repr():
    x = QuantTensor.wrap(torch.tensor([0.5, -1.0]), grid_for())
    assert repr(x) == "QuantTensor([ 0.5000, -1.0000], scale=0.25, int4)"
    grown = QuantTensor.wrap(torch.tensor([0.5, -1.0], requires_grad=True), grid_for())
    assert repr(grown) == "QuantTensor([ 0.5000, -1.0000], scale=0.25, int4, requires_grad=True)"
    unsigned = Grid(torch.tensor([0.25, 0.5]), number_format=Integers(8, signed=False), granularity=PerAxis(0))
    assert repr(QuantTensor.wrap(torch.tensor([0.5, 1.0]), unsigned)) == (
        "QuantTensor([0.5000, 1.0000], scale=[2 values], uint8)"
    )
    assert str(x) == repr(x)


def test_repr_under_a_compiler():
    """Some print what they trace; a scale that can't be read is left out."""
    with FakeTensorMode():
        x = QuantTensor.wrap(torch.ones(2), Grid(torch.empty(()), number_format=Integers(4)))
        assert repr(x) == "QuantTensor(FakeTensor(..., size=(2,)), scale=[1 values], int4)"


def test_values_off_the_grid_have_no_integers():
    x = QuantTensor.wrap(torch.tensor([0.5, -1.1]), grid_for())
    assert not x.is_valid
    with pytest.raises(QuantTensorError) as caught:
        x.int()
    assert str(caught.value) == (
        "Not every value lies on the grid of scale 0.25 and int4, so there are no integers to return. Quantize the "
        "tensor again, for example with QuantIdentity."
    )
    assert issubclass(QuantTensorError, BitwrightError)


@pytest.mark.parametrize("value", [2.0, -2.25, 100.0, torch.nan, torch.inf])
def test_values_out_of_range_are_not_valid(value):
    assert not QuantTensor.wrap(torch.tensor([value]), grid_for()).is_valid


@pytest.mark.parametrize("value", [1.75, -2.0, 0.0])
def test_values_at_the_ends_of_the_range_are_valid(value):
    assert QuantTensor.wrap(torch.tensor([value]), grid_for()).is_valid


def test_a_narrow_range_excludes_its_lowest_integer():
    narrow = Grid(torch.tensor(STEP), number_format=Integers(4, narrow_range=True))
    assert not QuantTensor.wrap(torch.tensor([-2.0]), narrow).is_valid
    assert QuantTensor.wrap(torch.tensor([-1.75]), narrow).int().item() == -7


@pytest.mark.parametrize(
    ("bit_width", "signed", "dtype"),
    [
        (2, True, torch.int8),
        (8, True, torch.int8),
        (8, False, torch.uint8),
        (9, True, torch.int16),
        (16, True, torch.int16),
        (16, False, torch.int32),
        (24, True, torch.int32),
        (32, True, torch.int32),
    ],
)
def test_integers_come_in_the_smallest_type(bit_width, signed, dtype):
    grid = Grid(torch.tensor(0.5), number_format=Integers(bit_width, signed=signed))
    low, high = grid.bounds
    codes = torch.tensor([low, 0, 1, min(high, 2**24 - 1)], dtype=torch.float64)
    x = QuantTensor.wrap(codes * 0.5, grid)
    assert x.int().dtype == dtype
    assert x.int().tolist() == codes.tolist()


@given(st.integers(2, 24), st.booleans(), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_integers_survive_the_way_to_values_and_back(bit_width, signed, scale, seed):
    grid = Grid(torch.tensor(scale), number_format=Integers(bit_width, signed=signed))
    low, high = grid.bounds
    codes = torch.cat([torch.tensor([low, high]).float(), codes_of((50,), low, high, seed)])
    x = QuantTensor.wrap(grid.from_int(codes), grid)
    if bit_width <= 22:  # a float32 tells a fifth of a step apart up to here
        assert x.is_valid
        assert torch.equal(x.int().float(), codes)
    else:
        assert not x.is_valid or torch.equal(x.int().float(), codes)


# Sums of products: exact integers or none


def sums_of_products(inputs, outputs, rows, dtype, lowest=0):
    """The sums of uint8 inputs and int8 weights, and what a layer of that precision returns for them."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (rows, inputs), generator=generator)
    weight = torch.randint(lowest, 128, (inputs, outputs), generator=generator)
    scales = torch.tensor(0.0123, dtype=dtype), torch.tensor(0.00321, dtype=dtype)
    values = (codes.to(dtype) * scales[0]) @ (weight.to(dtype) * scales[1])
    largest = inputs * 255 * 127
    grid = Grid(
        scales[0] * scales[1],
        number_format=Integers(largest.bit_length() + 1),
        spare_bits=bits_to_spare(largest, dtype),
    )
    return codes @ weight, QuantTensor.wrap(values, grid)


COARSE = (
    "Rounding may have moved values by more than half a step of the grid of scale 3.9483e-05 and int27, so their "
    "integers are unknown. Compute in double precision, model.double()(x.double()), or run the model in integers: "
    "bitwright.export.run_integers."
)


@pytest.mark.parametrize(("inputs", "rows"), [(16, 50), (64, 50), (3, 1)])
def test_sums_that_the_precision_holds_have_their_integers(inputs, rows):
    right, sums = sums_of_products(inputs, 8, rows, torch.float32, lowest=-127)
    assert torch.equal(sums.int().long(), right)


def test_wide_sums_in_float32_have_no_integers_even_where_they_look_valid():
    right, sums = sums_of_products(1152, 8, 50, torch.float32)
    grid = grid_of(sums)
    off_by_one = QuantTensor.wrap(grid.from_int(right + 1).double().float(), grid)[:1, :1]
    assert grid.spare_bits == -2
    for refused in (sums, sums[0, 0], off_by_one, sums.double(), sums.relu()):
        with pytest.raises(QuantTensorError) as caught:
            refused.int()
        assert str(caught.value) == COARSE


def test_small_sums_off_their_grid_are_told_to_quantize_again():
    _, sums = sums_of_products(3, 8, 5, torch.float32)
    with pytest.raises(QuantTensorError) as caught:
        QuantTensor.wrap(sums.value + 0.4 * sums.scale, grid_of(sums)).int()
    assert str(caught.value) == (
        "Not every value lies on the grid of scale 3.9483e-05 and int18, so there are no integers to return. Quantize "
        "the tensor again, for example with QuantIdentity."
    )


def test_sums_of_sums_add_up_what_rounding_may_do():
    _, sums = sums_of_products(200, 8, 50, torch.float32)
    twin = QuantTensor.wrap(sums.value, grid_of(sums).replace(source=1))
    assert (grid_of(sums).spare_bits, grid_of(twin + twin).spare_bits) == (1, 0)
    with pytest.raises(QuantTensorError):
        (twin + twin).int()


@pytest.mark.parametrize("inputs", [1152, 25088])
def test_wide_sums_in_double_precision_have_exact_integers(inputs):
    right, sums = sums_of_products(inputs, 8, 20, torch.float64)
    assert torch.equal(sums.int(), right.to(sums.int().dtype))
    assert sums.int().abs().max() > 2**24 or inputs == 1152


def test_a_range_too_wide_for_float32_says_so():
    grid = Grid(torch.tensor(0.1), number_format=Integers(32))
    codes = torch.tensor([-(2**31), -(2**31) + 1, 2**24 + 1, 2**31 - 2, 2**31 - 1])
    with pytest.raises(QuantTensorError) as caught:
        QuantTensor.wrap(grid.from_int(codes), grid).int()
    assert str(caught.value) == COARSE.replace("3.9483e-05 and int27", "0.1 and int32")
    double = grid.replace(scale=grid.scale.double())
    x = QuantTensor.wrap(double.from_int(codes), double)
    assert x.int().dtype == torch.int32
    assert x.int().tolist() == codes.tolist()


# Half precision: integers are handed out where they are told apart, never wrong ones


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@given(bit_width=st.integers(2, 20), signed=st.booleans(), scale=st.floats(1e-3, 1.0), seed=st.integers(0, 2**31))
def test_half_precision_hands_out_the_right_integers_or_none(dtype, bit_width, signed, scale, seed):
    grid = Grid(torch.tensor(scale), number_format=Integers(bit_width, signed=signed))
    codes = codes_of((50,), *grid.bounds, seed)
    x = QuantTensor.wrap(grid.from_int(codes), grid).to(dtype)
    if isinstance(x, QuantTensor) and x.is_valid:
        assert torch.equal(x.int().float(), codes)


@pytest.mark.parametrize(("dtype", "bit_width"), [(torch.float16, 11), (torch.bfloat16, 8)])
def test_half_precision_holds_the_integers_of_its_mantissa(dtype, bit_width):
    for scale in (0.1, 0.25, 0.0123):
        grid = Grid(torch.tensor(scale), number_format=Integers(bit_width))
        codes = torch.arange(*grid.bounds).float()
        x = QuantTensor.wrap(grid.from_int(codes), grid).to(dtype)
        assert torch.equal(x.int().float(), codes)


# Contexts


def test_autocast():
    x = quantized()
    with torch.autocast("cpu", torch.bfloat16):
        assert CONV(x).dtype == torch.bfloat16
        assert torch.equal(CONV(x), CONV(x.value))
        assert torch.equal(x @ x.mT, x.value @ x.value.mT)
        pooled = F.max_pool2d(x, 2)
    assert (type(pooled), pooled.dtype) == (QuantTensor, torch.float32)


def test_autocast_with_gradients():
    grads = []
    for wrap in (lambda v: v, lambda v: QuantTensor.wrap(v, grid_for())):
        leaf = quantized().value.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = CONV(F.relu(wrap(leaf * 1)))
        out.float().square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant):
    def block(x):
        return F.max_pool2d(F.relu(x), 2)

    grads = []
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=use_reentrant)):
        leaf = quantized().value.clone().requires_grad_()
        out = run(QuantTensor.wrap(leaf * 1, grid_for()))
        assert type(out) is QuantTensor
        assert out.is_valid
        CONV(out).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def network(x):
    """Keeps the grid for a while, adds on one grid, and ends in plain values."""
    x = F.max_pool2d(F.relu(x), 2)
    x = torch.cat([x, x.flip(3)], 1)[:, 2:6] + x
    x = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(2, 25, 4).transpose(1, 2)
    first, second = x.chunk(2, 1)
    return (first @ second.mT).softmax(-1) * x.mean()


@pytest.mark.parametrize(("backend", "axis"), [("eager", None), ("eager", 1), ("aot_eager", 1)])  # inductor: below
def test_compiled_whole(backend, axis):
    torch._dynamo.reset()
    grid = grid_for(axis)
    values = grid.from_int(codes_of())

    def through(x):
        return network(QuantTensor.wrap(x * 1, grid))

    compiled = torch.compile(through, backend=backend, fullgraph=True)
    results = []
    for run in (through, compiled):
        leaf = values.clone().requires_grad_()
        out = run(leaf)
        out.sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


def test_compiled_by_inductor():
    torch._dynamo.reset()
    grid = grid_for()
    values = grid.from_int(codes_of())

    def through(x):
        return network(QuantTensor.wrap(x * 1, grid))

    results = []
    for run in (through, torch.compile(through, fullgraph=True)):
        leaf = values.clone().requires_grad_()
        out = run(leaf)
        out.sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_from_and_to_quant_tensors(backend):
    torch._dynamo.reset()
    x = quantized(1)
    compiled = torch.compile(lambda x: F.max_pool2d(F.relu(x), 2).transpose(1, 2), backend=backend, fullgraph=True)
    out = compiled(x)
    assert type(out) is QuantTensor
    assert torch.equal(out.int(), F.max_pool2d(F.relu(x), 2).transpose(1, 2).int())
    assert grid_of(out).axis == 2


def test_functional_transforms():
    x = quantized()
    assert torch.equal(torch.vmap(lambda each: each.sum())(x), torch.vmap(lambda each: each.sum())(x.value))
    assert torch.equal(torch.func.grad(lambda each: (each * 2).sum())(x), torch.full(SHAPE, 2.0))


# Copies


def copies():
    def saved(x):
        buffer = BytesIO()
        torch.save(x, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": lambda x: pickle.loads(pickle.dumps(x)),
        "torch.save": saved,
        "clone": torch.clone,
    }


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("way", copies())
def test_copies_are_equal(way, zero_point, axis):
    x = quantized(axis, zero_point=zero_point)
    copied = copies()[way](x)
    assert type(copied) is QuantTensor
    assert torch.equal(copied.int(), x.int())
    assert torch.equal(copied.value, x.value)
    assert torch.equal(copied.scale, x.scale)
    assert torch.equal(copied.zero_point, x.zero_point)
    assert (copied.bit_width, copied.signed, grid_of(copied).axis) == (4, True, axis)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_do_not_share_memory_and_keep_requires_grad(way):
    x = quantized().requires_grad_()
    copied = copies()[way](x)
    assert copied.requires_grad
    with torch.no_grad():
        copied.zero_()
    assert x.value.abs().sum() > 0


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_of_a_tensor_off_its_grid_are_off_it_too(way):
    x = quantized()
    x[0].mul_(1.1)
    assert grid_of(copies()[way](x)) is None


WAYS_BACK = {way: copies()[way] for way in ("pickle", "torch.save")}


@pytest.mark.parametrize("join", JOINS)
def test_copies_share_the_grid_in_the_process_and_nothing_when_loaded(join):
    x = quantized()
    for way in ("deepcopy", "copy", "clone"):
        assert JOINS[join](copies()[way](x), x).is_valid
    for way in WAYS_BACK:
        loaded = WAYS_BACK[way](x)
        assert loaded.is_valid
        assert grid_of(loaded).source is None
        assert type(JOINS[join](loaded, x)) is Tensor
        assert type(JOINS[join](loaded, WAYS_BACK[way](x))) is Tensor
        assert torch.equal(JOINS[join](loaded, x), JOINS[join](x.value, x.value))


@pytest.mark.slow
def test_tensors_of_two_processes_share_no_grid():
    program = """
import pickle, sys, torch
import bitwright.nn as qnn
quantize = qnn.QuantIdentity(scale={}, return_quant_tensor=True)
sys.stdout.buffer.write(pickle.dumps(quantize(torch.tensor([1.0, 2.0]))))
"""
    started = [
        subprocess.Popen([sys.executable, "-c", program.format(scale)], stdout=subprocess.PIPE) for scale in (0.5, 0.3)
    ]
    one, other = (pickle.loads(process.communicate()[0]) for process in started)
    assert one.is_valid
    assert other.is_valid
    assert type(one + other) is Tensor
    torch.testing.assert_close(one + other, torch.tensor([1.0 + 0.9, 2.0 + 2.1]))


# What a layer says that misses the grid

GENERAL = (
    "Set return_quant_tensor=True on the layer before. If it is set, an operation in between has left the grid, such "
    "as average pooling or an activation function of torch's: put QuantIdentity(return_quant_tensor=True) behind it."
)


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: F.avg_pool2d(x, 2).flatten(1), "AvgPool2D"),
        (lambda x: F.avg_pool2d(F.max_pool2d(F.relu(x), 2), 2).flatten(1) * 1, "AvgPool2D"),
        (lambda x: F.hardswish(F.adaptive_avg_pool2d(x, 1)).flatten(1), "Mean"),
        (lambda x: F.hardswish(x.transpose(1, 2)), "Hardswish"),
        (lambda x: x + x.value, "Add"),
        (lambda x: torch.cat([x, x.value]).flatten(1), "Cat"),
        (lambda x: x * 2, "Mul"),
        (lambda x: F.avg_pool2d(F.dropout(x, 0.5), 2), "Mul or AvgPool2D"),
        (lambda x: F.silu(x + x), "Add or Silu"),
        (lambda x: LINEAR(x), "Addmm"),
    ],
)
def test_the_operation_that_left_the_grid_is_named(operation, named):
    leaf = quantized().value.clone().requires_grad_()
    out = operation(QuantTensor.wrap(leaf * 1, grid_for()))
    assert type(out) is Tensor
    assert grid_lost(out) == (
        f"{named} left the grid of the layer before: put QuantIdentity(return_quant_tensor=True) behind it."
    )
    with torch.no_grad():
        assert grid_lost(operation(QuantTensor.wrap(leaf * 1, grid_for()))) == GENERAL


def test_where_no_operation_is_known_to_have_left_the_grid_both_remedies_are_given():
    leaf = quantized().value.clone().requires_grad_()
    x = QuantTensor.wrap(leaf * 1, grid_for())
    for plain in (torch.randn(2), leaf, leaf * 2, x.value, CONV(x.value), F.relu(values_of(x))):
        assert grid_lost(plain) == GENERAL


def test_a_tensor_changed_in_place_says_so_to_the_layer_that_misses_its_grid():
    x = quantized()
    x.mul_(1.1)
    assert grid_lost(x) == (
        "This QuantTensor was changed in place by an operation that leaves its grid. Use the operation that returns "
        "a new tensor (x = x * 2 instead of x.mul_(2)), or quantize the result again."
    )


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout(0.5, inplace=True), nn.Dropout1d(0.5)])
def test_dropout_between_layers_trains(dropout):
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantReLU(return_quant_tensor=True, scale=0.1), dropout, qnn.QuantLinear(4, 2, bias_quant=Int32Bias)
    )
    x = torch.randn(3, 4, requires_grad=True)
    model.train()(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert x.grad.abs().sum() > 0
    scale = 0.1 * model[2].quant_weight().scale
    torch.testing.assert_close(model[2].quant_bias().scale, 2 * scale)
    model.eval()(x)
    torch.testing.assert_close(model[2].quant_bias().scale, scale)


def test_what_reads_memory_reads_the_values():
    q = QuantTensor.wrap(
        torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), torch.tensor(1.0), number_format=Integers(4))
    )
    assert torch.from_dlpack(q).tolist() == np.from_dlpack(q).tolist() == [0.5, -1.0]
    assert not q.is_shared()
    assert q.share_memory_() is q
    assert q.is_shared()
    assert (q.int().tolist(), q.is_valid) == ([3, -3], True)


def test_functions_applied_in_place_are_refused():
    q = QuantTensor.wrap(torch.tensor([0.5, -1.0]), Grid(torch.tensor(0.25), number_format=Integers(4)))
    with pytest.raises(QuantTensorError) as error:
        q.apply_(lambda number: number + 1)
    assert str(error.value) == (
        "apply_ would write values off the grid into a QuantTensor. Apply it to the plain values: x.value.apply_."
    )
