"""Grids of weights that stay, whatever becomes of the weight."""

import copy
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, StoredScaling
from bitwright.qcore.scaling.constant import FixedScaling, FixedZeroPoint
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    NF4Weight,
    ShiftedUint8WeightPerChannel,
)

KINDS = [
    Int8WeightPerTensor,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    ShiftedUint8WeightPerChannel,
    Int4WeightPerGroup(group_size=3),
    NF4Weight(group_size=3),
]


def fixed(quantizer, **settings):
    """A layer whose grid is fixed, and the grid."""
    torch.manual_seed(0)
    layer = qnn.QuantLinear(6, 4, bias=False, weight_quant=quantizer, **settings).eval()
    grid = layer.take("weight")[1]
    layer.weight_quant.fix(grid)
    return layer, grid


def grids_equal(one, other):
    zero_points = [each.zero_point for each in (one, other)]
    return (
        torch.equal(one.scale, other.scale)
        and (zero_points[0] is None) == (zero_points[1] is None)
        and (zero_points[0] is None or torch.equal(*zero_points))
        and one[2:4] == other[2:4]
    )


@pytest.mark.parametrize("quantizer", KINDS, ids=str)
def test_a_fixed_grid_stays_when_the_weight_changes_and_goes_with_the_state(quantizer):
    layer, grid = fixed(quantizer)
    before = layer.take("weight")[0]
    with torch.no_grad():
        layer.weight.mul_(3)
    values, after = layer.take("weight")
    assert grids_equal(after, grid)
    assert not any(module.training for module in layer.modules())
    assert layer.weight_quant.fixed
    assert not layer.weight_quant.dynamic
    assert values.abs().max() <= grid.from_int(grid.to_int(before)).abs().max() * 1.5  # clipped, to the same levels
    fresh = qnn.QuantLinear(6, 4, bias=False, weight_quant=quantizer).eval()
    fresh.load_state_dict(layer.state_dict())
    assert fresh.weight_quant.fixed
    assert torch.equal(fresh.take("weight")[0], values)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.take("weight")[0], values)


@pytest.mark.parametrize("quantizer", KINDS, ids=str)
def test_released_grids_are_those_of_the_declaration(quantizer):
    layer, grid = fixed(quantizer)
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.weight_quant.release()
    layer.weight_quant.release()  # nothing to do
    fresh = qnn.QuantLinear(6, 4, bias=False, weight_quant=quantizer).eval()
    fresh.weight = layer.weight
    assert not layer.weight_quant.fixed
    assert not any(module.training for module in layer.modules())
    if isinstance(fresh.weight_quant.scaling, StoredScaling) and fresh.weight_quant.zero_point is None:
        torch.testing.assert_close(layer.take("weight")[1].scale, grid.scale)  # training goes on from there
    else:
        assert torch.equal(layer.take("weight")[0], fresh.take("weight")[0])
    assert layer.weight_quant.scheme() == fresh.weight_quant.scheme()
    assert layer.state_dict().keys() == fresh.state_dict().keys()


@pytest.mark.parametrize(
    "replace",
    [
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(4, 6))),
        lambda layer: layer.load_state_dict({"weight": torch.ones(4, 6)}, strict=False),
        lambda layer: layer.load_state_dict(
            qnn.QuantLinear(6, 4, bias=False, weight_quant=ShiftedUint8WeightPerChannel).state_dict()
        ),
    ],
    ids=["a new parameter", "a float checkpoint", "a checkpoint whose grid isn't fixed"],
)
def test_other_weights_end_a_fixed_grid(replace):
    layer, _ = fixed(ShiftedUint8WeightPerChannel)
    replace(layer)
    assert not layer.weight_quant.fixed


def test_weights_beyond_a_fixed_grid_are_clipped_and_their_gradient_is_masked():
    layer, _ = fixed(Int8WeightPerTensor(bit_width=2))
    with torch.no_grad():
        layer.weight[0, 0] = 50.0
    layer.train()(torch.ones(6)).sum().backward()
    assert layer.weight.grad[0, 0] == 0
    assert layer.weight.grad[1:].any()


@pytest.mark.parametrize("quantizer", [Int8WeightPerChannel, ShiftedUint8WeightPerChannel], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fixed_grids_stay_wide_in_half_precision(quantizer, dtype):
    layer, grid = fixed(quantizer)
    layer.to(dtype)
    now = layer.take("weight")[1]
    assert grids_equal(now, grid)
    assert now.scale.dtype == torch.float32


def test_a_grid_on_another_scale_may_be_fixed():
    layer, grid = fixed(Int8WeightPerChannel)
    layer.weight_quant.fix(grid.replace(scale=grid.scale * 2))
    assert torch.equal(layer.take("weight")[1].scale, grid.scale * 2)


FITTING = "Take the grid that the weight has, layer.quant_weight().grid, and replace its scales."


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"number_format": qnn.QuantLinear(1, 1, weight_bit_width=4).quant_weight().grid.number_format},
            "its levels: int4 narrow, and the weight's: int8 narrow",
        ),
        ({"scale": torch.ones(3, 1)}, "its shape of scales: (3, 1), and the weight's: (4, 1)"),
        (
            {"granularity": qnn.QuantLinear(1, 1).quant_weight().grid.granularity},
            "its granularity: per tensor, and the weight's: axis 0",
        ),
        ({"zero_point": torch.ones(4, 1)}, "its zero points: True, and the weight's: False"),
    ],
)
def test_what_is_no_grid_of_the_weight(change, said):
    layer, grid = fixed(Int8WeightPerChannel)
    layer.weight_quant.release()
    with pytest.raises(QuantizerError, match=re.escape(f"IntQuant: the grid can't be fixed: {said}. {FITTING}")):
        layer.weight_quant.fix(grid.replace(**change))
    assert not layer.weight_quant.fixed


def test_grids_that_nobody_can_fix():
    shared = qnn.QuantLinear(6, 4, weight_quant=Int8WeightPerTensor)
    other = qnn.QuantLinear(6, 4, weight_quant=shared.weight_quant)
    act = qnn.QuantIdentity(act_quant=Int8Act, scale=0.5)
    grid = other.quant_weight().grid
    for quant, why in (
        (shared.weight_quant, "it serves several weights"),
        (act.act_quant, "only a weight has a grid that can be fixed"),
    ):
        with pytest.raises(QuantizerError) as caught:
            quant.fix(grid)
        assert str(caught.value) == f"{type(quant).__name__}: the grid can't be fixed: {why}."


def test_a_quantizer_built_by_hand_has_nothing_to_go_back_to():
    layer, _ = fixed(Int8WeightPerTensor)
    layer.weight_quant.quantizer = None
    with pytest.raises(QuantizerError) as caught:
        layer.weight_quant.release()
    assert str(caught.value) == (
        f"{type(layer.weight_quant).__name__}: no declaration says where the scales came from. Set `scaling`."
    )


def test_fixed_parts_say_what_they_are():
    layer, grid = fixed(ShiftedUint8WeightPerChannel)
    scaling, zero_point = layer.weight_quant.scaling, layer.weight_quant.zero_point
    assert isinstance(scaling, FixedScaling)
    assert isinstance(zero_point, FixedZeroPoint)
    assert torch.equal(scaling(layer.weight), grid.scale)
    assert torch.equal(zero_point(layer.weight, grid.scale), grid.zero_point)
    assert scaling(layer.weight).data_ptr() != scaling.fixed_scale.data_ptr()  # a grid stays when a file is loaded
    assert {name for name in layer.state_dict() if "fixed" in name} == {
        "weight_quant.scaling.fixed_scale",
        "weight_quant.zero_point.fixed_zero_point",
    }
    assert repr(zero_point) == "FixedZeroPoint()"
