"""A layer of a user's own: two weights and three activations, with no code but its slots and its forward."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, integers, run_integers, verify_onnx
from bitwright.nn import QuantLayer, Slot
from bitwright.nn.layer import Family
from bitwright.qcore import QuantizerError, ReadOnlyError, describe
from bitwright.quantizers import Int4WeightPerTensor, Int8Act, Int8WeightPerChannel, Int8WeightPerTensor, Uint8Act


class GatedLinear(QuantLayer):
    """``(up x) * sigmoid(gate x)``."""

    slots = (
        Slot("up", "up_weight", default=Int8WeightPerChannel),
        Slot("up_gate", "gate_weight", default=Int8WeightPerTensor),
        Slot("input", default=Int8Act),
        Slot("hidden", default=Uint8Act),
        Slot("output", default=Int8Act),
    )

    def __init__(self, in_features, out_features, **quantizers):
        super().__init__()
        self.up_weight = nn.Parameter(torch.randn(out_features, in_features))
        self.gate_weight = nn.Parameter(torch.randn(out_features, in_features))
        self.fill_slots(**quantizers)

    def forward(self, x):
        x, _ = self.pass_through("input", x)
        up, gate = (F.linear(x, self.take(name)[0]) for name in ("up", "up_gate"))
        gate, _ = self.pass_through("hidden", torch.sigmoid(gate))
        return self.pass_through("output", up * gate)[0]


def trained(**given):
    torch.manual_seed(0)
    layer = GatedLinear(8, 4, **given)
    with qnn.calibrating(layer):
        layer(torch.randn(64, 8))
    return layer.eval()


def test_slots_are_resolved_with_their_keywords():
    layer = GatedLinear(8, 4, up_gate_bit_width=3, up_bit_width=5, hidden_bit_width=6, output_quant=None)
    assert (layer.up_quant.bit_width, layer.up_gate_quant.bit_width, layer.hidden_quant.bit_width) == (5, 3, 6)
    assert layer.output_quant is None
    assert layer.up_quant(layer.up_weight).unique().numel() <= 4 * 31
    assert [name for name, _ in layer.named_children()] == ["up_quant", "up_gate_quant", "input_quant", "hidden_quant"]


def test_mistakes_are_told():
    with pytest.raises(QuantizerError) as error:
        GatedLinear(8, 4, gate_bit_width=3)
    assert str(error.value) == (
        "GatedLinear: gate_bit_width=3 is for no quantizer of this layer: keywords start with one of up_, up_gate_, "
        "input_, hidden_, output_. Did you mean up_gate_bit_width=3?"
    )
    with pytest.raises(QuantizerError) as error:
        GatedLinear(8, 4, hidden_quant=Int8WeightPerTensor)
    assert str(error.value) == (
        "GatedLinear: Int8WeightPerTensor quantizes weights and can't be hidden_quant. Write hidden_quant=Int8Act, or "
        "say that it quantizes an activation as well: Int8WeightPerTensor(quantizes='activation')."
    )
    with pytest.raises(QuantizerError) as error:
        GatedLinear(8, 4, hidden_quant=None, hidden_bit_width=4)
    assert str(error.value) == (
        "GatedLinear: hidden_bit_width=4 is given, but hidden_quant is None. Write hidden_quant=Int8Act too, or leave "
        "hidden_bit_width out."
    )
    with pytest.raises(ReadOnlyError) as error:
        GatedLinear(8, 4).hidden_bit_width = 4
    assert str(error.value) == (
        "GatedLinear: hidden_bit_width=4 can't be set on a layer that is built. Write layer.hidden_quant = "
        "Uint8Act(bit_width=4)."
    )


def test_it_trains():
    torch.manual_seed(0)
    layer = GatedLinear(8, 4, up_scaling="learned", input_calibration_steps=1, hidden_calibration_steps=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    x, target = torch.randn(64, 8), torch.zeros(64, 4)
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.mse_loss(layer(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert layer.up_quant.scaling.magnitude_offset.grad.abs().sum() > 0


def test_float_checkpoint_sets_scales():
    layer = GatedLinear(8, 4, up_scaling="learned")
    layer(torch.randn(3, 8))
    weights = {"up_weight": torch.full((4, 8), 2.54), "gate_weight": torch.ones(4, 8)}
    assert layer.load_state_dict(weights, strict=True).missing_keys == []
    assert layer.train().take("up")[1].scale.flatten().tolist() == pytest.approx([0.02] * 4)


def test_state_goes_through_files_and_copies():
    layer, x = trained(), torch.randn(5, 8)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = GatedLinear(8, 4).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), expected)


def test_a_quantizer_is_replaced():
    layer = GatedLinear(8, 4)
    layer.up_quant = Int4WeightPerTensor
    assert layer.take("up")[1].bounds == (-7, 7)
    layer.up_quant = None
    assert layer.take("up") == (layer.up_weight, None)


def test_frozen_and_unquantized():
    layer, x = trained(), torch.randn(5, 8)
    expected = layer(x)
    with torch.no_grad(), qnn.frozen(layer):
        assert torch.equal(layer(x), expected)
        layer.up_weight.zero_()
        assert torch.equal(layer(x), expected)
    with qnn.unquantized(layer):
        assert torch.equal(layer(x), F.linear(x, layer.up_weight) * torch.sigmoid(F.linear(x, layer.gate_weight)))


def test_compiled_is_eager():
    layer, x = trained(), torch.randn(5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
def test_it_is_exported(export):
    model, x = nn.Sequential(trained(up_gate_bit_width=4)), torch.randn(32, 8)
    report = verify_onnx(model, export(model, x), x)
    assert report.ok
    assert {row.name for row in report.rows if row.kind == "stored"} == {"0.up_quant", "0.up_gate_quant"}


def test_its_integers():
    model, x = nn.Sequential(trained()), torch.randn(32, 8)
    found = integers(model, x)["0"]
    assert list(found.quantizers) == ["input", "up", "up_gate", "hidden", "output"]
    codes = found.quantizers["up"].codes
    assert (codes.dtype, codes.shape, int(codes.abs().max())) == (torch.int8, (4, 8), 127)
    torch.testing.assert_close(run_integers(model, x).outputs, model(x))


def test_it_is_described():
    layer = GatedLinear(8, 4, up_bit_width=5)
    assert "bit_width" in str(describe(layer.up_quant.quantizer))
    assert repr(layer).splitlines()[:3] == [
        "GatedLinear(",
        "  (up_quant): IntQuant(",
        "    int5 narrow, axis 0, float scale, half_even",
    ]


class TwoLinears(QuantLayer):
    """A layer whose weights are one family of slots."""

    weight_quant = Family()
    slots = (
        Slot("weight_up", "weight_up", family=("weight",), default=Int8WeightPerTensor),
        Slot("weight_down", "weight_down", family=("weight",), default=Int8WeightPerTensor),
        Slot("input", default=Int8Act),
    )

    def __init__(self, **quantizers):
        super().__init__()
        self.weight_up, self.weight_down = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(2, 4))
        self.fill_slots(**quantizers)

    def forward(self, x):
        x, _ = self.pass_through("input", x)
        return F.linear(F.linear(x, self.take("weight_up")[0]), self.take("weight_down")[0])


def widths(layer):
    return {name: quant and quant.bit_width for name, quant in layer.weight_quant.items()}


def test_keywords_of_a_family_reach_its_slots_and_those_of_one_slot_win():
    assert widths(TwoLinears()) == {"weight_up": 8, "weight_down": 8}
    assert widths(TwoLinears(weight_bit_width=4)) == {"weight_up": 4, "weight_down": 4}
    assert widths(TwoLinears(weight_down_bit_width=2, weight_bit_width=4)) == {"weight_up": 4, "weight_down": 2}
    assert widths(TwoLinears(weight_quant=Int4WeightPerTensor)) == {"weight_up": 4, "weight_down": 4}
    given = {"weight_quant": Int4WeightPerTensor, "weight_up_quant": None, "weight_bit_width": 3}
    assert widths(TwoLinears(**given)) == {"weight_up": None, "weight_down": 3}


def test_an_assignment_to_a_family_reaches_its_slots():
    layer = TwoLinears()
    layer.weight_quant = Int4WeightPerTensor
    assert widths(layer) == {"weight_up": 4, "weight_down": 4}
    assert layer.weight_up_quant is not layer.weight_down_quant
    layer.weight_down_quant = None
    assert widths(layer) == {"weight_up": 4, "weight_down": None}
    with pytest.raises(QuantizerError):
        layer.weight_quant = Int8Act
    assert widths(layer) == {"weight_up": 4, "weight_down": None}
    layer.weight_quant = None
    assert widths(layer) == {"weight_up": None, "weight_down": None}


def test_mistakes_with_families_are_told_by_the_keyword_that_was_written():
    for given, message in (
        (
            {"weight_bit_width": 99},
            "TwoLinears: weight_bit_width=99 is not possible: expected a whole number from 2 to 32. Write "
            "weight_bit_width=32.",
        ),
        (
            {"weight_up_bit_width": 99},
            "TwoLinears: weight_up_bit_width=99 is not possible: expected a whole number from 2 to 32. Write "
            "weight_up_bit_width=32.",
        ),
        (
            {"weight_quant": None, "weight_bit_width": 4},
            "TwoLinears: weight_bit_width=4 is given, but weight_quant is None. Write weight_quant=Int8WeightPerTensor "
            "too, or leave weight_bit_width out.",
        ),
        (
            {"weigth_bit_width": 4},
            "TwoLinears: weigth_bit_width=4 is for no quantizer of this layer: keywords start with one of weight_, "
            "input_. Did you mean weight_bit_width=4?",
        ),
    ):
        with pytest.raises(QuantizerError) as error:
            TwoLinears(**given)
        assert str(error.value) == message
    with pytest.raises(ReadOnlyError) as error:
        TwoLinears().weight_bit_width = 4
    assert str(error.value) == (
        "TwoLinears: weight_bit_width=4 can't be set on a layer that is built. Write layer.weight_quant = "
        "Int8WeightPerTensor(bit_width=4)."
    )


def test_a_file_names_each_slot_of_a_family():
    layer, other = TwoLinears(weight_bit_width=4), TwoLinears(weight_bit_width=4)
    assert [key for key in layer.state_dict() if key.endswith("scheme")] == [
        "weight_up_quant.scheme",
        "weight_down_quant.scheme",
        "input_quant.scheme",
    ]
    other.load_state_dict(layer.state_dict())
    layer.load_state_dict({"weight_up": torch.ones(4, 2), "weight_down": torch.ones(2, 4)})
