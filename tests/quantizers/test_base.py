import pytest
import torch

from bitwright.qcore import BiasQuant, IntQuant, IntRange, QuantizerError, SettingError, resolve, settings
from bitwright.qcore import PerGroup as Groups
from bitwright.quantizers import (
    BiasBase,
    Int4WeightPerGroup,
    Int8Act,
    Int8WeightPerTensor,
    IntBase,
    PerGroup,
    PerOutputChannel,
    PowerOfTwo,
    Shifted,
    of_width,
)


def declared(quantizer):
    return {name: each.declared for name, each in settings(quantizer).items()}


def test_int_base():
    found = declared(IntBase)
    assert repr(found.pop("granularity")) == "value(granularity)"
    assert repr(found.pop("number_format")) == "value(number_format)"
    assert found == {
        "quantizes": None,
        "tensor_quant": IntQuant,
        "int_range": IntRange,
        "bit_width": 8,
        "signed": True,
        "narrow_range": False,
        "rounding": "half_even",
        "restriction": "float",
        "min_scale": 1e-10,
        "axis": None,
    }


def test_bias_base():
    assert declared(BiasBase) == {
        "quantizes": "bias",
        "tensor_quant": BiasQuant,
        "int_range": IntRange,
        "bit_width": 32,
        "signed": True,
        "narrow_range": False,
        "rounding": "half_even",
    }
    assert resolve(BiasBase).scheme() == "int32, scale of the products"


def test_int_base_lacks_a_scale():
    with pytest.raises(QuantizerError) as error:
        resolve(IntBase)
    assert str(error.value) == (
        "resolve: IntQuant asks for 'scaling', which IntBase does not have (tensor_quant > scaling). Write `scaling = "
        "...` in the quantizer, or give the argument a default."
    )
    assert resolve(IntBase(scale=0.5))(torch.tensor([0.6])).item() == 0.5


def test_fragments():
    assert declared(PowerOfTwo) == {"restriction": "power_of_two", "power_of_two_rounding": "ceil"}
    assert declared(Shifted) == {"signed": False, "narrow_range": False, "zero_point": "range"}
    assert list(declared(PerOutputChannel)) == ["axis"]
    groups = declared(PerGroup)
    assert repr(groups.pop("granularity")) == "value(granularity)"
    assert groups == {"group_size": 32, "group_axis": None}
    for fragment in (PowerOfTwo, Shifted, PerOutputChannel, PerGroup):
        with pytest.raises(QuantizerError, match="so it is a fragment, not a quantizer"):
            resolve(fragment)


def test_fragments_are_put_together():
    class Mine(PerOutputChannel, PowerOfTwo, Int8WeightPerTensor):
        bit_width = 4

    values, grid = resolve(Mine, {"channel_axis": 0}).quantize(torch.tensor([[3.0, 0.2], [8.0, 2.6]]))
    assert grid.scale.tolist() == [[0.5], [1.0]]
    assert values.tolist() == [[3, 0], [7, 3]]
    assert grid.bounds == (-7, 7)


@pytest.mark.parametrize(
    ("provided", "overrides", "granularity"),
    [
        ({"channel_axis": 0}, {}, Groups(32, 1)),  # a linear layer's weight: along the inputs
        ({"channel_axis": 1}, {}, Groups(32, 0)),  # a transposed convolution's
        ({}, {}, Groups(32, -1)),
        ({"channel_axis": 0}, {"group_size": 2}, Groups(2, 1)),
        ({"channel_axis": 0}, {"group_size": -1, "group_axis": 0}, Groups(-1, 0)),
    ],
)
def test_groups(provided, overrides, granularity):
    class Mine(PerGroup, Int8WeightPerTensor):
        bit_width = 4

    quant = resolve(Mine(**overrides), provided)
    assert quant.granularity == quant.scaling.granularity == granularity


def test_scales_of_groups():
    class Mine(PerGroup, PowerOfTwo, Int8WeightPerTensor):
        bit_width = 4
        group_size = 2

    values, grid = resolve(Mine, {"channel_axis": 0}).quantize(torch.tensor([[3.0, 0.2, 8.0], [8.0, 2.6, 0.7]]))
    assert grid.scale.tolist() == [[0.5, 1], [1, 0.125]]
    assert values.tolist() == [[3, 0, 7], [7, 3, 0.75]]
    assert grid.to_int(values).tolist() == [[6, 0, 7], [7, 3, 6]]


def test_groups_and_an_axis_say_two_things():
    with pytest.raises(SettingError) as error:
        resolve(Int4WeightPerGroup(axis=0), {"channel_axis": 0})
    assert str(error.value) == (
        "resolve: in Int4WeightPerGroup(axis=0), axis=0 is not possible: expected no axis beside "
        "granularity=PerGroup(group_size=32, group_axis=1). Leave one of the two out."
    )


def test_of_width():
    twelve = of_width(Int8Act, 12)
    assert (twelve.__name__, twelve.bit_width, twelve.__doc__) == (
        "Int12Act",
        12,
        "`Int8Act` with 12 bits: integers from -2048 to 2047.",
    )
    assert of_width(Int8WeightPerTensor, 4).__doc__ == "`Int8WeightPerTensor` with 4 bits: integers from -7 to 7."
    assert resolve(twelve).scheme() == resolve(Int8Act(bit_width=12)).scheme()


def test_fragments_go_to_the_left():
    """Python's order: what is to the right does not override."""

    class Late(Int8WeightPerTensor, PowerOfTwo): ...

    with pytest.raises(QuantizerError) as error:
        resolve(Late)
    assert str(error.value) == (
        "resolve: nothing in Late uses power_of_two_rounding = 'ceil' (set by PowerOfTwo). It is a setting of "
        "restriction='power_of_two', and restriction is 'float'."
    )
