"""Layers alike are made from what the first ones were found to hold: each like the first, and none tied to another."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import bitwright.nn as qnn
import bitwright.quantizers as shipped
from bitwright.qcore import IntQuant, LearnedBitWidth, QuantizerError, SettingError
from bitwright.quantizers import Int8Act, Int8WeightPerTensor, Int32Bias, Uint8Act, Uint8ActPerChannel


def layers():
    """A constructor for every shipped quantizer, in the slot that takes it; and some with more than that."""
    made = {}
    for name in shipped.__all__:
        quantizer = getattr(shipped, name)
        for slot, make in (
            (
                "weight",
                lambda quantizer: qnn.QuantConv2d(3, 4, 3, weight_quant=quantizer, input_quant=Int8Act(scale=0.01)),
            ),
            ("bias", lambda quantizer: qnn.QuantLinear(3, 4, bias_quant=quantizer, input_quant=Int8Act(scale=0.01))),
            ("act", lambda quantizer: qnn.QuantReLU(act_quant=quantizer)),
        ):
            try:
                make(quantizer)
            except QuantizerError:
                continue
            made[f"{name} as {slot}"] = lambda make=make, quantizer=quantizer: make(quantizer)
    made["every slot"] = lambda: qnn.QuantLinear(
        3, 4, bias_quant=Int32Bias, input_quant=Int8Act, output_quant=Uint8Act, output_max_value=3.0
    )
    made["a learned bit width"] = lambda: qnn.QuantLinear(3, 4, weight_bit_width=LearnedBitWidth)
    made["given scales"] = lambda: qnn.QuantLinear(3, 4, weight_scale=[0.5, 1.0, 2.0, 4.0], weight_axis=0)
    made["stochastic"] = lambda: qnn.QuantReLU(rounding="stochastic")
    made["no quantizer"] = lambda: qnn.QuantLinear(3, 4, weight_quant=None)
    return made


LAYERS = layers()


def test_there_are_layers():
    assert len(LAYERS) > 30


def held(item, found, seen):
    """Everything that a layer holds, by the path to it."""

    def visit(path, each):
        if isinstance(each, (Tensor, nn.Module, dict, set, list)) or hasattr(each, "__dict__"):
            if id(each) in seen or isinstance(each, (type, torch.Generator)) or (callable(each) and not vars(each)):
                return
            seen.add(id(each))
            found[path] = each
        if isinstance(each, Tensor):
            return
        if isinstance(each, dict):
            inner = list(each.items())
        else:
            inner = list(vars(each).items()) if hasattr(each, "__dict__") and not isinstance(each, type) else []
        for name, value in inner:
            if name not in ("quantizer", "provided", "written"):
                visit(f"{path}.{name}", value)

    visit("", item)
    return found


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.* is clipped:bitwright.qcore.BitwrightWarning")  # a bias of 8 bits
def test_each_is_like_the_first_and_its_own(name):
    torch.manual_seed(0)
    first, *others = (LAYERS[name]() for _ in range(4))
    wanted = held(first, {}, set())
    sources = {each.source for layer in (first, *others) for each in layer.modules() if hasattr(each, "source")}
    assert len(sources) == 4 * sum(hasattr(each, "source") for each in first.modules())
    for other in others:
        assert repr(other) == repr(first)
        found = held(other, {}, set())
        assert found.keys() == wanted.keys()
        for path, each in found.items():
            assert type(each) is type(wanted[path]), path
            if isinstance(each, (Tensor, nn.Module, dict, set, list)):
                assert each is not wanted[path], path
            if isinstance(each, Tensor) and path not in ("._parameters.weight", "._parameters.bias"):
                assert (each.shape, each.dtype, each.requires_grad) == (
                    wanted[path].shape,
                    wanted[path].dtype,
                    wanted[path].requires_grad,
                )
        assert other.state_dict().keys() == first.state_dict().keys()
        other.load_state_dict(first.state_dict())
        x = torch.linspace(-1, 1, 2 * 3 * 25).reshape(2, 3, 5, 5)
        x = x if isinstance(first, (nn.Conv2d, nn.ReLU)) else x.flatten(2).transpose(1, 2)
        expected = copy.deepcopy(first)(x)
        assert name == "stochastic" or torch.equal(other(x), expected)


def test_what_is_done_to_one_does_not_show_in_the_next():
    for _ in range(4):
        layer = qnn.QuantLinear(3, 4, input_quant=Int8Act)
        for quant in (layer.weight_quant, layer.input_quant):
            assert quant.training
            assert not quant._forward_hooks
            assert quant.scaling.int_range.width == 8
        assert layer.input_quant.scaling.steps == 0
        layer(torch.randn(2, 3))
        layer.weight_quant.register_forward_hook(lambda *args: None)
        layer.input_quant.register_forward_hook(lambda *args: None)
        layer.eval()
        layer.weight_quant.scaling.int_range.width = 4
        layer.input_quant.scaling.int_range.width = 4


@pytest.mark.parametrize(("right", "wrong"), [(True, 1), (8, 8.0), (8, True)])
def test_what_is_only_equal_to_something_right_is_still_refused(right, wrong):
    setting = "weight_narrow_range" if right is True else "weight_bit_width"
    for _ in range(3):
        qnn.QuantLinear(5, 4, **{setting: right})
        with pytest.raises(SettingError):
            qnn.QuantLinear(5, 4, **{setting: wrong})


def test_state_is_made_where_and_as_torch_is_told_to():
    for _ in range(3):
        assert qnn.QuantReLU().act_quant.scaling.magnitude_base.device.type == "cpu"
    with torch.device("meta"):
        assert qnn.QuantReLU().act_quant.scaling.magnitude_base.is_meta
    assert qnn.QuantReLU(device="meta").act_quant.scaling.steps.is_meta
    assert qnn.QuantReLU(dtype=torch.float64).act_quant.scaling.magnitude_offset.dtype == torch.float64
    torch.set_default_dtype(torch.float64)
    try:
        assert qnn.QuantReLU().act_quant.scaling.magnitude_offset.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert qnn.QuantReLU().act_quant.scaling.magnitude_offset.dtype == torch.float32


def test_learned_scales_start_from_the_weight_of_their_own_layer():
    for _ in range(4):
        layer = qnn.QuantLinear(3, 4, weight_quant=shipped.Int8WeightPerTensorLearned)
        largest = layer.weight.abs().max().item()
        assert layer.quant_weight().scale.item() == pytest.approx(largest / 127)
        assert layer.weight_quant.scaling.phase == "empty"
        layer(torch.ones(1, 3))
        assert layer.weight_quant.scaling.magnitude == largest


def test_a_shared_module_is_shared_every_time():
    act = qnn.QuantReLU()
    for _ in range(3):
        assert qnn.QuantReLU(act_quant=act.act_quant).act_quant is act.act_quant


class Counting(IntQuant):
    """Its constructor does more than keep what it is given, so it is called for every layer."""

    made = 0

    def __init__(self, int_range, scaling):
        super().__init__(int_range, scaling)
        Counting.made += 1


def test_constructors_of_your_own_are_called_for_every_layer():
    quantizer = Int8WeightPerTensor(tensor_quant=Counting)
    for made in range(1, 5):
        assert type(qnn.QuantLinear(3, 4, weight_quant=quantizer).weight_quant) is Counting
        assert Counting.made == made


def test_those_who_ask_to_be_told_of_registrations_are_told():
    told = []
    handles = [
        torch_module.register_module_module_registration_hook(lambda module, name, each: told.append(name)),
        torch_module.register_module_parameter_registration_hook(lambda module, name, each: told.append(name)),
        torch_module.register_module_buffer_registration_hook(lambda module, name, each: told.append(name)),
    ]
    try:
        for _ in range(3):
            del told[:]
            layer = qnn.QuantReLU(act_quant=Uint8ActPerChannel, channels=3)
            assert {"act_quant", "magnitude_offset", "magnitude_base", "steps"} <= set(told)
            assert layer.act_quant.scaling.magnitude_offset.shape == (3,)
    finally:
        for handle in handles:
            handle.remove()
