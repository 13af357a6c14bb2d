"""Which values share a scale: every granularity against blocks that are cut out one by one."""

import copy
import itertools
import math
import pickle
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bitwright.nn as qnn
from bitwright.qcore import (
    Granularity,
    Grid,
    Integers,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizerError,
    QuantTensor,
    SettingError,
    value,
    values_of,
)
from bitwright.qcore.granularity import granularity_of
from bitwright.quantizers import Int4WeightPerGroup, Int8WeightPerTensor


@dataclass(frozen=True)
class PerHead(Granularity):
    """A user's own, from the class docstring: a projection's outputs, head by head."""

    heads: int

    def block(self, shape):
        return (shape[0] // self.heads, *shape[1:])


class _Half(NamedTuple):
    dim: int


class PerHalf(Granularity, _Half):
    """A user's own as a named tuple: one dimension in two."""

    __slots__ = ()

    def block(self, shape):
        return tuple(max(-(-size // 2) if dim == self.dim else size, 1) for dim, size in enumerate(shape))


def granularities(ndim):
    dims = st.integers(-ndim, ndim - 1) if ndim else st.nothing()
    sides = st.one_of(st.just(-1), st.integers(1, 5))
    return st.one_of(
        st.just(PerTensor()),
        st.just(PerToken()),
        st.builds(PerAxis, dims),
        st.builds(PerGroup, st.one_of(st.just(-1), st.integers(1, 9)), dims),
        st.builds(PerBlock, st.lists(sides, min_size=1, max_size=3).map(tuple)),
        st.builds(PerHalf, dims.filter(lambda dim: dim >= 0)),
    )


def shapes(smallest=0):
    return st.lists(st.integers(smallest, 7), max_size=4).map(tuple)


@st.composite
def cases(draw, smallest=1):
    """A tensor of distinct numbers, laid out in some order, and a granularity for it."""
    shape = draw(shapes(smallest))
    order = draw(st.permutations(range(len(shape))))
    stored = torch.arange(float(math.prod(shape))).reshape([shape[dim] for dim in order])
    return stored.permute([order.index(dim) for dim in range(len(shape))]), draw(granularities(len(shape)))


def blocks(shape, granularity):
    """Where each block lies."""
    steps = granularity.block(shape)
    starts = (range(0, size, step) for size, step in zip(shape, steps, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + step) for start, step in zip(corner, steps, strict=True))


def numbers_of(x, granularity):
    """A number for each scale, and the same spread over the tensor, block by block."""
    found = list(blocks(x.shape, granularity))
    scales, spread = 2.0 ** (torch.arange(float(len(found))) % 5), torch.zeros(x.shape)
    for scale, at in zip(scales, found, strict=True):
        spread[at] = scale
    return scales, spread


# Numbers


@pytest.mark.parametrize(
    ("granularity", "shape", "block", "scales"),
    [
        (PerTensor(), (2, 3), (2, 3), ()),
        (PerTensor(), (), (), ()),
        (PerTensor(), (0, 3), (1, 3), ()),
        (PerAxis(0), (2, 3), (1, 3), (2, 1)),
        (PerAxis(-1), (2, 3, 4), (2, 3, 1), (1, 1, 4)),
        (PerAxis(1), (2, 0, 4), (2, 1, 4), (1, 0, 1)),
        (PerAxis(1), (0, 3), (1, 1), (1, 3)),
        (PerGroup(), (2, 64), (1, 32), (2, 2)),
        (PerGroup(4), (2, 10), (1, 4), (2, 3)),
        (PerGroup(4), (2, 3), (1, 3), (2, 1)),
        (PerGroup(-1), (2, 10), (1, 10), (2, 1)),
        (PerGroup(2, 0), (5, 3), (2, 1), (3, 3)),
        (PerGroup(2, 1), (4, 5, 3, 3), (1, 2, 1, 1), (4, 3, 3, 3)),
        (PerGroup(2), (3, 0), (1, 1), (3, 0)),
        (PerToken(), (2, 7, 64), (1, 1, 64), (2, 7, 1)),
        (PerToken(), (5,), (5,), (1,)),
        (PerToken(), (), (), ()),
        (PerToken(), (3, 0), (1, 1), (3, 1)),
        (PerBlock((2, 4)), (3, 4, 10), (1, 2, 4), (3, 2, 3)),
        (PerBlock((2, 4)), (10,), (4,), (3,)),
        (PerBlock((-1, 4)), (3, 10), (3, 4), (1, 3)),
        (PerBlock((128, 128)), (3, 10), (3, 10), (1, 1)),
        (PerBlock((2,)), (), (), ()),
        (PerHead(2), (4, 3), (2, 3), (2, 1)),
        (PerHalf(1), (2, 5), (2, 3), (1, 2)),
    ],
    ids=str,
)
def test_blocks_and_scales(granularity, shape, block, scales):
    assert granularity.block(shape) == block
    assert granularity.scales_shape(shape) == scales
    assert granularity.count(shape) == math.prod(scales)


def test_rows():
    x = torch.arange(12.0).reshape(2, 6)
    assert PerTensor().rows(x).tolist() == [x.reshape(-1).tolist()]
    assert PerAxis(1).rows(x).tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    assert PerToken().rows(x).tolist() == x.tolist()
    assert PerGroup(3).rows(x).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert PerGroup(2, 0).rows(x).tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]
    assert PerBlock((2, 3)).rows(x).tolist() == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert PerHead(2).rows(x).tolist() == x.tolist()


def test_a_shorter_block_at_the_end_is_filled_up_by_repeating_it():
    x = torch.arange(10.0).reshape(2, 5)
    assert PerGroup(3).rows(x).tolist() == [[0, 1, 2], [3, 4, 3], [5, 6, 7], [8, 9, 8]]
    assert PerGroup(4).rows(x).tolist() == [[0, 1, 2, 3], [4, 4, 4, 4], [5, 6, 7, 8], [9, 9, 9, 9]]
    assert PerBlock((2, 3)).rows(x).tolist() == [[0, 1, 2, 5, 6, 7], [3, 4, 3, 8, 9, 8]]
    both = PerBlock((2, 2)).rows(torch.arange(9.0).reshape(3, 3))
    assert both.tolist() == [[0, 1, 3, 4], [2, 2, 5, 5], [6, 7, 6, 7], [8, 8, 8, 8]]


def test_spread():
    assert PerGroup(2).spread(torch.tensor([[1.0, 2.0]]), (1, 3)).tolist() == [[1, 1, 2]]
    assert PerBlock((2, 2)).spread(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), (3, 3)).tolist() == [
        [1, 1, 2],
        [1, 1, 2],
        [3, 3, 4],
    ]
    channels = torch.tensor([[1.0], [2.0]])
    for granularity in (PerAxis(0), PerToken(), PerGroup(-1)):
        assert granularity.spread(channels, (2, 3)) is channels  # broadcasts as it is
    assert PerTensor().spread(torch.tensor(2.0), (2, 3)).tolist() == 2
    assert PerGroup(2).spread(torch.tensor([[2.0]]), (4, 6)).tolist() == 2  # one for all


@pytest.mark.parametrize(
    ("granularity", "axis", "single", "broadcasts", "text"),
    [
        (PerTensor(), None, True, True, "per tensor"),
        (PerAxis(1), 1, False, True, "axis 1"),
        (PerAxis(-1), -1, False, True, "axis -1"),
        (PerGroup(), None, False, False, "groups of 32 along axis -1"),
        (PerGroup(-1, 0), None, False, False, "groups of all along axis 0"),
        (PerToken(), None, False, True, "per token"),
        (PerBlock((128, -1)), None, False, False, "blocks of 128 x -1"),
        (PerHead(2), None, False, False, "PerHead(heads=2)"),
        (PerHalf(1), None, False, False, "PerHalf(dim=1)"),
    ],
    ids=str,
)
def test_what_it_says(granularity, axis, single, broadcasts, text):
    assert (granularity.axis, granularity.single, granularity.broadcasts) == (axis, single, broadcasts)
    assert str(granularity) == text


def test_printed_is_the_call():
    found = [repr(each) for each in (PerTensor(), PerAxis(1), PerGroup(4), PerToken(), PerBlock((2, 4)))]
    assert found == [
        "PerTensor()",
        "PerAxis(axis=1)",
        "PerGroup(group_size=4, group_axis=-1)",
        "PerToken()",
        "PerBlock(block_sizes=(2, 4))",
    ]


@pytest.mark.parametrize(
    ("granularity", "fitting", "placed"),
    [
        (PerTensor(), [0, 1, 2, 3, 4], PerTensor()),
        (PerAxis(1), [2, 3, 4], PerAxis(1)),
        (PerAxis(-3), [3, 4], PerAxis(1)),
        (PerGroup(8, -1), [1, 2, 3, 4], PerGroup(8, 3)),
        (PerGroup(8, 2), [3, 4], PerGroup(8, 2)),
        (PerToken(), [0, 1, 2, 3, 4], PerToken()),
        (PerBlock((2, 2)), [0, 1, 2, 3, 4], PerBlock((2, 2))),
        (PerHead(2), [0, 1, 2, 3, 4], PerHead(2)),
    ],
    ids=str,
)
def test_dimensions_are_counted_from_either_end(granularity, fitting, placed):
    assert [ndim for ndim in range(5) if granularity.fits(ndim)] == fitting
    assert granularity.placed(4) == placed
    assert granularity.placed(4).placed(4) == placed


# Definitions


@given(cases())
def test_rows_hold_what_shares_a_scale(case):
    x, granularity = case
    rows, where = granularity.rows(x), list(blocks(x.shape, granularity))
    assert granularity.count(x.shape) == len(where) == rows.shape[0]
    assert rows.shape[1] == math.prod(granularity.block(x.shape))
    for row, at in zip(rows, where, strict=True):
        part = x[at].reshape(-1).tolist()
        assert set(row.tolist()) == set(part)
        assert len(part) < rows.shape[1] or row.tolist() == part


@given(cases())
def test_rows_and_back(case):
    x, granularity = case
    rows = granularity.rows(x)
    assert torch.equal(granularity.unrows(rows, x), x)
    assert torch.equal(granularity.unrows(rows.clone(), torch.empty_like(x)), x)
    assert torch.equal(granularity.back(granularity.view(x), x), x)
    assert granularity.rows(x.long()).dtype == torch.int64


@given(cases())
def test_scales_reach_the_values_of_their_block(case):
    x, granularity = case
    flat, expected = numbers_of(x, granularity)
    scales = granularity.compact(flat, x.shape)
    assert scales.shape == granularity.scales_shape(x.shape)
    assert scales.reshape(-1).tolist() == flat.tolist()
    assert torch.equal(granularity.spread(scales, x.shape).expand(x.shape), expected)
    product = granularity.view(x) * granularity.beside(scales, x)
    assert torch.equal(granularity.back(product, x), x * expected)
    assert torch.equal(granularity.unrows(granularity.rows(x) * flat[:, None], x), x * expected)


@given(cases())
def test_one_number_for_all_reaches_every_value(case):
    x, granularity = case
    one = torch.tensor(3.0)
    assert granularity.compact(one, x.shape) is one
    assert torch.equal(granularity.spread(one, x.shape).expand(x.shape), torch.full(x.shape, 3.0))
    assert torch.equal(granularity.back(granularity.view(x) * granularity.beside(one, x), x), x * 3)


@given(cases(smallest=0))
def test_empty_tensors(case):
    x, granularity = case
    assert granularity.count(x.shape) == math.prod(granularity.scales_shape(x.shape))
    scales = granularity.compact(torch.ones(granularity.count(x.shape)), x.shape)
    assert scales.shape == granularity.scales_shape(x.shape)
    assert granularity.back(granularity.view(x) * granularity.beside(scales, x), x).shape == x.shape
    assert (granularity.spread(scales, x.shape) * x).shape == x.shape


@given(cases())
def test_axis_is_where_a_scale_is_for_each_index(case):
    x, granularity = case
    if granularity.axis is not None:
        assert granularity.scales_shape(x.shape) == PerAxis(granularity.axis).scales_shape(x.shape)
    if granularity.single:
        assert granularity.count(x.shape) == 1
    if granularity.broadcasts:
        assert granularity.view(x) is x


@given(cases())
def test_gradients_of_rows(case):
    """Each value gets that of its place; a repeated one the sum over its copies."""
    x, granularity = case
    leaf = x.clone().requires_grad_()
    grad = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(granularity.unrows(granularity.rows(leaf), x), leaf, grad)[0]
    assert torch.equal(found, grad)
    copies = torch.autograd.grad(granularity.rows(leaf).sum(), leaf)[0]
    assert copies.sum() == granularity.rows(x).numel()
    assert copies.min() >= 1


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerAxis(0), PerGroup(4), PerGroup(-1), PerToken(), PerHead(2)], ids=str
)
def test_rows_are_a_view_where_the_layout_allows_one(granularity):
    x = torch.zeros(4, 8)
    assert granularity.rows(x).data_ptr() == x.data_ptr()


# Values


EVERY = [
    PerTensor(),
    PerAxis(0),
    PerAxis(1),
    PerAxis(-1),
    PerGroup(),
    PerGroup(1),
    PerGroup(32, 1),
    PerToken(),
    PerBlock((1,)),
    PerBlock((32, 1)),
    PerHead(1),
    PerHalf(1),
]


@pytest.mark.parametrize("granularity", EVERY, ids=repr)
def test_values(granularity):
    for copied in (pickle.loads(pickle.dumps(granularity)), copy.copy(granularity), copy.deepcopy(granularity)):
        assert type(copied) is type(granularity)
        assert copied == granularity
        assert hash(copied) == hash(granularity)
    assert eval(repr(granularity)) == granularity
    assert bool(granularity)


def test_values_of_different_kinds_differ():
    """Named tuples of the same numbers are not the same granularity."""
    assert len(set(EVERY)) == len(EVERY)
    for one, other in itertools.combinations(EVERY, 2):
        assert one != other
    assert PerAxis(1) != (1,)
    assert PerTensor() != ()
    assert PerTensor() != PerToken()


@pytest.mark.parametrize("granularity", EVERY, ids=repr)
def test_immutable(granularity):
    name = next(iter([*getattr(granularity, "_fields", ()), "heads"]))
    with pytest.raises(AttributeError):
        setattr(granularity, name, 3)


# A user's own


class Heads(Int8WeightPerTensor):
    """A scale for each head of a projection."""

    bit_width = 4
    heads = 2

    @value
    def granularity(heads):  # noqa: N805
        return PerHead(heads)


def test_the_example_of_the_docstring():
    per_head, weight = PerHead(2), torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 0.0], [0.5, 4.0]])
    assert (per_head.count(weight.shape), per_head.scales_shape(weight.shape)) == (2, (2, 1))
    assert per_head.rows(weight).abs().amax(1).tolist() == [2, 4]
    assert per_head.spread(torch.tensor([[1.0], [2.0]]), weight.shape).reshape(-1).tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("scaling", ["statistic", "learned"])
def test_a_granularity_of_ones_own_trains(scaling):
    torch.manual_seed(0)
    layer = qnn.QuantLinear(2, 4, bias=False, weight_quant=Heads(scaling=scaling))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.25, -2.0], [0.5, 0.25], [3.0, 0.0], [0.5, 4.0]]))
    weight = layer.quant_weight()
    torch.testing.assert_close(weight.scale, torch.tensor([[2.0], [4.0]]) / 7)
    assert layer.int_weight().tolist() == [[4, -7], [2, 1], [5, 0], [1, 7]]
    assert weight.is_valid
    layer(torch.ones(3, 2)).square().sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    if scaling == "learned":
        assert layer.weight_quant.scaling.magnitude_offset.grad.shape == (2,)
    loaded = qnn.QuantLinear(2, 4, bias=False, weight_quant=Heads(scaling=scaling))
    loaded.load_state_dict(layer.state_dict())
    assert torch.equal(loaded.quant_weight().value, weight.value)
    assert layer.weight_quant.scheme() == "int4 narrow, PerHead(heads=2), float scale"


def test_a_file_of_another_granularity_is_refused():
    layer = qnn.QuantLinear(2, 4, weight_quant=Heads)
    with pytest.raises(RuntimeError) as error:
        qnn.QuantLinear(2, 4, weight_quant=Heads(heads=4)).load_state_dict(layer.state_dict())
    assert (
        "weight_quant: the file holds int4 narrow, PerHead(heads=2), float scale, the model is int4 narrow, "
        "PerHead(heads=4), float scale."
    ) in str(error.value)


# Mistakes


@dataclass(frozen=True)
class Wrong(Granularity):
    found: tuple

    def block(self, shape):
        return self.found


@pytest.mark.parametrize("found", [(1,), (1, 0), (3, 4), (1, 2, 1), (-1, 4)])
def test_an_impossible_block(found):
    with pytest.raises(QuantizerError) as error:
        Wrong(found).rows(torch.ones(2, 4))
    assert str(error.value) == (
        f"Wrong(found={found}).block((2, 4)) is {found}: expected one whole number for each of 2 dimensions, from 1 to "
        "its size."
    )
    with pytest.raises(QuantizerError):
        Wrong(found).scales_shape((2, 4))


def test_a_block_is_what_a_subclass_says():
    with pytest.raises(NotImplementedError):
        Granularity().count((2, 4))


@pytest.mark.parametrize("size", [0, -2, 1.5, 4.0, "4", None, True])
def test_impossible_group_size(size):
    with pytest.raises(SettingError) as error:
        granularity_of(None, PerGroup(size))
    assert str(error.value) == (
        f"group_size={size!r} is not possible: expected a whole number of neighbours, 1 or more, or -1 for all."
    )


@pytest.mark.parametrize(
    ("make", "setting"), [(PerAxis, "axis"), (lambda axis: PerGroup(32, axis), "group_axis")], ids=["axis", "groups"]
)
@pytest.mark.parametrize("axis", [1.5, "1", None, True, (0,)])
def test_impossible_dimension(make, setting, axis):
    with pytest.raises(SettingError) as error:
        granularity_of(None, make(axis))
    assert str(error.value) == f"{setting}={axis!r} is not possible: expected a dimension such as 1."


@pytest.mark.parametrize("sizes", [(), (0, 2), (2, -2), (1.5,), 4, "22", None, (True, 2), [2, 4]])
def test_impossible_block_sizes(sizes):
    with pytest.raises(SettingError) as error:
        granularity_of(None, PerBlock(sizes))
    assert str(error.value) == (
        f"block_sizes={sizes!r} is not possible: expected a tuple of whole numbers, 1 or more, or -1 for a whole "
        "dimension, such as (128, 128)."
    )


def test_impossible_settings_are_refused_when_the_layer_is_built():
    with pytest.raises(QuantizerError) as error:
        qnn.QuantLinear(8, 4, weight_quant=Int4WeightPerGroup, weight_group_size=0)
    assert "weight_group_size=0 is not possible: expected a whole number of neighbours, 1 or more, or -1 for all." in (
        str(error.value)
    )
    with pytest.raises(QuantizerError) as error:
        qnn.QuantIdentity(granularity=PerBlock((0, 2)), scaling="statistic")
    assert "block_sizes=(0, 2) is not possible" in str(error.value)


def test_granularity_of():
    assert granularity_of(None) == PerTensor()
    assert granularity_of(1) == granularity_of(None, PerAxis(1)) == granularity_of(1, PerAxis(1)) == PerAxis(1)
    assert granularity_of(None, PerGroup(4)) == PerGroup(4)
    own = PerHead(2)
    assert granularity_of(None, own) is own


@pytest.mark.parametrize("found", [PerGroup, 4, "group", (1,)])
def test_what_is_no_granularity(found):
    with pytest.raises(SettingError) as error:
        granularity_of(None, found)
    assert str(error.value) == (
        f"granularity={found!r} is not possible: expected a Granularity such as PerGroup(32), PerAxis(1) or "
        "PerTensor()."
    )


@pytest.mark.parametrize("granularity", [PerAxis(0), PerTensor(), PerGroup(4), PerToken()], ids=str)
def test_an_axis_beside_another_granularity(granularity):
    with pytest.raises(SettingError) as error:
        granularity_of(1, granularity)
    assert str(error.value) == (
        f"axis=1 is not possible: expected no axis beside granularity={granularity!r}. Leave one of the two out."
    )


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("1", "axis='1' is not possible: expected a dimension such as 1, or None for one scale per tensor."),
        (True, "axis=True is not possible: expected a dimension such as 1, or None for one scale per tensor."),
        (1.0, "axis=1.0 is not possible: expected a dimension such as 1, or None for one scale per tensor."),
        (8, "axis=8 is not possible: expected a dimension from -8 to 7, or None for one scale per tensor."),
        (-9, "axis=-9 is not possible: expected a dimension from -8 to 7, or None for one scale per tensor."),
    ],
)
def test_impossible_axis(axis, message):
    with pytest.raises(SettingError) as error:
        granularity_of(axis)
    assert str(error.value) == message


def test_an_input_without_the_dimension_of_the_groups():
    layer = torch.nn.Sequential(qnn.QuantIdentity(granularity=PerGroup(4, 2), scaling="statistic"))
    with pytest.raises(QuantizerError) as error:
        layer(torch.ones(2, 4))
    assert str(error.value) == (
        "0.act_quant: an input of 2 dimensions can't have groups of 4 along axis 2. Write a group_axis from -2 to 1."
    )


def test_scales_of_tokens_are_not_stored():
    with pytest.raises(QuantizerError) as error:
        qnn.QuantIdentity(granularity=PerToken())
    assert "A scale for each token follows its values: write scaling='statistic'." in str(error.value)


# Through layers and compilers


ACTS = [PerTensor(), PerAxis(1), PerGroup(3), PerGroup(2, 1), PerToken(), PerBlock((2, 4)), PerHalf(0)]


@pytest.mark.parametrize("granularity", ACTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_activations_of_every_granularity(granularity, dtype):
    torch.manual_seed(0)
    layer = qnn.QuantIdentity(granularity=granularity, scaling="statistic", return_quant_tensor=True)
    x = torch.randn(2, 4, 5, dtype=dtype).transpose(0, 1)
    y = layer(x)
    assert (type(y), y.dtype, y.shape) == (QuantTensor, dtype, x.shape)
    assert y.is_valid
    assert y.grid.granularity == granularity.placed(3)
    for scale, at in zip(y.scale.reshape(-1), blocks(x.shape, granularity), strict=True):
        assert scale.item() == pytest.approx(x[at].float().abs().max().item() / 128, rel=1e-6)
        torch.testing.assert_close(
            y.value[at].float(), torch.clamp(torch.round(x[at].float() / scale), -128, 127) * scale, rtol=1e-2, atol=0
        )
    assert layer(x[:0]).shape == (0, 2, 5)


COMPILED = [  # a graph for any batch is the graph for one, with symbols for sizes
    *((each, True) for each in ACTS if each != PerHalf(0)),
    (PerHalf(0), False),
    *(pytest.param(each, False, marks=pytest.mark.slow) for each in ACTS if each != PerHalf(0)),
]


@pytest.mark.parametrize(("granularity", "dynamic"), COMPILED, ids=str)
def test_compiled(granularity, dynamic):
    torch.compiler.reset()
    settings = {"scaling": "statistic", "statistic": "abs_max", "return_quant_tensor": True}
    layer = qnn.QuantIdentity(granularity=granularity, **settings)

    def loss(x):
        y = layer(x)
        return values_of(y).pow(3).sum(), y.detach()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for batch in (4, 6) if dynamic else (4,):
        x = torch.randn(batch, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        (out, y), (wanted, expected) = compiled(x), loss(x)
        assert torch.equal(y.value, expected.value)
        assert torch.equal(y.scale, expected.scale)
        assert y.grid.granularity == expected.grid.granularity
        torch.testing.assert_close(torch.autograd.grad(out, x), torch.autograd.grad(wanted, x))


def test_a_constant_of_groups_is_of_the_tensors_dimensions():
    """So that what moves values can move the scale along."""
    layer = qnn.QuantIdentity(granularity=PerGroup(2), scale=0.5, return_quant_tensor=True)
    y = layer(torch.tensor([[0.5, 1.0, -2.0], [3.0, 0.25, 0.75]]))
    assert y.scale.tolist() == [[0.5]]
    assert y.t().int().tolist() == [[1, 6], [2, 0], [-4, 2]]
    assert y.unsqueeze(2).permute(2, 0, 1).int().tolist() == [[[1, 2, -4], [6, 0, 2]]]


def test_grids_of_groups_move_with_their_values():
    grid = Grid(torch.tensor([[0.5, 0.25], [1.0, 2.0]]), number_format=Integers(8), granularity=PerGroup(2))
    x = QuantTensor.wrap(torch.tensor([[0.5, 1.0, -2.0], [3.0, 2.0, 4.0]]), grid)
    moved = x.t()
    assert moved.int().tolist() == [[1, 3], [2, 2], [-8, 2]]
    assert (moved.grid.granularity, moved.scale.tolist()) == (PerGroup(2, 0), [[0.5, 1], [0.25, 2]])
    assert x[None].permute(2, 0, 1).grid.granularity == PerGroup(2, 0)
    assert type(x[:, 1:]) is torch.Tensor  # the groups are cut
    assert type(x.flatten()) is torch.Tensor
