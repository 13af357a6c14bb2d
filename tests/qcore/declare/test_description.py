import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import Description, Quantizer, QuantizerError, describe, value
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, PowerOfTwo, Uint8Act

LINES = Path(__file__).read_text(encoding="utf-8").splitlines()


class Wheel:
    def __init__(self, radius, spokes=8): ...


class Car:
    def __init__(self, wheel, radius, color=None): ...


class Base(Quantizer):
    tensor_quant = Car
    wheel = Wheel
    radius: Any = 3


class Racer(Base):
    @value
    def radius(size):  # noqa: N805
        return 2 * size

    size = 2


def line(text):
    """Where a line of this file is."""
    return next(number for number, each in enumerate(LINES, 1) if each.strip() == text)


def here(owner, text):
    return f"{owner}, {__name__}:{line(text)}"


def test_tree():
    assert str(describe(Racer(color="red"))).splitlines() == [
        "Racer(color='red')",
        f"{'`- tensor_quant = Car':<56}  {here('Base', 'tensor_quant = Car')}",
        f"{'   |- wheel = Wheel':<56}  {here('Base', 'wheel = Wheel')}",
        f"{'   |  |- radius = value(radius)':<56}  {here('Racer', 'def radius(size):  # noqa: N805')}, "
        "also used by tensor_quant",
        f"{'   |  |  `- size = 2':<56}  {here('Racer', 'size = 2')}",
        f"{'   |  `- spokes = 8':<56}  default of Wheel",
        f"{'   |- radius = value(radius)':<56}  {here('Racer', 'def radius(size):  # noqa: N805')}, also used by wheel",
        f"{'   `- color = ' + repr('red'):<56}  keyword color",
    ]


def test_data():
    radius = {
        "attribute": "radius",
        "value": "3",
        "set_by": here("Base", "radius: Any = 3"),
        "used_by": ["wheel", "tensor_quant"],
        "needs": [],
    }
    spokes = {"attribute": "spokes", "value": "8", "set_by": "default of Wheel", "used_by": ["wheel"], "needs": []}
    color = {
        "attribute": "color",
        "value": "None",
        "set_by": "default of Car",
        "used_by": ["tensor_quant"],
        "needs": [],
    }
    wheel = {
        "attribute": "wheel",
        "value": "Wheel",
        "set_by": here("Base", "wheel = Wheel"),
        "used_by": ["tensor_quant"],
        "needs": [radius, spokes],
    }
    root = {
        "attribute": "tensor_quant",
        "value": "Car",
        "set_by": here("Base", "tensor_quant = Car"),
        "used_by": [],
        "needs": [wheel, radius, color],
    }
    whole = {"attribute": "", "value": "Base", "set_by": "", "used_by": [], "needs": [root]}
    assert describe(Base).to_dict() == whole
    assert json.loads(describe(Base).to_json()) == whole
    assert describe(Base).to_json(indent=None).count("\n") == 0


def test_find():
    tree = describe(Base)
    assert isinstance(tree, Description)
    found = tree.find("spokes")
    assert (found.attribute, found.value, found.set_by, found.used_by) == (
        "spokes",
        "8",
        "default of Wheel",
        ("wheel",),
    )
    assert str(found) == f"{'spokes = 8':<56}  default of Wheel"
    with pytest.raises(KeyError, match="color2"):
        tree.find("color2")


@pytest.mark.parametrize(
    ("overrides", "implied"), [({"scale": 0.5}, "implied by scale"), ({"max_value": 6.0}, "implied by max_value")]
)
def test_implied(overrides, implied):
    tree = describe(Uint8Act(**overrides))
    assert (tree.find("scaling").value, tree.find("scaling").set_by) == ("'constant'", implied)
    layer = describe(
        qnn.QuantLinear(2, 2, input_quant=Int8Act, **{f"input_{key}": item for key, item in overrides.items()})
    )
    assert layer.find("input_quant").needs[0].attribute == "tensor_quant"
    scalings = [each for each in layer.find("input_quant")._walk() if each.attribute == "scaling"]
    assert scalings[0].set_by == implied.replace("by ", "by input_")


def test_quantizer_that_needs_a_layer():
    tree = describe(Int8WeightPerChannel)
    assert (tree.find("channel_axis").value, tree.find("channel_axis").set_by) == ("(from the layer)", "the layer")
    axis, granularity = tree.find("axis"), tree.find("granularity")
    assert (axis.value, set(axis.used_by)) == ("value(axis)", {"granularity", "scaling", "tensor_quant"})
    assert (granularity.value, set(granularity.used_by)) == ("value(granularity)", {"scaling", "tensor_quant"})


def test_layer():
    tree = describe(qnn.QuantLinear(4, 2, weight_quant=Int8WeightPerChannel, weight_bit_width=3))
    assert (tree.attribute, tree.value) == ("", "QuantLinear")
    assert [(each.attribute, each.value) for each in tree.needs] == [
        ("weight_quant", "Int8WeightPerChannel(bit_width=3)")
    ]
    assert (tree.find("bit_width").value, tree.find("bit_width").set_by) == ("3", "keyword weight_bit_width")
    assert tree.find("channel_axis").value == "0"


def test_resolved_module():
    layer = qnn.QuantReLU(bit_width=3)
    tree = describe(layer.act_quant)
    assert tree.value == "Uint8Act(bit_width=3) (empty)"
    layer(torch.ones(2))
    assert describe(layer.act_quant).value == "Uint8Act(bit_width=3) (calibrating, 1 of 300 steps)"
    layer.act_quant.scaling.finish_calibration()
    assert describe(layer.act_quant).value == "Uint8Act(bit_width=3)"
    assert tree.find("bit_width").set_by == "keyword bit_width"


def test_model():
    shared = qnn.QuantReLU()
    model = nn.Sequential(nn.ReLU(), nn.Sequential(shared), shared, qnn.QuantIdentity(act_quant=None))
    assert [(each.attribute, each.value) for each in describe(model).needs] == [
        ("1.0.act_quant", "Uint8Act (empty)"),
        ("2.act_quant", "Uint8Act (empty)"),
    ]
    assert str(describe(nn.ReLU())) == "ReLU"


def test_class_without_source():
    scope = {"Base": Base, "__name__": "nowhere"}
    exec("class Made(Base):\n    radius = 4", scope)
    assert describe(scope["Made"]).find("radius").set_by == "Made, nowhere"


def test_setting_of_a_subclass_of_a_derived_one():
    class Small(Base(radius=1)):
        spokes = 2

    assert describe(Small).find("radius").set_by == "keyword radius"
    assert describe(Small).find("spokes").set_by == here("Small", "spokes = 2")


@pytest.mark.parametrize("thing", [3, None, "Int8Act", torch.ones(1), Car])
def test_nothing_to_describe(thing):
    with pytest.raises(TypeError) as error:
        describe(thing)
    assert str(error.value) == (f"describe takes a quantizer class, a layer or a model; found {type(thing).__name__}.")


def test_fragment():
    with pytest.raises(QuantizerError) as error:
        describe(PowerOfTwo)
    assert str(error.value) == (
        "PowerOfTwo: PowerOfTwo has no attribute 'tensor_quant', so it is a fragment, not a quantizer. Build on a "
        "complete one: class PowerOfTwoWeight(PowerOfTwo, Int8WeightPerTensor)."
    )
