"""What holds for the slots of every layer: what fits, what is refused, and what the layer says of it."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph.layers.class_change import change_class
from bitwright.graph.layers.table import compositions, quantized_layers
from bitwright.nn import quantizers_of
from bitwright.qcore import QuantizerError, TensorQuant, describe
from bitwright.qcore.errors import ReadOnlyError
from tests.conformance.examples import (
    FITTING,
    LAYERS,
    ON_INTEGERS,
    USUAL,
    class_of_torch,
    example_of,
    filling,
    floats,
    full,
    inputs_of,
    made,
    same,
    values,
    warm,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")

SLOTS = {f"{name}, {slot.name}": (layer, slot) for name, layer in LAYERS.items() for slot in layer.slots}
STANDING = {name: each for name, each in LAYERS.items() if class_of_torch(each) is not None}


def said_whole(message, layer):
    """A message names the layer, and ends as a sentence."""
    assert message.startswith(layer.__name__) or re.match(r"[\w.]+: ", message), message
    assert message.endswith((".", "?")), message


@pytest.mark.parametrize(  # transformer layers hand what they are given to the layers in them
    "name", [pytest.param(each, marks=[pytest.mark.slow] if "Transformer" in each else []) for each in SLOTS]
)
def test_a_slot_takes_every_fitting_quantizer_or_says_why_not(name):
    layer, slot = SLOTS[name]
    taken = 0
    for quantizer in FITTING[slot.role].values():
        others = {} if slot.role != "bias" else {**full(layer), "output_quant": None}
        others = {key: each for key, each in others.items() if key in full(layer)}
        try:
            module = made(layer, **{**others, f"{slot.name}_quant": quantizer})
            with torch.no_grad():
                for each in module.parameters():
                    each.abs_()  # unsigned quantizers are for what is never negative
            outs = warm(module).eval()(*inputs_of(layer))
        except QuantizerError as error:
            said_whole(str(error), layer)
            continue
        taken += 1
        assert not any(torch.isnan(each).any() for each in values(outs)), quantizer
        found = getattr(module, f"{slot.name}_quant")
        for each in found.values() if isinstance(found, dict) else [found]:
            assert isinstance(each, TensorQuant)
            assert each.quantizer == quantizer
    assert taken > 0


@pytest.mark.parametrize("name", SLOTS)
def test_a_slot_refuses_what_is_made_for_another(name):
    layer, slot = SLOTS[name]
    for role, quantizer in USUAL.items():
        if role != slot.role:
            with pytest.raises(QuantizerError, match=rf"{quantizer.__name__}.* can't be \w+_quant") as caught:
                made(layer, **{f"{slot.name}_quant": quantizer})
            said_whole(str(caught.value), layer)
    with pytest.raises(QuantizerError, match=r"\w+_quant=3 is not a quantizer"):
        made(layer, **{f"{slot.name}_quant": 3})


@pytest.mark.parametrize("name", SLOTS)
def test_settings_by_keyword(name):
    layer, slot = SLOTS[name]
    module = made(layer, **{**filling(layer, slot), f"{slot.keywords}bit_width": 5})
    found = getattr(module, f"{slot.name}_quant")
    assert {each.bit_width for each in (found.values() if isinstance(found, dict) else [found])} == {5}


@pytest.mark.parametrize("name", SLOTS)
def test_a_mistyped_keyword_is_answered_with_the_right_one(name):
    layer, slot = SLOTS[name]
    right = f"{slot.keywords}bit_width"
    at = next(i for i in range(1, len(right)) if right[i] != right[i + 1])
    swapped = right[:at] + right[at + 1] + right[at] + right[at + 2 :]
    bare = any(each.prefix == "" for each in layer.slots)  # what has no prefix is a setting of that slot
    for wrong in (right.replace("width", "widht"), *([] if bare else [swapped])):
        with pytest.raises(QuantizerError, match=rf"Did you mean {right}(=4)?\?") as caught:
            made(layer, **{**filling(layer, slot), wrong: 4})
        said_whole(str(caught.value), layer)


@pytest.mark.parametrize("name", SLOTS)
def test_a_setting_is_no_attribute_to_be_set(name):
    layer, slot = SLOTS[name]
    module = made(layer, **filling(layer, slot))
    setting = f"{slot.keywords}bit_width"
    if isinstance(getattr(layer, setting, None), property):  # what sums of products need
        with pytest.raises(AttributeError, match=f"property '{setting}' .* has no setter"):
            setattr(module, setting, 2)
        return
    with pytest.raises(
        ReadOnlyError, match=r"can't be set on a layer that is built. Write layer\.\w+_quant = "
    ) as caught:
        setattr(module, setting, 2)
    assert f"{setting}=2" in str(caught.value)


@pytest.mark.parametrize("name", SLOTS)
def test_a_quantizer_is_set_and_taken_away(name):
    layer, slot = SLOTS[name]
    module, attribute = made(layer, **floats(layer)), f"{slot.name}_quant"
    expected = module(*inputs_of(layer))
    if slot.role != "bias":
        setattr(module, attribute, USUAL[slot.role](bit_width=3))
        found = getattr(module, attribute)
        assert {each.bit_width for each in (found.values() if isinstance(found, dict) else [found])} == {3}
        assert quantizers_of(module) or slot.backward
    setattr(module, attribute, None)
    assert not quantizers_of(module)
    same(module(*inputs_of(layer)), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_settings_of_an_empty_slot_are_refused(name):
    layer = LAYERS[name]
    for slot in layer.slots:
        with pytest.raises(
            QuantizerError, match=re.escape(f"{slot.keywords}bit_width=4 is given, but {slot.name}_quant")
        ):
            made(layer, **floats(layer), **{f"{slot.keywords}bit_width": 4})


@pytest.mark.parametrize("name", LAYERS)
def test_repr_and_describe(name):
    layer = LAYERS[name]
    for keywords in ({}, floats(layer), full(layer)):
        assert repr(made(layer, **keywords)).startswith(name)
    tree = describe(made(layer, **full(layer)))
    assert tree.to_dict()["needs"]
    assert tree.find("bit_width").value in ("8", "32")


@pytest.mark.parametrize("name", LAYERS)
def test_the_meta_device(name):
    for keywords in ({}, full(LAYERS[name])):
        with torch.device("meta"):
            module = made(LAYERS[name], **keywords)
        assert {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]} <= {"meta"}
        assert repr(module) == repr(made(LAYERS[name], **keywords))
        assert list(module.state_dict()) == list(made(LAYERS[name], **keywords).state_dict())


# A layer of torch that changes its class


@pytest.mark.parametrize("kind", ["usual", "full", "float"])
@pytest.mark.parametrize("name", STANDING)
def test_a_class_change_is_a_construction(name, kind):
    layer, torchs = STANDING[name], class_of_torch(STANDING[name])
    keywords = {"usual": {}, "full": full(layer), "float": floats(layer)}[kind]
    assert torchs is not None
    torch.manual_seed(0)
    before = torchs(*example_of(layer).arguments, **example_of(layer).keywords)
    held = dict(before.named_parameters())
    changed = change_class(before, layer, keywords)
    built = made(layer, **keywords)
    assert changed is before
    assert type(changed) is layer
    assert isinstance(changed, qnn.QuantLayer)
    assert all(each is held[path] for path, each in changed.named_parameters() if path in held)
    assert repr(changed) == repr(built)
    assert list(changed.state_dict()) == list(built.state_dict())
    assert {path: each.quantizer for path, each in quantizers_of(changed).items()} == {
        path: each.quantizer for path, each in quantizers_of(built).items()
    }
    for module in (changed, built):
        warm(module).eval()
    same(changed(*inputs_of(layer)), built(*inputs_of(layer)))


@pytest.mark.parametrize("name", STANDING)
def test_rules_know_the_layer(name):
    torchs = class_of_torch(STANDING[name])
    assert torchs is not None
    assert issubclass(torchs, nn.Module)
    known = {**quantized_layers(), **compositions()}
    assert (known[torchs] is STANDING[name]) == (name not in ON_INTEGERS)  # those are named by rules
