import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.passes.models import check_same, float_copy, replace_module, untouched, with_report
from bitwright.graph.passes.reports import Report


def test_copy_keeps_ties():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    copied = float_copy("equalize", model)
    assert copied[1].weight is copied[0].weight
    assert copied[0].weight is not model[0].weight


def test_not_a_model():
    with pytest.raises(GraphError, match=re.escape("equalize: Linear is a class, not a model.")):
        float_copy("equalize", nn.Linear)


def test_quantized_model():
    message = "smooth: block.fc is a QuantLinear, and smooth changes float models. Call it before quantize."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        float_copy("smooth", nn.ModuleDict({"block": nn.ModuleDict({"fc": qnn.QuantLinear(2, 2)})}))


def test_report_of_its_own():
    class Reporting(nn.Module):
        def report(self):
            return "mine"

    message = (
        "equalize: Reporting has a `report` of its own, where equalize would put its report. Wrap the model: "
        "equalize(nn.Sequential(model), ...)."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        float_copy("equalize", Reporting())
    assert float_copy("equalize", nn.Sequential(Reporting()))[0].report() == "mine"


def test_report_of_an_earlier_pass_is_replaced():
    model = with_report(nn.Linear(1, 1), Report("fold_batch_norms", ()))
    assert with_report(float_copy("equalize", model), Report("equalize", ())).report == Report("equalize", ())


def test_layer_named_report():
    model = nn.ModuleDict({"report": nn.Linear(1, 1)})
    with pytest.raises(GraphError, match=r"^equalize: ModuleDict has a `report` of its own"):
        float_copy("equalize", model)


def test_untouched():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.seen = []

        def forward(self, x):
            self.calls += 1
            self.seen.append(x)
            return x + self.training

    model, x = Counting(), torch.ones(1)
    with untouched([((x,), {})], model):
        assert model(x) == 1
    assert (model.calls.item(), model.seen, model.training) == (0, [], True)
    check_same("equalize", model, model, x)
    assert (model.calls.item(), model.seen, model.training) == (0, [], True)


def test_report_is_no_state():
    model = with_report(nn.Linear(1, 1), Report("equalize", ()))
    assert model.report == Report("equalize", ())
    assert list(model.state_dict()) == ["weight", "bias"]


def test_same_result():
    model = nn.Linear(3, 3)
    check_same("equalize", model, model, [torch.ones(1, 3), torch.zeros(2, 3)])


def test_another_result():
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    for layer, number in ((model, 2.0), (other, 3.0)):
        nn.init.constant_(layer.weight, number)
        nn.init.zeros_(layer.bias)
    message = (
        "equalize: the result is no longer the model's: it differs by 0.5 of the largest output. The model was not "
        "changed. A layer reads weights in a way that recording does not see; leave it out."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        check_same("equalize", model, other, torch.ones(1, 1))


def test_random_evaluation_is_not_compared():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    check_same("equalize", Noise(), Noise(), torch.ones(4))


def test_results_of_any_structure():
    class Two(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x):
            return {"a": [x, (x * self.number, None)], "b": "text"}

    check_same("smooth", Two(2.0), Two(2.0), {"x": torch.ones(3)})
    with pytest.raises(GraphError, match=r"differs by 0\.5 of the largest output"):
        check_same("smooth", Two(2.0), Two(3.0), {"x": torch.ones(3)})


def test_replaced_everywhere():
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Sequential(relu), nn.ReLU())
    other = nn.Identity()
    replace_module(model, relu, other)
    assert model[0] is other
    assert model[1][0] is other
    assert isinstance(model[2], nn.ReLU)
