"""`calibrating`: measures ranges and changes nothing else."""

import copy

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8Act, Int8WeightPerTensorLearned, ShiftedUint8Act


def make(**overrides):
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max", **overrides)),
        nn.BatchNorm1d(2),
        nn.Dropout(0.5),
        qnn.QuantLinear(2, 2, weight_quant=Int8WeightPerTensorLearned, input_quant=Int8Act(scale=0.5)),
    )


def x(largest):
    return torch.tensor([[largest, 0.0], [0.0, -largest]])


def test_ranges_are_measured_and_nothing_else_is_touched():
    model = make().eval()
    model[2].train()
    modes = {name: each.training for name, each in model.named_modules()}
    others = {name: each.clone() for name, each in model.state_dict().items() if not name.startswith("0.")}
    with qnn.calibrating(model) as same:
        assert same is model
        assert not model[1].training
        assert not model[2].training
        for largest in (128.0, 256.0):
            assert not model(x(largest)).requires_grad
    scaling = model[0].act_quant.scaling
    assert (scaling.magnitude.item(), scaling.phase, scaling.magnitude_offset.item()) == (
        pytest.approx(140.8),
        "calibrated",
        0,
    )
    assert {name: each.training for name, each in model.named_modules()} == modes
    assert all(torch.equal(each, model.state_dict()[name]) for name, each in others.items())
    assert model[3].weight_quant.scaling.phase == "empty"  # which is learned from its first training step on


def test_at_most_as_many_forwards_as_there_are_calibration_steps():
    model = make(calibration_steps=2)
    with qnn.calibrating(model):
        for largest in (128.0, 128.0, 999.0):
            model(x(largest))
    assert model[0].act_quant.scaling.magnitude.item() == 128


def test_what_was_measured_and_learned_before_is_forgotten():
    model = make(calibration_steps=1)
    model(x(1.0))
    with torch.no_grad():
        model[0].act_quant.scaling.magnitude_offset.fill_(5.0)
    held = model[0].act_quant.scaling.magnitude_offset
    with qnn.calibrating(model):
        model(x(128.0))
    scaling = model[0].act_quant.scaling
    assert (scaling.magnitude.item(), scaling.magnitude_offset is held) == (128, True)
    assert model[0].eval()(torch.tensor([[1.3, 999.0]])).tolist() == [[1, 127]]


@pytest.mark.parametrize("scaling", ["calibrated", "learned", "running"])
def test_kinds_of_ranges(scaling):
    model = qnn.QuantIdentity(act_quant=Int8Act(scaling=scaling, statistic="abs_max")).eval()
    with qnn.calibrating(model):
        model(torch.tensor([128.0]))
    assert model(torch.tensor([999.0])).item() == 127
    assert not model.act_quant.calibrating


def test_zero_points_and_shared_quantizers():
    first = qnn.QuantIdentity(act_quant=ShiftedUint8Act(statistic="min_max"))
    model = nn.ModuleList([first, qnn.QuantIdentity(act_quant=first.act_quant)])
    with qnn.calibrating(model):
        model[0](torch.tensor([-1.0, 0.5]))
        model[1](torch.tensor([0.0, 1.55]))
    assert first.act_quant.scaling.phase == "calibrated"
    assert first.act_quant.scale().item() == pytest.approx(0.01)
    assert first.act_quant.grid(torch.ones(1)).zero_point.item() == 100


def test_nothing_ran_nothing_is_known():
    model = make()
    with qnn.calibrating(model):
        pass
    assert model[0].act_quant.scaling.phase == "empty"


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_after_an_exception_every_range_is_what_it_was(before, error):
    model = make(calibration_steps=2)
    for _ in range(before):
        model(x(64.0))
    model[1].eval()
    state = copy.deepcopy(model.state_dict())
    held = {name: id(each) for name, each in [*model.named_parameters(), *model.named_buffers()]}
    phase, modes = model[0].act_quant.scaling.phase, [each.training for each in model.modules()]
    with pytest.raises(error), qnn.calibrating(model):  # noqa: PT012
        for _ in range(3):
            model(x(999.0))
        raise error
    assert all(torch.equal(each, state[name]) for name, each in model.state_dict().items())
    assert {name: id(each) for name, each in [*model.named_parameters(), *model.named_buffers()]} == held
    assert model[0].act_quant.scaling.phase == phase == ("empty", "calibrating", "", "calibrated")[before]
    assert [each.training for each in model.modules()] == modes
    twin = make(calibration_steps=2)
    twin.load_state_dict(state)
    assert torch.equal(model[0].train()(x(64.0)), twin[0].train()(x(64.0)))


def test_nothing_to_calibrate():
    with pytest.raises(QuantizerError) as error, qnn.calibrating(nn.Sequential(qnn.QuantLinear(2, 2))):
        pass
    assert str(error.value) == (
        "calibrating: no quantizer of this Sequential measures a range. Give it activation quantizers with "
        "scaling='calibrated', such as qnn.QuantIdentity(act_quant=Int8Act)."
    )


def test_calibrated_once_evaluated_and_trained():
    model = make()
    with qnn.calibrating(model):
        model(x(128.0))
    expected = model.eval()(x(50.0))
    assert torch.equal(model(x(50.0)), expected)
    model.train()[0](x(50.0)).sum().backward()
    assert model[0].act_quant.scaling.magnitude_offset.grad is not None
    assert model[0].act_quant.scaling.magnitude.item() == 128  # and is not measured any more


def test_in_a_frozen_model():
    model = make().eval()
    with qnn.frozen(model), qnn.calibrating(model):
        model(x(128.0))
    assert model[0](torch.tensor([[1.3, 999.0]])).tolist() == [[1, 127]]
