"""State: there from construction, saved and loaded in place, picklable, resumed to the bit."""

import copy
import pickle
import subprocess
import sys
from io import BytesIO
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import bitwright.nn as qnn
from bitwright.qcore import Grid, LearnedBitWidth, Quantizer, QuantTensor, TensorQuant
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8ActPowerOfTwo,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int8WeightPerTensorMSE,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
    Uint8Act,
)

STEPS = 3  # of collection, in the models below
LEARNED = Int8WeightPerChannelLearned(bit_width=4)


class Net(nn.Module):
    """Layers of every kind of state: none, constant, learned, collected, with zero points, with scales per channel."""

    def __init__(self, weight_quant=LEARNED):
        super().__init__()
        self.inp = qnn.QuantIdentity(return_quant_tensor=True, calibration_steps=STEPS)
        self.conv = qnn.QuantConv2d(3, 4, 3, weight_quant=weight_quant, bias_quant=Int32Bias)
        self.norm = nn.BatchNorm2d(4)
        self.act = qnn.QuantReLU(axis=1, calibration_steps=STEPS)
        self.shifted = qnn.QuantIdentity(act_quant=ShiftedUint8Act, calibration_steps=STEPS)
        self.running = qnn.QuantIdentity(scaling="running")
        self.constant = qnn.QuantHardTanh(-4, 4, scale=2**-5)
        self.fc = qnn.QuantLinear(
            4, 5, bias_quant=Int8BiasOwnScale(scaling="learned"), weight_bit_width=LearnedBitWidth
        )

    def forward(self, x):
        x = self.act(self.norm(self.conv(self.inp(x))))
        return self.fc(self.constant(self.running(self.shifted(x))).mean((2, 3)))


class FloatNet(nn.Module):
    """The same, before it was quantized."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(F.hardtanh(F.relu(self.norm(self.conv(x))), -4, 4).mean((2, 3)))


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def batch(step):
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step))


def train(model, optimizer, steps):
    """Losses of some training steps; the data of each step is always the same."""
    losses = []
    for step in steps:
        loss = model(batch(step)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adam(model):
    return torch.optim.Adam(model.parameters(), 1e-2)


def saved(anything, **kwargs):
    """To a file and back."""
    buffer = BytesIO()
    torch.save(anything, buffer)
    buffer.seek(0)
    return torch.load(buffer, **kwargs)


def assert_equal_state(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# Keys


def test_keys_are_the_same_at_every_step():
    model = seeded(Net)
    optimizer = adam(model)
    keys = {0: list(model.state_dict())}
    for step in range(8):
        train(model, optimizer, [step])
        keys[step + 1] = list(model.state_dict())
    model.eval()(batch(0))
    keys["evaluated"] = list(model.state_dict())
    assert all(each == keys[0] for each in keys.values())


def test_the_keys():
    assert list(qnn.QuantReLU().state_dict()) == [
        "act_quant.scheme",
        "act_quant.scaling.magnitude_offset",
        "act_quant.scaling.magnitude_base",
        "act_quant.scaling.measured",
        "act_quant.scaling.steps",
    ]
    assert list(qnn.QuantReLU(scale=0.5).state_dict()) == ["act_quant.scheme", "act_quant.scaling.scale"]
    assert list(qnn.QuantGELU().state_dict()) == [
        "act_quant.scheme",
        "act_quant.scaling.magnitude_offset",
        "act_quant.scaling.low_offset",
        "act_quant.scaling.magnitude_base",
        "act_quant.scaling.low_base",
        "act_quant.scaling.measured",
        "act_quant.scaling.steps",
    ]
    assert list(qnn.QuantLinear(2, 2).state_dict()) == ["weight", "bias", "weight_quant.scheme"]
    assert list(qnn.QuantLinear(2, 2, False, weight_quant=Int8WeightPerTensorLearned).state_dict()) == [
        "weight",
        "weight_quant.scheme",
        "weight_quant.scaling.magnitude_offset",
        "weight_quant.scaling.magnitude_base",
        "weight_quant.scaling.measured",
        "weight_quant.scaling.steps",
    ]


def test_parameters_are_the_same_objects_at_every_step():
    model = seeded(Net)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    train(model, adam(model), range(5))
    model.load_state_dict(model.state_dict())
    model.load_state_dict(FloatNet().state_dict())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


# Float checkpoints


@pytest.mark.parametrize("trained", [0, 2, 6])
@pytest.mark.parametrize(
    "weight_quant",
    [Int8WeightPerTensor, LEARNED, Int8WeightPerTensorMSE(bit_width=3)],
    ids=repr,
)
def test_a_float_checkpoint_loads_strictly_and_weight_scales_start_from_it(weight_quant, trained):
    source = seeded(FloatNet, seed=1)
    with torch.no_grad():
        source.conv.weight.mul_(3)
    model = seeded(lambda: Net(weight_quant))
    train(model, adam(model), range(trained))
    result = model.load_state_dict(saved(source.state_dict(), weights_only=True), strict=True)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    fresh = qnn.QuantConv2d(3, 4, 3, weight_quant=weight_quant)
    fresh.load_state_dict(source.conv.state_dict())
    assert torch.equal(model.conv.weight, source.conv.weight)
    assert torch.equal(model.conv.quant_weight().value, fresh.quant_weight().value)
    if weight_quant is not Int8WeightPerTensorMSE(bit_width=3):
        top = model.conv.int_weight().abs().max().item()
        assert top == model.conv.quant_weight().grid.bounds[1]


def test_a_float_model_and_its_quantized_twin_nearly_agree():
    source = seeded(FloatNet, seed=1)
    source(batch(0))
    model = seeded(lambda: Net(Int8WeightPerChannel))
    model.load_state_dict(source.state_dict())
    model.fc.weight_quant.bit_width.offset.data.fill_(6.0)
    with torch.no_grad():
        for _ in range(STEPS):
            model.inp(batch(0))
            model.act(source.norm.eval()(source.conv(batch(0))))
            model.shifted(F.relu(source.norm(source.conv(batch(0)))))
            model.running(F.relu(source.norm(source.conv(batch(0)))))
    difference = (model.eval()(batch(0)) - source.eval()(batch(0))).abs().max()
    assert 0 < difference < 0.02


def test_a_float_checkpoint_that_lacks_a_weight_is_refused():
    state = FloatNet().state_dict()
    del state["fc.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "fc\.weight"'):
        Net().load_state_dict(state)


def test_a_quantized_checkpoint_that_lacks_a_scale_is_refused():
    for name in ("magnitude_base", "measured", "steps"):
        state = Net().state_dict()
        del state[f"act.act_quant.scaling.{name}"]
        missing = rf'Missing key\(s\) in state_dict: "act\.act_quant\.scaling\.{name}"'
        with pytest.raises(RuntimeError, match=missing):
            Net().load_state_dict(state)


def test_the_optimizer_made_before_a_float_checkpoint_is_loaded_trains_it():
    model = seeded(Net)
    optimizer = adam(model)
    model.load_state_dict(FloatNet().state_dict())
    before = model.conv.weight.detach().clone()
    train(model, optimizer, range(5))
    assert not torch.equal(model.conv.weight, before)
    assert all(parameter.grad is not None for parameter in model.parameters())


# The scheme


MESSAGE = (
    "{path}: the file holds {found}, the model is {made}. Build the model with the file's quantizers, or load with "
    "strict=False to keep this one's scheme."
)
EIGHT = "int8 narrow, per tensor, float scale"


@pytest.mark.parametrize(
    ("file", "model", "path", "found", "made"),
    [
        (
            lambda: qnn.QuantLinear(4, 4),
            lambda: qnn.QuantLinear(4, 4, weight_bit_width=2),
            "0.weight_quant",
            EIGHT,
            "int2 narrow, per tensor, float scale",
        ),
        (
            lambda: qnn.QuantLinear(4, 4),
            lambda: qnn.QuantLinear(4, 4, weight_quant=Int8WeightPerChannel),
            "0.weight_quant",
            EIGHT,
            "int8 narrow, axis 0, float scale",
        ),
        (
            lambda: qnn.QuantLinear(4, 4),
            lambda: qnn.QuantLinear(4, 4, weight_quant=ShiftedUint8WeightPerTensor),
            "0.weight_quant",
            EIGHT,
            "uint8, per tensor, float scale, zero point",
        ),
        (
            lambda: qnn.QuantReLU(),
            lambda: qnn.QuantReLU(act_quant=Int8Act),
            "0.act_quant",
            "uint8, per tensor, float scale",
            "int8, per tensor, float scale",
        ),
        (
            lambda: qnn.QuantIdentity(),
            lambda: qnn.QuantIdentity(act_quant=Int8ActPowerOfTwo),
            "0.act_quant",
            "int8, per tensor, float scale",
            "int8, per tensor, power of two (ceil) scale",
        ),
        (
            lambda: qnn.QuantLinear(4, 4, bias_quant=Int32Bias),
            lambda: qnn.QuantLinear(4, 4, bias_quant=Int32Bias, bias_bit_width=16),
            "0.bias_quant",
            "int32, scale of the products",
            "int16, scale of the products",
        ),
    ],
)
def test_another_scheme_is_refused(file, model, path, found, made):
    state = saved(nn.Sequential(file()).state_dict(), weights_only=True)
    with pytest.raises(RuntimeError) as caught:
        nn.Sequential(model()).load_state_dict(state)
    assert str(caught.value) == (
        "Error(s) in loading state_dict for Sequential:\n\tUnexpected key(s) in state_dict: "
        f'"{MESSAGE.format(path=path, found=found, made=made)}". '
    )


def test_another_scheme_is_told_without_strict():
    file, model = nn.Sequential(qnn.QuantLinear(4, 4)), nn.Sequential(qnn.QuantLinear(4, 4, weight_bit_width=2))
    result = model.load_state_dict(file.state_dict(), strict=False)
    assert result.unexpected_keys == [
        MESSAGE.format(path="0.weight_quant", found=EIGHT, made="int2 narrow, per tensor, float scale")
    ]
    assert torch.equal(model[0].weight, file[0].weight)
    assert model[0].int_weight().abs().max() == 1


def test_the_same_scheme_written_differently_loads():
    class Mine(Int8WeightPerTensor):
        bit_width = 4

    file = qnn.QuantLinear(4, 4, weight_quant=Mine)
    model = qnn.QuantLinear(4, 4, weight_bit_width=4)
    model.load_state_dict(file.state_dict())
    assert torch.equal(model.int_weight(), file.int_weight())


def test_a_state_dict_stays_as_it_was_when_it_is_loaded():
    state = Net().state_dict()
    keys = list(state)
    Net().load_state_dict(state)
    assert list(state) == keys


# Loading and resuming


@pytest.mark.parametrize("steps", [0, 1, 2, STEPS, STEPS + 1, 8])
def test_save_load_and_evaluate(steps):
    model = seeded(Net)
    train(model, adam(model), range(steps))
    loaded = seeded(Net, seed=9)
    loaded.load_state_dict(saved(model.state_dict(), weights_only=True))
    assert_equal_state(model.state_dict(), loaded.state_dict())
    if steps:
        assert torch.equal(loaded.eval()(batch(0)), model.eval()(batch(0)))


@pytest.mark.parametrize("into", ["fresh", "trained less", "trained more", "evaluated"])
@pytest.mark.parametrize("steps", [0, 1, STEPS, 5])
def test_training_resumes_to_the_bit_with_the_optimizer(steps, into):
    model = seeded(Net)
    optimizer = adam(model)
    train(model, optimizer, range(steps))
    file = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, weights_only=True)
    expected = train(model, optimizer, range(steps, steps + 6))

    resumed = seeded(Net, seed=9)
    restarted = adam(resumed)
    train(resumed, restarted, range({"trained less": 1, "trained more": 7}.get(into, 0)))
    if into == "evaluated":
        for module in resumed.modules():
            if hasattr(module, "_warned") or hasattr(module, "calibrated"):
                module._warned = True  # that it saw no data is another test's matter
        resumed.eval()(batch(0))
        resumed.train()
    resumed.load_state_dict(file["model"])
    restarted.load_state_dict(file["optimizer"])
    assert train(resumed, restarted, range(steps, steps + 6)) == expected
    assert_equal_state(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("steps", [0, 2, 5])
def test_loading_by_assignment(steps):
    model = seeded(Net)
    train(model, adam(model), range(steps))
    loaded = seeded(Net, seed=9)
    loaded.load_state_dict(saved(model.state_dict(), weights_only=True), assign=True)
    assert_equal_state(model.state_dict(), loaded.state_dict())
    losses = [train(each, adam(each), range(4)) for each in (model, loaded)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("steps", [1, 5])
def test_loading_into_a_model_on_the_meta_device(steps):
    model = seeded(Net)
    train(model, adam(model), range(steps))
    with torch.device("meta"):
        loaded = Net()
    loaded.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(loaded.eval()(batch(0)), model.eval()(batch(0)))


def test_scales_per_channel_load_into_a_model_that_saw_no_data():
    model = qnn.QuantIdentity(act_quant=Int8ActPerChannel)
    model(torch.randn(2, 3, 4))
    loaded = qnn.QuantIdentity(act_quant=Int8ActPerChannel)
    optimizer = torch.optim.Adam(loaded.parameters())
    loaded.load_state_dict(model.state_dict())
    assert loaded.act_quant.scaling.magnitude.shape == (3,)
    assert loaded.act_quant.scaling.magnitude_offset.shape == (3,)
    assert loaded.act_quant.scaling.magnitude_offset is optimizer.param_groups[0]["params"][0]
    x = torch.randn(2, 3, 4)
    assert torch.equal(loaded.eval()(x), model.eval()(x))


def test_an_optimizer_made_before_the_channels_were_known_trains_their_scales():
    model = qnn.QuantIdentity(act_quant=Int8ActPerChannel, calibration_steps=1)
    scaling = model.act_quant.scaling
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    model(torch.randn(2, 3, 4))
    before, base = (each.detach().clone() for each in (scaling.magnitude, scaling.magnitude_base))
    model(torch.randn(2, 3, 4) * 2).sum().backward()
    optimizer.step()
    assert scaling.magnitude.shape == scaling.magnitude_offset.shape == (3,)
    assert (scaling.magnitude != before).all()
    assert torch.equal(scaling.magnitude_base, base)


def test_loaded_scales_are_used_in_evaluation_without_a_warning():
    model = qnn.QuantReLU(statistic="abs_max")
    model(torch.tensor([2.55]))
    loaded = qnn.QuantReLU(statistic="abs_max")
    loaded.load_state_dict(model.state_dict())
    assert loaded.eval()(torch.tensor([9.0])).item() == pytest.approx(2.55)


def test_a_collection_that_was_ended_is_ended_in_the_file_too():
    model = qnn.QuantReLU()
    model(torch.tensor([2.0]))
    model.act_quant.scaling.finish_calibration()
    loaded = qnn.QuantReLU()
    loaded.load_state_dict(saved(model.state_dict()))
    loaded(torch.tensor([100.0]))
    assert not loaded.act_quant.scaling.calibrating
    assert loaded.act_quant.scaling.magnitude.item() == 2.0


@pytest.mark.parametrize("file", ["quantized", "float"])
@pytest.mark.parametrize("get_memory", ["to_empty", "assignment"])
def test_constants_survive_the_meta_device(get_memory, file):
    def make():
        return nn.Sequential(
            qnn.QuantIdentity(axis=1, scale=[0.5, 0.25, 0.125]), qnn.QuantLinear(3, 2, weight_scale=2**-7)
        )

    source = seeded(make)
    with torch.device("meta"):
        model = make()
    if get_memory == "to_empty":
        model.to_empty(device="cpu")
    state = source.state_dict()
    if file == "float":
        state = {name: state[name] for name in ("1.weight", "1.bias")}
    model.load_state_dict(state, assign=get_memory == "assignment")
    assert repr(model) == repr(source)
    x = torch.randn(5, 3)
    assert torch.equal(model(x), source(x))


def test_a_constant_is_the_files():
    """A file of scale 2**-7 gives the numbers that it was trained with, whatever the model was made with."""

    def make(scale):
        return nn.Sequential(qnn.QuantIdentity(scale=scale), qnn.QuantReLU(max_value=255 * scale))

    one, other = make(2**-7), make(2**-3)
    x = torch.tensor([0.3, 0.07])
    assert (one(x).tolist(), other(x).tolist()) == ([0.296875, 0.0703125], [0.25, 0.125])
    other.load_state_dict(saved(one.state_dict(), weights_only=True))
    assert other(x).tolist() == [0.296875, 0.0703125]
    with pytest.raises(RuntimeError) as error:
        qnn.QuantIdentity(axis=1, scale=[0.5, 0.25]).load_state_dict(one[0].state_dict())
    assert "the file holds int8, per tensor, float scale, the model is int8, axis 1, float scale" in str(error.value)


# Averages and copies of models, made tensor by tensor


def ema(average, model, decay, integers):
    """An average of everything in a state dict, as libraries of vision models keep it."""
    for mine, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.mul_(decay).add_(other.detach(), alpha=1 - decay)
        elif integers == "truncated":
            mine.copy_(mine * decay + (1 - decay) * other)
        elif integers == "copied":
            mine.copy_(other)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model(use_buffers):
    """Made before training, as its documentation shows: its ranges are its own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(calibration_steps=5, statistic="abs_max"),
        qnn.QuantReLU(calibration_steps=5, statistic="abs_max"),
    )
    average = AveragedModel(model, use_buffers=use_buffers)
    x = torch.tensor([-6.4, 6.4])
    for _ in range(8):
        model(x)
        average.update_parameters(model)
    model.eval()
    average.eval()
    assert average.module[0].act_quant.calibrated
    with torch.no_grad():
        assert torch.equal(average(5 * x), model(5 * x))
        assert average(5 * x).tolist() == pytest.approx([0, 6.35])


@pytest.mark.parametrize("integers", ["skipped", "truncated", "copied"])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_average_of_a_state_dict(decay, integers):
    """Parameters and ranges lie between those that the model had, whatever becomes of the counters."""
    model = qnn.QuantIdentity(calibration_steps=5, statistic="abs_max")
    average = copy.deepcopy(model).eval()
    for step in range(8):
        model(torch.tensor([12.8 if step < 4 else 25.6]))
        ema(average, model, decay, integers)
    largest = model.act_quant.scaling.magnitude.item()
    assert largest == pytest.approx(14.08)
    out = average(torch.tensor([999.0])).item() / 127 * 128
    if decay == 0:
        assert out == pytest.approx(largest)
    assert 12.8 - 1e-4 <= out <= largest + 1e-4
    loaded = qnn.QuantIdentity(calibration_steps=5, statistic="abs_max")
    loaded.load_state_dict(saved(average.state_dict(), weights_only=True))
    assert torch.equal(loaded.eval()(torch.tensor([999.0])), average(torch.tensor([999.0])))


@pytest.mark.parametrize("steps", [0, 1, STEPS, STEPS + 2])
def test_tensors_copied_one_by_one_are_the_whole_model(steps):
    """As in a target network, or where ranks are told rank 0's state."""
    model, other = seeded(Net), seeded(Net, seed=9)
    train(model, adam(model), range(steps))
    train(other, adam(other), range(1))
    for mine, theirs in zip(other.state_dict().values(), model.state_dict().values(), strict=True):
        mine.data.copy_(theirs.data)
    if steps:
        assert torch.equal(copy.deepcopy(other).eval()(batch(0)), copy.deepcopy(model).eval()(batch(0)))
    assert train(other, adam(other), range(4)) == train(model, adam(model), range(4))
    assert_equal_state(model.state_dict(), other.state_dict())


# Calibration, then training: files of another kind of scale


@pytest.mark.parametrize("kind", ["learned", "running", "calibrated"])
def test_a_calibrated_range_loads_into_a_model_that_learns_or_follows(kind):
    model = qnn.QuantReLU(bit_width=4, calibration_steps=1, statistic="abs_max")
    model(torch.tensor([1.5]))
    loaded = qnn.QuantReLU(bit_width=4, scaling=kind, statistic="abs_max")
    loaded.load_state_dict(saved(model.state_dict(), weights_only=True))
    assert loaded.act_quant.scaling.magnitude.item() == 1.5
    assert loaded.eval()(torch.tensor([9.0, 0.26])).tolist() == pytest.approx([1.5, 0.3])
    with pytest.raises(RuntimeError, match="the file holds uint4, per tensor, float scale, the model is uint2, per"):
        qnn.QuantReLU(bit_width=2, scaling=kind).load_state_dict(model.state_dict())


def test_weights_calibrated_by_a_statistic_load_into_learned_scales():
    model = qnn.QuantLinear(4, 2, weight_bit_width=4)
    loaded = qnn.QuantLinear(4, 2, weight_bit_width=4, weight_scaling="learned")
    loaded(torch.ones(1, 4))
    loaded.load_state_dict(saved(model.state_dict(), weights_only=True))
    assert torch.equal(loaded.int_weight(), model.int_weight())
    loaded(torch.ones(1, 4))
    assert loaded.weight_quant.scaling.magnitude.item() == model.weight.abs().max().item()


@pytest.mark.parametrize("how", ["plain", "pruned", "weight_norm"])
def test_float_checkpoints_of_parametrized_layers(how):
    def wrapped(layer):
        if how == "pruned":
            prune.l1_unstructured(layer, "weight", 0.5)
        elif how == "weight_norm":
            parametrizations.weight_norm(layer)
        return layer

    torch.manual_seed(0)
    trained = nn.Linear(8, 8)
    with torch.no_grad():
        trained.weight.mul_(50)
    wrapped(trained)
    layer = wrapped(qnn.QuantLinear(8, 8, weight_quant=Int8WeightPerTensorLearned))
    layer(torch.ones(1, 8))  # which measured another weight
    layer.load_state_dict(trained.state_dict(), strict=True)
    largest = trained.weight.abs().max().item()
    layer.eval()(torch.ones(1, 8))  # where pruning works the weight out
    assert layer.quant_weight().scale.item() == pytest.approx(largest / 127)
    layer.train()(torch.ones(1, 8))
    assert layer.weight_quant.scaling.magnitude.item() == pytest.approx(largest)


class Kept(TensorQuant):
    """A kind of the user's own, whose state starts from the weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def initialize(self, x):
        self.largest.copy_(x.abs().max())

    def _quantize(self, x, *context):
        scale = self.largest / 127
        return torch.round(x / scale) * scale, Grid(scale, bit_width=8, narrow_range=True)

    def scheme(self):
        return "kept"


class KeptWeight(Quantizer):
    tensor_quant = Kept


def test_a_kind_of_the_users_own_starts_from_its_weight():
    layer = qnn.QuantLinear(2, 1, False, weight_quant=KeptWeight)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, 0.0]]))
    layer(torch.ones(1, 2))
    assert layer.weight_quant.largest.item() == pytest.approx(1.27)
    layer.load_state_dict({"weight": torch.tensor([[2.54, 0.0]])})
    layer(torch.ones(1, 2))
    assert layer.weight_quant.largest.item() == pytest.approx(2.54)
    layer.weight = nn.Parameter(torch.tensor([[5.08, 0.0]]))
    layer(torch.ones(1, 2))
    assert layer.weight_quant.largest.item() == pytest.approx(5.08)


def test_a_kind_of_the_users_own_keeps_what_it_loaded():
    layer = qnn.QuantLinear(2, 1, False, weight_quant=KeptWeight)
    layer(torch.ones(1, 2))
    layer.weight_quant.largest.fill_(9.0)
    loaded = qnn.QuantLinear(2, 1, False, weight_quant=KeptWeight)
    loaded.load_state_dict(layer.state_dict())
    loaded(torch.ones(1, 2))
    assert loaded.weight_quant.largest.item() == 9


def test_a_kind_of_the_users_own_is_saved_before_its_first_use():
    layer = qnn.QuantLinear(2, 1, False, weight_quant=KeptWeight)
    largest = layer.weight.abs().max().item()
    loaded = qnn.QuantLinear(2, 1, False, weight_quant=KeptWeight)
    loaded.load_state_dict(layer.state_dict())
    loaded(torch.ones(1, 2))
    assert loaded.weight_quant.largest.item() == largest
    with torch.no_grad():
        layer.weight.mul_(2)  # a weight that is initialised after the model was saved
    layer(torch.ones(1, 2))
    assert layer.weight_quant.largest.item() == 2 * largest


def test_a_kind_of_the_users_own_assigned_to_a_layer():
    layer = qnn.QuantLinear(2, 1, False)
    layer.weight_quant = KeptWeight
    layer(torch.ones(1, 2))
    assert layer.weight_quant.largest.item() == layer.weight.abs().max().item()


@pytest.mark.parametrize("axis", [None, 1])
def test_a_constant_that_is_loaded_leaves_earlier_results_alone(axis):
    layer = qnn.QuantIdentity(scale=0.2, axis=axis, return_quant_tensor=True)
    before = layer(torch.tensor([[0.2, -1.0]]))
    state = layer.state_dict()
    layer.load_state_dict({**state, "act_quant.scaling.scale": torch.full_like(layer.act_quant.scaling.scale, 0.1)})
    assert before.int().tolist() == [[1, -5]]
    assert layer(before).int().tolist() == [[2, -10]]


# Whole models


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("way", ["pickle", "torch.save", "deepcopy"])
def test_whole_models(way, steps):
    model = seeded(Net)
    optimizer = adam(model)
    train(model, optimizer, range(steps))
    copied = {
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "torch.save": lambda: saved(model, weights_only=False),
        "deepcopy": lambda: copy.deepcopy(model),
    }[way]()
    assert_equal_state(model.state_dict(), copied.state_dict())
    assert repr(copied) == repr(model)
    assert copied.conv.weight_quant.quantizer == model.conv.weight_quant.quantizer
    other = adam(copied)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # it shares tensors otherwise
    assert train(copied, other, range(6)) == train(model, optimizer, range(6))
    assert torch.equal(copied.eval()(batch(0)), model.eval()(batch(0)))


def test_copies_go_their_own_way():
    model = seeded(Net)
    train(model, adam(model), range(2))
    copied = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    train(copied, adam(copied), range(3))
    assert_equal_state(model.state_dict(), before)
    assert model.act.act_quant.scaling.calibrating
    assert not copied.act.act_quant.scaling.calibrating


def test_a_copys_grid_is_another_grid():
    model = qnn.QuantReLU(scale=0.5, return_quant_tensor=True)
    copied = copy.deepcopy(model)
    x = torch.ones(2)
    assert isinstance(model(x) + model(x), QuantTensor)
    assert not isinstance(model(x) + copied(x), QuantTensor)


def test_shared_quantizers_are_still_shared_in_a_copy():
    first = qnn.QuantReLU(return_quant_tensor=True)
    model = nn.ModuleList([first, qnn.QuantReLU(act_quant=first.act_quant, return_quant_tensor=True)])
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied[0].act_quant is copied[1].act_quant
        assert isinstance(copied[0](torch.ones(2)) + copied[1](torch.ones(2)), QuantTensor)


def test_a_copy_made_in_evaluation_holds_no_caches():
    model = seeded(Net)
    train(model, adam(model), range(4))
    model.eval()
    with torch.no_grad():
        model(batch(0))
        copied = copy.deepcopy(model)
        copied.conv.weight.mul_(2)
        model(batch(0))
        assert torch.equal(copied(batch(0)), saved(copied, weights_only=False)(batch(0)))


SCRIPT = """
import sys, torch, warnings
warnings.simplefilter("error")
model = torch.load(sys.argv[1], weights_only=False)
x = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(x), sys.argv[3])
"""


def test_a_whole_model_loads_in_another_process(tmp_path):
    """Also its quantizers, declared by call and in a module of their own, and grids in caches."""
    model = nn.Sequential(
        qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelLearned(bit_width=4), input_quant=Int8Act),
        qnn.QuantReLU(act_quant=Uint8Act, bit_width=5),
        qnn.QuantGELU(),
    )
    model(batch(0))
    model.eval()
    with torch.no_grad():
        expected = model(batch(1))
    files = [str(tmp_path / name) for name in ("model.pt", "x.pt", "y.pt")]
    torch.save(model, files[0])
    torch.save(batch(1), files[1])
    done = subprocess.run([sys.executable, "-c", SCRIPT, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(files[2]), expected)


def test_state_dicts_load_safely():
    model = seeded(Net)
    train(model, adam(model), range(4))
    state = saved(model.state_dict(), weights_only=True)
    assert all(type(tensor) is torch.Tensor for tensor in state.values())
    assert bytes(state["fc.weight_quant.scheme"].tolist()).decode().startswith("learned int narrow")


def test_state_of_a_compiled_model_loads_into_a_plain_one():
    model = seeded(Net)
    compiled: Any = torch.compile(model, backend="eager")
    plain = seeded(Net, seed=9)
    plain.load_state_dict({name.removeprefix("_orig_mod."): each for name, each in compiled.state_dict().items()})
    assert_equal_state(plain.state_dict(), model.state_dict())
