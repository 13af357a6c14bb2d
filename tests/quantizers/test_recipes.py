"""Methods of the literature, as quantizers in layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq
from bitwright.qcore import Integers, OddIntegers, UnalignedIntegers, describe, resolve
from bitwright.quantizers import (
    Int4ActKL,
    Int4ActLSQ,
    Int4WeightPerChannelHQO,
    Int4WeightPerChannelKL,
    Int4WeightPerChannelLSQ,
    Int4WeightPerChannelLSQPlus,
    Int4WeightPerChannelSAWB,
    Int4WeightPerGroupHQO,
    Int4WeightPerGroupLSQ,
    Int4WeightPerGroupQuantizedScale,
    Int4WeightPerTensorDoReFa,
    Int4WeightPerTensorHQO,
    Int4WeightPerTensorKL,
    Int4WeightPerTensorLSQ,
    Int4WeightPerTensorLSQPlus,
    Int4WeightPerTensorSAWB,
    Int4WeightPerTensorWRPN,
    Int8Act,
    OddInt2WeightPerTensorSAWB,
    ShiftedUint4ActLSQPlus,
    ShiftedUint4WeightPerChannelHQO,
    ShiftedUint4WeightPerGroupHQO,
    ShiftedUint4WeightPerTensorHQO,
    Uint4ActDoReFa,
    Uint4ActKL,
    Uint4ActLSQ,
    Uint4ActPACT,
    Uint4ActWRPN,
    recipes,
)

GROUPS = "groups of 32 along axis 1"
SCHEMES = {
    Int4WeightPerTensorLSQ: "int4, per tensor, float scale",
    Int4WeightPerChannelLSQ: "int4, axis 0, float scale",
    Int4WeightPerGroupLSQ: f"int4, {GROUPS}, float scale",
    Int4WeightPerTensorLSQPlus: "int4, per tensor, float scale",
    Int4WeightPerChannelLSQPlus: "int4, axis 0, float scale",
    Int4WeightPerTensorSAWB: "int4 narrow, per tensor, float scale",
    Int4WeightPerChannelSAWB: "int4 narrow, axis 0, float scale",
    OddInt2WeightPerTensorSAWB: "odd integers of 2 bits, per tensor, float scale",
    Int4WeightPerTensorDoReFa: "odd integers of 4 bits, per tensor, float scale, tanh",
    Int4WeightPerTensorWRPN: "int4 narrow, per tensor, float scale",
    ShiftedUint4WeightPerTensorHQO: "uint4, per tensor, float scale, float zero point",
    ShiftedUint4WeightPerChannelHQO: "uint4, axis 0, float scale, float zero point",
    ShiftedUint4WeightPerGroupHQO: f"uint4, {GROUPS}, float scale, float zero point",
    Int4WeightPerTensorHQO: "int4 narrow, per tensor, float scale",
    Int4WeightPerChannelHQO: "int4 narrow, axis 0, float scale",
    Int4WeightPerGroupHQO: f"int4 narrow, {GROUPS}, float scale",
    Int4WeightPerTensorKL: "int4 narrow, per tensor, float scale",
    Int4WeightPerChannelKL: "int4 narrow, axis 0, float scale",
    Int4WeightPerGroupQuantizedScale: f"int4 narrow, {GROUPS}, two-level (uint8) scale",
    Int4ActLSQ: "int4, per tensor, float scale",
    Uint4ActLSQ: "uint4, per tensor, float scale",
    ShiftedUint4ActLSQPlus: "uint4, per tensor, float scale, zero point",
    Uint4ActPACT: "uint4, per tensor, float scale",
    Uint4ActDoReFa: "uint4, per tensor, float scale",
    Uint4ActWRPN: "uint4, per tensor, float scale",
    Int4ActKL: "int4, per tensor, float scale",
    Uint4ActKL: "uint4, per tensor, float scale",
}
WEIGHTS = [each for each in SCHEMES if "Weight" in each.__name__]
ACTS = [each for each in SCHEMES if "Act" in each.__name__]
every = pytest.mark.parametrize("quantizer", SCHEMES, ids=repr)


def layer(quantizer):
    torch.manual_seed(0)
    if quantizer in WEIGHTS:
        return qnn.QuantLinear(64, 8, weight_quant=quantizer)
    kind = qnn.QuantIdentity if "Int4" in quantizer.__name__ else qnn.QuantReLU
    return nn.Sequential(nn.Linear(64, 8), kind(act_quant=quantizer))


def quant_of(model):
    return model.weight_quant if isinstance(model, qnn.QuantLinear) else model[1].act_quant


def data():
    x = torch.rand(32, 64, generator=torch.Generator().manual_seed(1))
    return x, x[:, :8] * 2 - x[:, 8:16]


def test_all_are_here():
    assert {each.__name__ for each in SCHEMES} == set(recipes.__all__)


@every
def test_scheme(quantizer):
    assert quant_of(layer(quantizer)).scheme() == SCHEMES[quantizer]


@every
def test_training_lowers_the_loss(quantizer):
    model = layer(quantizer)
    x, target = data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = (model(x) - target).square().mean() + 1e-4 * qnn.range_penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@every
def test_values_are_levels_and_copies_are_equal(quantizer):
    model, (x, _) = layer(quantizer), data()
    model(x)
    model.eval()
    quant = quant_of(model)
    values, grid = quant.quantize(model.weight if isinstance(model, qnn.QuantLinear) else model[0](x))
    assert torch.allclose(grid.from_int(grid.to_int(values)), values, atol=1e-6)
    loaded = layer(quantizer)
    loaded.load_state_dict(model.state_dict())
    for each in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded.eval()):
        assert torch.equal(each(x), model(x))


@pytest.mark.parametrize(
    ("quantizer", "attribute", "value", "set_by"),
    [
        (Int4WeightPerChannelLSQ, "scale_gradient", "'lsq'", "Int4WeightPerTensorLSQ"),
        (Int4WeightPerTensorLSQPlus, "statistic", "'lsq_plus'", "Int4WeightPerTensorLSQPlus"),
        (Uint4ActPACT, "clip_first", "True", "Uint4ActPACT"),
        (OddInt2WeightPerTensorSAWB, "statistic", "'sawb'", "OddInt2WeightPerTensorSAWB"),
        (Int4WeightPerTensorDoReFa, "transform", "'tanh'", "Int4WeightPerTensorDoReFa"),
        (ShiftedUint4WeightPerGroupHQO, "zero_point", "'hqo'", "ShiftedUint4WeightPerGroupHQO"),
        (Int4WeightPerGroupQuantizedScale, "restriction", "'two_level'", "Int4WeightPerGroupQuantizedScale"),
    ],
    ids=repr,
)
def test_description(quantizer, attribute, value, set_by):
    found = describe(quantizer).find(attribute)
    assert found.value == value
    assert found.set_by.startswith(f"{set_by}, ")


def test_formats():
    assert quant_of(layer(OddInt2WeightPerTensorSAWB)).number_format == OddIntegers(2)
    assert quant_of(layer(Int4WeightPerTensorDoReFa)).number_format == OddIntegers(4)
    assert layer(ShiftedUint4WeightPerTensorHQO).quant_weight().grid.number_format == UnalignedIntegers(4)


@pytest.mark.parametrize(
    ("quantizer", "x", "expected"),
    [
        (Uint4ActDoReFa, [-1.0, 0.41, 2.0], [0, 6 / 15, 1]),
        (Uint4ActDoReFa(bit_width=2), [0.4, 0.6], [1 / 3, 2 / 3]),
        (Uint4ActWRPN, [0.51, 0.97], [8 / 15, 1]),
        (Uint4ActPACT(max_value=3.0), [0.29, 9.0], [0.2, 3]),
    ],
)
def test_activations_by_hand(quantizer, x, expected):
    found = qnn.QuantReLU(act_quant=quantizer)(torch.tensor(x))
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_by_hand():
    """LSQ of 3, -1, 1, 1: a step of 3 / sqrt(7); SAWB's level 2.3080 of them: thirds of it, and it; WRPN's sevenths."""
    weight = torch.tensor([[3.0, -1.0, 1.0, 1.0]])

    def found(quantizer):
        return resolve(quantizer, {"channel_axis": 0, "channels": 1, "shape": (1, 4)})(weight).reshape(-1).tolist()

    step = 3 / 7**0.5
    assert found(Int4WeightPerTensorLSQ) == pytest.approx([3 * step, -step, step, step])
    level = 3.12 * 3**0.5 - 2.064 * 1.5
    assert found(OddInt2WeightPerTensorSAWB) == pytest.approx([level, -level / 3, level / 3, level / 3])
    assert found(Int4WeightPerTensorWRPN) == pytest.approx([1, -1, 1, 1])


def test_lsq_plus_learns_scale_and_offset():
    act = qnn.QuantIdentity(act_quant=ShiftedUint4ActLSQPlus)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)) - 0.3
    act(x)
    (act(x) * x).sum().backward()
    scaling = act.act_quant.scaling
    assert scaling.magnitude_offset.grad.item() != 0
    assert scaling.low_offset.grad.item() != 0
    plain = qnn.QuantIdentity(act_quant=ShiftedUint4ActLSQPlus(scale_gradient=None))
    (plain(x) * x).sum().backward()
    low = plain.act_quant.scaling.low_offset.grad.item()
    assert scaling.low_offset.grad.item() == pytest.approx(low / (16 * 15) ** 0.5, rel=1e-4)


def test_scales_of_8_bits():
    torch.manual_seed(0)
    layer = qnn.QuantLinear(128, 4, weight_quant=Int4WeightPerGroupQuantizedScale)
    with torch.no_grad():
        layer.weight[0, :32] = 0  # gets the smallest scale
        layer.weight[1, :32] *= 0.1
    scale = layer.quant_weight().scale
    steps = scale / scale.max() * 255
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    assert steps.round()[0, 0] == 1
    scales = layer.quant_weight().grid.scales
    assert scales.number_format == Integers(8, signed=False)
    assert torch.equal(scales.from_int(scales.to_int(scale)), scale)
    with torch.no_grad():
        layer.weight.zero_()
    assert layer.quant_weight().value.tolist() == torch.zeros(4, 128).tolist()


def test_scales_of_8_bits_can_be_learned():
    torch.manual_seed(0)
    quantizer = Int4WeightPerGroupQuantizedScale(scaling="learned")
    layer = qnn.QuantLinear(64, 2, weight_quant=quantizer)
    layer(torch.randn(3, 64)).square().sum().backward()
    assert (layer.weight_quant.scaling.magnitude_offset.grad != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer", [Int4WeightPerTensorLSQ, Int4WeightPerTensorSAWB, Int4WeightPerChannelKL, Uint4ActPACT], ids=repr
)
def test_exports(quantizer):
    """Nothing of it is left in a file: integers, a scale, and no difference."""
    weights = {"weight_quant": quantizer} if quantizer in WEIGHTS else {}
    acts = {"act_quant": quantizer} if quantizer in ACTS else {"act_quant": Uint4ActPACT}
    model = nn.Sequential(qnn.QuantLinear(64, 8, input_quant=Int8Act(scale=0.1), **weights), qnn.QuantReLU(**acts))
    model(torch.randn(4, 64))
    export_onnx_qdq(model.eval(), torch.randn(4, 64))
