"""Brevitas' example models, ported by hand: their codes are those that Brevitas gave."""

import pytest
import torch

import bitwright.nn as qnn
from bitwright.nn import quantizers_of
from tests.graph.porting.comparing import GOLDEN, Golden, compared
from tests.graph.porting.models import PORTED
from tests.graph.porting.models.signs import BinaryAct

CODES = {  # of every quantizer, for one input
    "layers": 1682,
    "quantizers": 2092,
    "tfc_1w1a": 3496,
    "tfc_1w2a": 3496,
    "tfc_2w2a": 3496,
    "cnv_1w1a": 28536,
    "cnv_1w2a": 28536,
    "cnv_2w2a": 28536,
    "espcn_w4a4": 74752,
    "espcn_w8a8": 74752,
    "resnet18_4w4a": 282786,
    "mobilenet_v1_4b": 8438,
    "quartznet_4b": 11864,
    "melgan_8b": 62166,
}


@pytest.mark.parametrize("name", PORTED)
def test_no_code_differs(name):
    found, report = compared(PORTED[name](full=False), GOLDEN / f"{name}.npz")
    assert (found.codes, found.different) == (CODES[name], {})
    assert found.beyond == ({"identity.act_quant"} if name == "layers" else set())  # upsampling, on its grid
    assert found.ties <= found.codes / 10_000  # sums of floats differ in their last bits from one CPU to another
    assert found.scales <= 2**-21  # Brevitas takes the logarithm of the number of steps, too
    assert found.output <= 1e-5 * abs(Golden(GOLDEN / f"{name}.npz").arrays["output"]).max()
    assert len(report) >= len([place for place in found.compared if not place.endswith("trunc_quant")])


def test_comparison_finds_what_differs():
    model = PORTED["cnv_2w2a"](full=False)
    model.conv_features[4] = qnn.QuantConv2d(8, 8, 3, bias=False, weight_bit_width=2)  # a scale that follows the weight
    found, _ = compared(model, GOLDEN / "cnv_2w2a.npz")
    assert [*found.different] == ["conv_features.4.weight_quant", "conv_features.6.act_quant"]
    assert found.different["conv_features.4.weight_quant"] == 8 * 8 * 3 * 3


@pytest.mark.parametrize("name", ["mobilenet_v1_4b", "quantizers"])
def test_loaded_models_save_and_load_as_their_own(name):
    model, again = PORTED[name](full=False), PORTED[name](full=False)
    compared(model, GOLDEN / f"{name}.npz")
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.from_numpy(Golden(GOLDEN / f"{name}.npz").arrays["input"])
    with torch.no_grad():
        assert torch.equal(model.eval()(x), again.eval()(x))


def test_ranges_are_not_measured_over():
    model = PORTED["mobilenet_v1_4b"](full=False)
    compared(model, GOLDEN / "mobilenet_v1_4b.npz")
    quantizers = quantizers_of(model).values()
    assert not any(each.calibrating for each in quantizers)
    assert all(each.calibrated for each in quantizers)


def test_signs_have_the_gradient_of_what_is_not_clipped():
    x = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], requires_grad=True)
    out = qnn.QuantIdentity(act_quant=BinaryAct)(x)
    out.sum().backward()
    assert out.tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
