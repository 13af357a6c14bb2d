"""explain: what is quantized, by which rule, what stayed float, and what it costs."""

import copy
import json
import math
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import W8A8, quantize
from bitwright.graph.errors import GraphError
from bitwright.graph.explaining.reasons import explain
from bitwright.quantizers import Fp8e5m2Grad, Int8Act, Int8WeightPerChannel, Int32Bias


class Block(nn.Module):
    """A convolution, a join, a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.head = nn.Linear(3, 5)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)) + x)
        return self.head(x.mean((2, 3)))


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def block():
    torch.manual_seed(0)
    return Block().eval()


def calibrated(model):
    with qnn.calibrating(model):
        model(X)
    return model


def by_hand():
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantLinear(8, 8, weight_quant=Int8WeightPerChannel, weight_bit_width=4, bias_quant=None),
        qnn.QuantReLU(scale=0.0625),
        nn.Linear(8, 2),
    ).eval()


# Rules


def test_rules_and_reasons():
    q = quantize(block(), {nn.Conv2d: W8A8, "*": {"weight_bit_width": 4}, "head": None})
    found = explain(q)
    weight, given = found["conv"].quantizers
    assert (weight.slot, weight.quantizer, weight.scheme) == (
        "weight",
        "Int8WeightPerChannel(bit_width=4)",
        "int4 narrow, axis 0",
    )
    assert weight.why == ("nn.Conv2d", '"*"')
    assert (given.slot, given.why) == ("input", ("nn.Conv2d",))
    assert (found["head"].layer, found["head"].quantized, found["head"].float_reason) == (
        "Linear",
        False,
        'by the rule "head"',
    )
    assert found["norm"].float_reason
    assert [each.path for each in found] == ["conv", "norm", "act", "head"]


def test_functions_are_layers():
    q = quantize(block(), {nn.Conv2d: W8A8, torch.add: {"input_quant": Int8Act}}, examples=(X,))
    add = explain(q)["add"]
    assert add.layer == "QuantFunction(operator.add)"  # what the model calls; the rule says torch.add
    assert [each.slot for each in add.quantizers] == ["input_1", "input_2"]
    assert add.quantizers[0].why == ("torch.add",)


def test_functions_that_stay_float_stand_with_their_owner():
    model = nn.Sequential(block(), nn.Linear(5, 5))
    rules = {nn.Conv2d: W8A8, torch.add: {"input_quant": Int8Act}, "0.add": None}
    found = explain(quantize(model, [*rules.items(), (nn.Linear, W8A8)], examples=(X,)))
    paths = [each.path for each in found]
    assert found["0.add"].float_reason == 'by the rule "0.add"'
    assert paths.index("0.add") < paths.index("1")
    assert paths.index("0.conv") < paths.index("0.add")


def test_quantizers_that_were_exchanged_are_no_longer_the_rules():
    q = quantize(block(), {nn.Conv2d: W8A8})
    q.conv.weight_quant = Int8WeightPerChannel(bit_width=3)
    weight, given = explain(q)["conv"].quantizers
    assert (weight.quantizer, weight.why) == ("Int8WeightPerChannel(bit_width=3)", ())
    assert given.why == ("nn.Conv2d",)


def test_models_written_by_hand_know_no_rules():
    found = explain(by_hand())
    assert [each.why for layer in found for each in layer.quantizers] == [(), ()]
    assert found["2"].float_reason == "no quantizers"


def test_shared_quantizers_are_named():
    first = qnn.QuantIdentity(act_quant=Int8Act)
    model = nn.Sequential(first, qnn.QuantIdentity(act_quant=first.act_quant))
    assert [each.quantizers[0].shared_with for each in explain(model)] == ["", "0.act_quant"]
    assert explain(model)["1"].quantizers[0].text == "Int8Act: int8, per tensor (empty), shared with 0.act_quant"


def test_a_model_that_is_one_layer():
    found = explain(qnn.QuantLinear(2, 2), torch.ones(3, 2))
    assert [each.path for each in found] == [""]
    assert str(found).splitlines()[2].startswith("the model  QuantLinear  weight  Int8WeightPerTensor: int8 narrow, ")


def test_a_layer_without_quantizers_stays_float():
    assert explain(qnn.QuantLinear(2, 2, weight_quant=None))[""].float_reason == "no quantizers"


# What it costs


def test_noise_of_a_layer_by_itself_and_so_far():
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act, scale=0.5), nn.Flatten(), qnn.QuantIdentity(act_quant=Int8Act, scale=1.0)
    )
    x = torch.tensor([[1.25, 2.0]])  # 1, 2 by the first; 1, 2 by the second, of 1.25 as of 1
    found = explain(model, x)
    power = 1.25**2 + 2**2
    assert found["0"].sqnr == found["0"].sqnr_so_far == pytest.approx(10 * math.log10(power / 0.25**2))
    assert found["2"].sqnr == found["2"].sqnr_so_far == found.sqnr == found["0"].sqnr
    x = torch.tensor([[0.75, 2.0]])  # 1, 2 by the first (half to even); 1, 2 by the second
    model[0] = qnn.QuantIdentity(act_quant=Int8Act, scale=0.125)
    found = explain(model, x)
    assert found["0"].sqnr == math.inf
    assert found["2"].sqnr == pytest.approx(10 * math.log10((0.75**2 + 2**2) / 0.25**2))


def test_noise_adds_up():
    model = by_hand()
    found = explain(model, torch.randn(64, 8))
    assert found["1"].sqnr > found["1"].sqnr_so_far
    assert found["0"].sqnr == pytest.approx(found["0"].sqnr_so_far)
    assert [each.path for each in found.worst] == ["0", "1"]
    assert found["2"].sqnr is None


def test_batches_are_pooled():
    model, x = by_hand(), torch.randn(64, 8)
    whole, parts = explain(model, x), explain(model, list(x.split(10)))
    for path in ("0", "1"):
        assert whole[path].sqnr == pytest.approx(parts[path].sqnr, rel=1e-4)
        assert [each.dead for each in whole[path].quantizers] == [each.dead for each in parts[path].quantizers]
        assert [each.clipped for each in whole[path].quantizers] == [each.clipped for each in parts[path].quantizers]


def test_clipped_values_and_dead_levels():
    model = nn.Sequential(qnn.QuantReLU(scale=0.5, bit_width=3))
    (act,) = explain(model, torch.tensor([[-1.0, 0.0, 0.4, 1.0, 3.5, 3.8, 9.0, 0.0]]))["0"].quantizers
    # 0 0 1 2 7 8 18 0: two of eight are above 7, and nothing falls on 3 4 5 6
    assert (act.clipped, act.levels, act.dead) == (0.25, 8, 4)


def test_levels_of_wide_biases_are_not_counted():
    model = qnn.QuantLinear(2, 2, input_quant=Int8Act, input_scale=0.5, bias_quant=Int32Bias)
    bias = explain(model, torch.ones(1, 2))[""].quantizers[1]
    assert (bias.slot, bias.clipped, bias.levels, bias.dead) == ("bias", 0.0, None, None)


def test_functions_and_what_works_in_place():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = qnn.QuantLinear(8, 8, weight_bit_width=4)
            self.add = qnn.QuantFunction(torch.Tensor.add_, input_quant=Int8Act, input_scale=0.25)
            self.act = qnn.QuantReLU(inplace=True, scale=0.125)

        def forward(self, x):
            return self.act(self.add(self.fc(x), x))

    torch.manual_seed(0)
    model, x = Adds().eval(), torch.randn(32, 8)
    found = explain(model, x)
    with torch.no_grad(), qnn.unquantized(model):
        inner = model.fc(x)
        floats = inner + x
    with torch.no_grad():
        alone = model.add(inner.clone(), x)
    expected = 10 * math.log10(floats.square().sum() / (floats - alone).square().sum())
    assert found["add"].sqnr == pytest.approx(expected, abs=1e-3)
    assert found["act"].sqnr > found["act"].sqnr_so_far
    assert found["fc"].sqnr == pytest.approx(found["fc"].sqnr_so_far)


def test_a_layer_that_is_called_twice_counts_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.round = qnn.QuantIdentity(act_quant=Int8Act, scale=1.0)

        def forward(self, x):
            return self.round(x), self.round(2 * x)

    found = explain(Twice(), torch.tensor([1.25]))
    expected = 10 * math.log10((1.25**2 + 2.5**2) / (0.25**2 + 0.5**2))
    assert found["round"].sqnr == found["round"].sqnr_so_far == pytest.approx(expected)
    assert found.sqnr == pytest.approx(expected)


def test_a_layer_that_was_not_called_has_no_figures():
    class Never(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.other = qnn.QuantLinear(2, 2), qnn.QuantLinear(2, 2)

        def forward(self, x):
            return self.fc(x)

    layer = explain(Never(), torch.ones(1, 2))["other"]
    assert (layer.sqnr, layer.sqnr_so_far, layer.quantizers[0].clipped) == (None, None, None)


def test_grids_that_come_with_the_input():
    """Alone, a layer gets a plain tensor, and its bias on the grid of the products stays as it is."""
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act, scale=0.125, return_quant_tensor=True),
        qnn.QuantLinear(4, 4, bias_quant=Int32Bias, return_quant_tensor=True),
    ).eval()
    found = explain(model, torch.randn(32, 4))
    assert found["1"].sqnr > found["1"].sqnr_so_far
    assert isinstance(model(torch.randn(1, 4)), torch.Tensor)


def test_against_the_float_model():
    model = by_hand()
    reference = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    reference.load_state_dict({key: each for key, each in model.state_dict().items() if "quant" not in key})
    x = torch.randn(64, 8)
    same, other = explain(model, x), explain(model, x, reference)
    assert same.to_dict() == other.to_dict()
    with torch.no_grad():
        model[0].bias.add_(1.0)
    moved = explain(model, x, reference)
    assert explain(model, x)["0"].sqnr > same["0"].sqnr - 1
    assert moved["0"].sqnr < same["0"].sqnr - 3
    assert moved["1"].sqnr == pytest.approx(same["1"].sqnr)


def test_labels_are_left_out():
    x = torch.randn(8, 8)
    assert explain(by_hand(), [(x, torch.zeros(8))]).to_dict() == explain(by_hand(), x).to_dict()


def test_the_model_is_as_it_was():
    q = calibrated(quantize(block(), {nn.Conv2d: {**W8A8, "bias_quant": Int32Bias}})).train()
    q(X)
    before, codes = copy.deepcopy(q.state_dict()), q.conv.int_bias()
    found = explain(q, X)
    assert found.sqnr > 20
    assert all(torch.equal(each, before[key]) for key, each in q.state_dict().items())
    assert torch.equal(q.conv.int_bias(), codes)
    assert all(each.training for each in q.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in q.children())
    assert all(each.intercept is None for each in qnn.quantizers_of(q).values())


def test_a_forward_that_fails_leaves_the_model_as_it_was():
    q = by_hand().train()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        explain(q, [torch.ones(2, 8), torch.ones(2, 3)])
    assert all(each.training for each in q.modules())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in q.children())
    assert all(each.intercept is None for each in qnn.quantizers_of(q).values())


def test_it_is_data():
    found = json.loads(json.dumps(explain(by_hand(), torch.randn(16, 8)).to_dict()))
    assert sorted(found) == ["layers", "model", "sqnr"]
    assert found["sqnr"] > 5
    assert [each["path"] for each in found["layers"]] == ["0", "1", "2"]
    assert found["layers"][0]["quantizers"][0]["quantizer"] == "Int8WeightPerChannel(bit_width=4)"


# Messages


def fails(message, *args):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        explain(*args)


def test_no_model():
    fails("explain: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).", 3)
    fails("explain: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).", by_hand(), X, 3)


def test_nothing_to_explain():
    fails("explain: this ReLU has no layers with parameters or quantizers.", nn.ReLU())


def test_no_data():
    fails("explain: data holds no batch. Pass a tensor, or a list or loader of batches.", by_hand(), [])
    fails("explain: data=5 is no batch. Pass a tensor, or a list or loader of batches.", by_hand(), 5)


def test_another_reference():
    fails(
        "explain: the reference has no layer 0, nor any other that is quantized. Pass the float model that this one "
        "was made from, with the same paths.",
        by_hand(),
        torch.ones(1, 8),
        nn.Linear(8, 2),
    )


def test_quantizers_of_gradients():
    layer = qnn.QuantLinear(4, 2, grad_quant=Fp8e5m2Grad)
    other = qnn.QuantLinear(4, 2, grad_quant=layer.grad_quant)
    rows = explain(nn.Sequential(layer, other)).layers
    assert [(each.slot, each.quantizer, each.shared_with) for each in rows[0].quantizers] == [
        ("weight", "Int8WeightPerTensor", ""),
        ("grad", "Fp8e5m2Grad", ""),
    ]
    assert rows[1].quantizers[-1].shared_with == "0.grad_quant"
