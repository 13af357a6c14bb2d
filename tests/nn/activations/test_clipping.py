"""Functions that clip, and a range that is learned."""

import pytest
import torch
import torch.nn.functional as F

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, ShiftedUint8Act

LAYERS = {
    "relu6": (qnn.QuantReLU6, F.relu6),
    "hard tanh": (lambda **kwargs: qnn.QuantHardTanh(-0.5, 2.0, **kwargs), lambda x: F.hardtanh(x, -0.5, 2.0)),
}


def gradient(layer, x):
    """The gradients for the magnitude and for x of the sum of the outputs."""
    leaf = x.clone().requires_grad_()
    layer(leaf * 1).sum().backward()
    return layer.act_quant.scaling.magnitude_offset.grad.tolist(), leaf.grad.tolist()


@pytest.mark.parametrize("inplace", [False, True])
def test_values_that_the_function_clips_teach_the_range(inplace):
    learned = {"scaling": "learned", "bit_width": 8}
    tanh = qnn.QuantHardTanh(-1.0, 1.0, inplace, max_value=1.0, **learned)
    assert gradient(tanh, torch.full((3,), -2.0)) == ([-3.0], [0.0, 0.0, 0.0])
    assert gradient(qnn.QuantIdentity(max_value=1.0, **learned), torch.full((3,), -2.0))[0] == [-3.0]
    tanh = qnn.QuantHardTanh(-1.0, 1.0, inplace, max_value=1.0, **learned)
    assert gradient(tanh, torch.tensor([9.0, 9.0])) == ([2 * 127 / 128], [0.0, 0.0])
    six = qnn.QuantReLU6(inplace, max_value=6.0, **learned)
    assert gradient(six, torch.tensor([9.0, 7.0, 6.5, -1.0])) == ([pytest.approx(3.0)], [0.0] * 4)


def test_a_range_beyond_the_functions_is_taught_by_roundings_alone():
    tanh = qnn.QuantHardTanh(-1.0, 1.0, scaling="learned", max_value=2.0, bit_width=8)
    x = torch.tensor([-2.0, 9.0])
    assert tanh(x).tolist() == [-1.0, 1.0]
    assert gradient(tanh, x) == ([0.0], [0.0, 0.0])  # a larger range would change nothing


def test_each_end_counts_for_itself():
    layer = qnn.QuantHardTanh(-0.5, 1.0, scaling="learned", max_value=1.0, bit_width=8)
    assert layer(torch.tensor([-9.0, 9.0])).tolist() == [-0.5, 127 / 128]
    assert gradient(layer, torch.tensor([-9.0, -9.0])) == ([0.0], [0.0, 0.0])
    layer.act_quant.scaling.magnitude_offset.grad = None
    assert gradient(layer, torch.tensor([9.0])) == ([127 / 128], [0.0])


@pytest.mark.parametrize("settings", [{}, {"axis": 1}, {"act_quant": ShiftedUint8Act}, {"restriction": "power_of_two"}])
@pytest.mark.parametrize("kind", ["hard tanh", "relu6"])
@pytest.mark.parametrize("reach", [0.1, 0.5, 1.0, 3.0])
def test_a_learned_range_changes_no_result(kind, settings, reach):
    torch.manual_seed(0)
    layer = (
        LAYERS[kind][0](act_quant=Int8Act, calibration_steps=1)
        if not settings
        else LAYERS[kind][0](calibration_steps=1, **settings)
    )
    layer(torch.randn(8, 3, 4) * reach)
    assert not layer.act_quant.calibrating
    x = torch.randn(8, 3, 4) * 4
    x[0, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    learning = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(learning, layer(x), rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(learning, layer.act_quant(LAYERS[kind][1](x)), rtol=0, atol=0, equal_nan=True)


def test_the_range_is_measured_from_what_the_function_gives():
    layer = qnn.QuantHardTanh(statistic="abs_max", calibration_steps=2)
    for _ in range(2):
        layer(torch.tensor([-7.0, 0.5]))
    assert layer.act_quant.scaling.magnitude.item() == 1.0
    assert layer(torch.tensor([-7.0])).tolist() == [-1.0]
