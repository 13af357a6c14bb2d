import pytest
import torch

from bitwright.qcore import BiasQuant, IntQuant, IntRange, QuantizerError, resolve, settings
from bitwright.quantizers import BiasBase, Int8WeightPerTensor, IntBase, PerOutputChannel, PowerOfTwo, Shifted


def declared(quantizer):
    return {name: each.declared for name, each in settings(quantizer).items()}


def test_int_base():
    assert declared(IntBase) == {
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
    for fragment in (PowerOfTwo, Shifted, PerOutputChannel):
        with pytest.raises(QuantizerError, match="so it is a fragment, not a quantizer"):
            resolve(fragment)


def test_fragments_are_put_together():
    class Mine(PerOutputChannel, PowerOfTwo, Int8WeightPerTensor):
        bit_width = 4

    values, grid = resolve(Mine, {"channel_axis": 0}).quantize(torch.tensor([[3.0, 0.2], [8.0, 2.6]]))
    assert grid.scale.tolist() == [[0.5], [1.0]]
    assert values.tolist() == [[3, 0], [7, 3]]
    assert grid.bounds == (-7, 7)


def test_fragments_go_to_the_left():
    """Python's order: what is to the right does not override."""

    class Late(Int8WeightPerTensor, PowerOfTwo): ...

    with pytest.raises(QuantizerError) as error:
        resolve(Late)
    assert str(error.value) == (
        "resolve: nothing in Late uses power_of_two_rounding = 'ceil' (set by PowerOfTwo). It is a setting of "
        "restriction='power_of_two', and restriction is 'float'."
    )
