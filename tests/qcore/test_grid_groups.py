"""QuantTensors whose scales are for groups or tokens: what keeps the grid, and where the scales are then."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bitwright.nn import QuantIdentity, QuantLinear
from bitwright.qcore import (
    E2M1,
    E4M3,
    Grid,
    Integers,
    PerBlock,
    PerGroup,
    PerToken,
    QuantTensor,
    grid_of,
    values_of,
)
from bitwright.quantizers import Int8DynamicActPerToken, NVFloat4Act, NVFloat4Weight

LAST, MIDDLE, TOKENS = PerGroup(32, -1), PerGroup(4, 1), PerToken()
KEEPS = {  # operations, and what they make of a (2, 6, 64) tensor: the groups of LAST, MIDDLE and TOKENS, if any
    "transpose": (lambda q: q.transpose(1, 2), PerGroup(32, 1), PerGroup(4, 2), PerGroup(-1, 1)),
    "permute": (lambda q: q.permute(2, 0, 1), PerGroup(32, 0), PerGroup(4, 2), PerGroup(-1, 0)),
    "movedim": (lambda q: q.movedim(0, 1), PerGroup(32, 2), PerGroup(4, 0), PerToken()),
    "t": (lambda q: q[0].t(), PerGroup(32, 0), PerGroup(4, 1), PerGroup(-1, 0)),
    "unsqueeze": (lambda q: q.unsqueeze(-1), PerGroup(32, 2), PerGroup(4, 1), PerGroup(-1, 2)),
    "squeeze": (lambda q: q.unsqueeze(0).squeeze(), PerGroup(32, 2), PerGroup(4, 1), PerToken()),
    "expand": (lambda q: q.expand(3, 2, 6, 64), PerGroup(32, 3), PerGroup(4, 2), PerToken()),
    "flatten": (lambda q: q.flatten(0, 1), PerGroup(32, 1), None, PerToken()),
    "flatten behind": (lambda q: q.flatten(1), None, None, None),
    "unflatten": (lambda q: q.unflatten(1, (2, 3)), PerGroup(32, 3), None, PerToken()),
    "heads": (lambda q: q.unflatten(2, (2, 32)), None, PerGroup(4, 1), None),
    "select": (lambda q: q[1], PerGroup(32, 1), PerGroup(4, 0), PerToken()),
    "slice": (lambda q: q[:, 1:], PerGroup(32, 2), None, PerToken()),
    "slice behind": (lambda q: q[..., :32], None, PerGroup(4, 1), None),
    "split": (lambda q: q.split([2, 4], 1)[1], PerGroup(32, 2), None, PerToken()),
    "unbind": (lambda q: q.unbind(0)[1], PerGroup(32, 1), PerGroup(4, 0), PerToken()),
    "contiguous": (lambda q: q.transpose(0, 1).contiguous(), PerGroup(32, 2), PerGroup(4, 0), PerToken()),
    "double": (lambda q: q.double(), PerGroup(32, 2), PerGroup(4, 1), PerToken()),
    "relu": (torch.relu, PerGroup(32, 2), PerGroup(4, 1), PerToken()),
    "dropout": (functional.dropout, PerGroup(32, 2), PerGroup(4, 1), PerToken()),
    "flip": (lambda q: q.flip(0), None, None, None),
    "pad": (lambda q: functional.pad(q, (1, 1)), None, None, None),
    "pool": (lambda q: functional.max_pool1d(q, 2), None, None, None),
    "cat": (lambda q: torch.cat([q, q]), None, None, None),
    "add": (lambda q: q + q, None, None, None),
}


def grouped(granularity, shape=(2, 6, 64), zero_point=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = granularity.compact(torch.rand(granularity.count(shape), generator=generator) + 0.1, shape)
    zero = torch.randint(0, 9, scale.shape, generator=generator).float() if zero_point else None
    grid = Grid(scale, zero, Integers(8), granularity)
    return QuantTensor.wrap(grid.from_int(torch.randint(-99, 99, shape, generator=generator)), grid)


@pytest.mark.parametrize("name", KEEPS)
def test_what_keeps_the_grid(name):
    operation, *expected = KEEPS[name]
    for granularity, there in zip((LAST, MIDDLE, TOKENS), expected, strict=True):
        q = grouped(granularity)
        torch.manual_seed(0)
        out = operation(q)
        torch.manual_seed(0)
        assert torch.equal(values_of(out), operation(values_of(q)))
        grid = grid_of(out)
        assert (None if grid is None else grid.granularity) == there
        if grid is not None:
            assert grid.scale.shape == there.scales_shape(out.shape)
            assert out.is_valid


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    axis=st.integers(0, 3),
    size=st.sampled_from([-1, 1, 2, 3, 5]),
    name=st.sampled_from(sorted(KEEPS)),
    zero_point=st.booleans(),
)
def test_values_lie_on_the_grid_that_is_kept(shape, axis, size, name, zero_point):
    """Of any shape, also with dimensions of size 1, where a dimension of scales looks like any other."""
    q = grouped(PerGroup(size, axis % len(shape)), tuple(shape), zero_point)
    try:
        out = KEEPS[name][0](q)
    except (RuntimeError, IndexError):  # not of this shape
        return
    grid = grid_of(out)
    if grid is not None:
        assert grid.scale.shape == grid.granularity.scales_shape(out.shape)
        assert out.is_valid


def test_blocks_stay_with_what_leaves_values_where_they_are():
    q = grouped(PerBlock((2, 3, 32)))
    assert grid_of(q.clone()).granularity == grid_of(torch.relu(q)).granularity == PerBlock((2, 3, 32))
    assert grid_of(q.transpose(0, 1)) is None


def test_every_piece_has_its_own_scales():
    q = grouped(LAST)
    for at, piece in enumerate(q.unbind(1)):
        assert torch.equal(piece.scale, q.scale[:, at])
        assert torch.equal(piece.int(), q.int()[:, at])


def test_scales_of_two_levels_go_along():
    weight = QuantLinear(64, 4, weight_quant=NVFloat4Weight).quant_weight()
    scales = weight.grid.scales
    for moved in (weight.t(), weight.reshape(2, 2, 64), weight.unsqueeze(0), weight.double()):
        assert moved.grid.scale_format == E4M3
        assert torch.equal(moved.grid.scales.scale, scales.scale)
    assert weight[:2].grid.scale_format is None  # the largest scale may be among those left out
    assert functional.dropout(weight).grid.scale_format is None


def test_one_scale_for_all_groups():
    """A constant scale is one number, whatever the groups."""
    grid = Grid(torch.tensor(0.5), None, Integers(4), LAST)
    q = QuantTensor.wrap(torch.full((2, 64), 1.5), grid)
    assert q.t().grid.granularity == PerGroup(32, 0)
    assert q.reshape(1, 2, 64).scale == 0.5


def test_gradients_pass_through_views():
    leaf = torch.randn(2, 6, 64, requires_grad=True)
    act = QuantIdentity(act_quant=Int8DynamicActPerToken, return_quant_tensor=True)
    act(leaf).transpose(0, 1).flatten(0, 1)[3].value.sum().backward()
    assert leaf.grad.abs().sum(2).nonzero().tolist() == [[1, 1]]


def test_compiled_views():
    act = QuantIdentity(act_quant=NVFloat4Act, return_quant_tensor=True).eval()

    def moved(x):
        return act(x).transpose(0, 1).flatten(0, 1).unsqueeze(0)

    torch.compiler.reset()
    x = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    expected, found = moved(x), torch.compile(moved, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(found.value, expected.value)
    assert torch.equal(found.scale, expected.scale)
    assert found.grid.granularity == expected.grid.granularity
    assert found.grid.scale_format == expected.grid.scale_format


def test_codes_of_floats_in_groups():
    grid = Grid(torch.tensor([[1.0, 0.5]]), None, E2M1, PerGroup(2))
    q = QuantTensor.wrap(torch.tensor([[6.0, -1.0, 0.25, 3.0]]), grid)
    assert q.int().tolist() == [[7, 10, 1, 7]]
    assert q.t().int().tolist() == [[7], [10], [1], [7]]
