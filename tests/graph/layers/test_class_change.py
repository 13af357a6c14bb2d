"""Layers that change their class."""

import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.errors import GraphError
from bitwright.graph.layers.class_change import change_class, device_and_dtype
from bitwright.graph.layers.table import has_weights, keywords_of_layers, quantized_layers, slot_of
from bitwright.quantizers import Int4WeightPerTensor, Int8Act, Int8WeightPerTensor


class QuantBilinear(qnn.QuantLayer, nn.Bilinear):
    """A layer that the library does not have, with slots of its own."""

    slots = (
        qnn.Slot("weight", "weight", default=Int8WeightPerTensor),
        qnn.Slot("input"),
    )

    def forward(self, one, other):  # type: ignore[override]
        return F.bilinear(self.pass_through("input", one)[0], other, self.take("weight")[0], self.bias)


class QuantAttention(qnn.QuantLayer, nn.MultiheadAttention):
    slots = (qnn.Slot("weight", "in_proj_weight", default=Int8WeightPerTensor),)


def test_the_same_object_with_quantizers_besides():
    layer = nn.Conv2d(3, 4, 3)
    weight, bias, state = layer.weight, layer.bias, list(layer.state_dict())
    handle = layer.register_forward_hook(lambda *_: None)
    changed = change_class(layer, qnn.QuantConv2d, {"input_quant": Int8Act})
    assert changed is layer
    assert changed.weight is weight
    assert changed.bias is bias
    assert [key for key in changed.state_dict() if "_quant." not in key] == state
    assert handle.id in changed._forward_hooks


@pytest.mark.parametrize("training", [False, True])
def test_quantizers_are_in_the_mode_of_the_layer(training):
    layer = change_class(nn.Linear(4, 2).train(training), qnn.QuantLinear, {"input_quant": Int8Act})
    assert {each.training for each in layer.modules()} == {training}


def test_usual_quantizers_are_those_of_the_constructor():
    for torchs, layer in quantized_layers().items():
        for slot in layer.slots:
            usual = layer.usual_quantizer(slot)
            assert usual is None or usual.quantizes in (None, slot.role), torchs


def test_layers_of_ones_own_for_what_the_library_has_not():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Bilinear(3, 4, 2)

        def forward(self, x, y):
            return self.pair(x, y)

    model = Net()
    x, y = torch.randn(5, 3), torch.randn(5, 4)
    q = quantize(
        model,
        [(nn.Bilinear, QuantBilinear), ("pair", {"weight_bit_width": 4, "input_quant": Int8Act})],
        examples=(x, y),
    )
    assert q.pair.weight_quant.quantizer == Int8WeightPerTensor(bit_width=4)
    assert q.pair.input_quant.quantizer == Int8Act
    with qnn.unquantized(q):
        assert torch.equal(q(x, y), model(x, y))
    assert torch.equal(pickle.loads(pickle.dumps(q.pair)).weight, q.pair.weight)
    with pytest.raises(GraphError, match=re.escape("quantize: the rule nn.Bilinear matched only layers that have no")):
        quantize(model, {nn.Bilinear: {"weight_bit_width": 4}})


def test_a_layer_of_ones_own_takes_modules_inside_along():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "linear": nn.Linear(4, 4)})
    q = quantize(model, {nn.MultiheadAttention: QuantAttention, nn.Linear: {}})
    assert q["attention"].weight_quant.quantizer == Int8WeightPerTensor
    assert not isinstance(q["attention"].out_proj, qnn.QuantLayer)
    assert isinstance(q["linear"], qnn.QuantLinear)


def test_a_layer_of_ones_own_runs_own_forwards():
    class QuantConv(qnn.QuantConv2d):
        def __init__(self, *args, weight_quant=Int4WeightPerTensor, **options):
            super().__init__(*args, weight_quant=weight_quant, **options)

    class Padded(nn.Conv2d):
        def forward(self, x):  # type: ignore[override]
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    q = quantize(weight_norm(Padded(3, 4, 3)), {nn.Conv2d: QuantConv})
    assert isinstance(q, QuantConv)
    assert q(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 4, 4)
    assert q.weight_quant.bit_width == 4


def test_own_forwards_that_a_layer_can_not_run():
    class Swapped(nn.Bilinear):
        def forward(self, one, other):  # type: ignore[override]
            return super().forward(other, one)

    message = (
        "quantize: Swapped, by the rule nn.Bilinear: Swapped computes in its own way, which QuantBilinear can't run. "
        "Write a quantized layer of your own, and name it in a rule: {Swapped: QuantSwapped}."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Swapped(3, 3, 2), {nn.Bilinear: QuantBilinear})


def test_no_quantized_layer_of_that_type():
    message = (
        "quantize: 0 is Flatten, and can't become QuantLinear, which the rule nn.Flatten says: that is no "
        "quantized Flatten. Write a class that extends QuantLayer and Flatten."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(nn.Flatten()), {nn.Flatten: qnn.QuantLinear})


def test_the_table_is_what_the_library_has():
    names = {torchs.__name__.lower(): layer.__name__ for torchs, layer in quantized_layers().items()}
    assert all(layer.lower() == f"quant{torchs}" for torchs, layer in names.items())
    shipped = {name for name in qnn.__all__ if name.startswith("Quant")} - {"QuantLayer", "QuantFunction"}
    assert set(names.values()) <= shipped
    assert {"linear", "conv2d", "convtranspose3d", "relu", "softmax"} <= set(names)


def test_slots_of_keywords():
    assert slot_of(qnn.QuantReLU, "act_quant").name == "act"
    assert slot_of(qnn.QuantReLU, "input_bit_width").name == "input"
    assert slot_of(qnn.QuantReLU, "act_bit_width") is None  # written without a prefix
    assert slot_of(qnn.QuantConv2d, "output_scale").name == "output"
    assert keywords_of_layers() >= {"weight_quant", "bias_quant", "input_quant", "output_quant", "act_quant"}
    assert not has_weights(qnn.QuantIdentity)


def test_devices_and_types():
    assert device_and_dtype(nn.ReLU()) == (None, None)
    assert device_and_dtype(nn.Embedding(2, 2), nn.Linear(2, 2, dtype=torch.float64))[1] == torch.float32
