"""`calibrate`: ranges of activations from batches, and nothing else."""

import contextlib
import copy
import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq
from bitwright.graph import GraphError, GraphWarning
from bitwright.graph.calibration import CalibrationReport, DataStatistic, Entropy, Percentile, SquaredError, calibrate
from bitwright.qcore import AbsMax, MinMax, QuantizerError, UncalibratedWarning
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8DynamicAct,
    Int8WeightPerTensorLearned,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8ActPerChannel,
    Uint8Act,
)

OF_DATA = ["percentile", "mse", "kl"]
NAMES = ["min_max", "abs_max", *OF_DATA]


def make(**overrides):
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max", **overrides)),
        nn.BatchNorm1d(2),
        nn.Dropout(0.5),
        qnn.QuantLinear(2, 2, weight_quant=Int8WeightPerTensorLearned, input_quant=Int8Act(scale=0.5)),
    )


def x(largest, samples=1):
    return torch.tensor([[largest, 0.0], [0.0, -largest]]).repeat(samples, 1)


def magnitude(layer):
    return layer.act_quant.scaling.magnitude.item()


def everything(model):
    state = {name: each.clone() for name, each in model.state_dict().items()}
    hooks = [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in model.modules()]
    modes = [each.training for each in model.modules()]
    grads = [each.requires_grad for each in model.parameters()]
    intercepts = [each.intercept for each in qnn.quantizers_of(model).values()]
    held = [id(each) for each in [*model.parameters(), *model.buffers()]]
    return state, hooks, modes, grads, intercepts, held


def unchanged(model, before):
    state, *rest = everything(model)
    return rest == list(before[1:]) and all(torch.equal(each, before[0][name]) for name, each in state.items())


# What it does


def test_ranges_are_measured_and_nothing_else_is_touched():
    model = make().train()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    before = everything(model)
    with calibrate(model) as report:
        assert isinstance(report, CalibrationReport)
        assert len(report) == 0
        assert not any(each.training for each in model.modules())
        assert not torch.is_grad_enabled()
        for largest in (128.0, 256.0):
            assert not model(x(largest)).requires_grad
    scaling = model[0].act_quant.scaling
    assert (scaling.magnitude.item(), scaling.phase, scaling.magnitude_offset.item()) == (192, "calibrated", 0)
    after = everything(model)
    assert after[1:] == before[1:]
    assert all(torch.equal(each, after[0][name]) for name, each in before[0].items() if not name.startswith("0."))
    assert torch.is_grad_enabled()


def test_nothing_is_quantized_meanwhile():
    model = nn.Sequential(
        qnn.QuantLinear(2, 2, weight_bit_width=2, input_quant=Int8Act, input_bit_width=2, bias_quant=Int32Bias),
        qnn.QuantReLU(bit_width=2),
    )
    nn.init.constant_(model[0].weight, 0.3)
    nn.init.constant_(model[0].bias, 0.77)
    batch = torch.tensor([[0.3, -0.7]])
    expected = nn.functional.linear(batch, model[0].weight, model[0].bias).relu()
    with calibrate(model, average="max"):
        assert torch.equal(model(batch), expected)
    assert magnitude(model[1]) == pytest.approx(expected.max().item())


def test_quantized_inputs_come_through_the_ranges_from_before():
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8Act(scale=0.5)),
        qnn.QuantLinear(1, 1, weight_bit_width=2, input_quant=Int8Act(statistic="abs_max"), bias_quant=Int32Bias),
        qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max")),
    )
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        model[1].bias.fill_(0.0)
    with calibrate(model):
        model(torch.tensor([[64.3]]))
    assert model[1].input_quant.scaling.magnitude.item() == pytest.approx(64.3)
    with calibrate(model, quantized_inputs=True):
        out = model(torch.tensor([[127.0]]))  # quantized to 63.5 by the first, and by the range from before
    assert model[1].input_quant.scaling.magnitude.item() == 63.5
    assert out.item() == pytest.approx(63.5, rel=0.01)
    assert magnitude(model[2]) == pytest.approx(63.5, rel=0.01)


def test_without_a_range_from_before_inputs_are_quantized_by_their_own():
    model = nn.Sequential(qnn.QuantIdentity(bit_width=2, statistic="abs_max"), qnn.QuantReLU(statistic="abs_max"))
    with calibrate(model, quantized_inputs=True):  # no warning either
        assert model(torch.tensor([[1.0, -1.2, 0.4]])).tolist() == [[pytest.approx(0.6), 0, pytest.approx(0.6)]]
    assert not model[0].act_quant._warned


@pytest.mark.parametrize("scaling", ["calibrated", "learned", "running"])
@pytest.mark.parametrize("act", [Int8Act(statistic="abs_max"), ShiftedUint8Act(statistic="min_max")], ids=str)
def test_every_kind_of_stored_range(scaling, act):
    model = qnn.QuantIdentity(act_quant=act(scaling=scaling)).eval()
    with calibrate(model):
        model(torch.tensor([[-1.28, 1.27]]))
    assert model(torch.tensor([[-1.284, 0.014, 99.0]])).tolist() == [
        [pytest.approx(each) for each in (-1.28, 0.01, 1.27)]
    ]
    assert (model.act_quant.calibrated, model.act_quant.calibrating) == (True, False)
    assert model.act_quant.scale().item() == pytest.approx(0.01)
    offsets = [each for name, each in model.named_parameters() if name.endswith("offset")]
    assert len(offsets) == {"calibrated": 1, "learned": 1, "running": 0}[scaling] * (1 + (act.signed is False))
    assert all(each.item() == 0 for each in offsets)


def test_what_was_learned_before_is_forgotten():
    model = make(calibration_steps=1)
    model(x(1.0))
    with torch.no_grad():
        model[0].act_quant.scaling.magnitude_offset.fill_(5.0)
    with calibrate(model):
        model(x(128.0))
    assert magnitude(model[0]) == 128


def test_training_goes_on_from_the_range():
    model = qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max"))
    with calibrate(model):
        model(x(128.0))
    model.train()(x(50.0)).sum().backward()
    assert (magnitude(model), model.act_quant.scaling.steps.item()) == (128, 300)
    assert model.act_quant.scaling.magnitude_offset.grad is not None


def test_a_running_average_goes_on():
    model = qnn.QuantIdentity(act_quant=Int8Act(scaling="running", statistic="abs_max", momentum=None))
    with calibrate(model):
        for largest in (1.0, 2.0, 3.0):
            model(x(largest))
    model.train()(x(6.0))
    assert magnitude(model) == 3  # (1 + 2 + 3 + 6) / 4


def test_per_channel():
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerChannel(statistic="abs_max")),
        qnn.QuantIdentity(act_quant=ShiftedUint8ActPerChannel(statistic="min_max", channels=3)),
    )
    batch = torch.tensor([[[1.28, -0.5], [-12.8, 0.0], [2.55, 1.0]]])
    with calibrate(model) as report:
        model(batch)
    assert model[0].act_quant.scale().tolist() == pytest.approx([0.01, 0.1, 2.55 / 128])
    assert model[1].act_quant.scale().tolist() == pytest.approx([1.78 / 255, 12.8 / 255, 0.01])
    assert [each.scales for each in report] == [3, 3]


def test_a_given_range_and_those_that_follow_the_data_are_left_alone():
    model = nn.Sequential(
        qnn.QuantReLU(scaling="learned", max_value=6.0),
        qnn.QuantIdentity(scale=0.5),
        qnn.QuantIdentity(act_quant=Int8Act(scaling="statistic")),
        qnn.QuantIdentity(),
    )
    with calibrate(model) as report:
        model(x(100.0))
    assert list(report.ranges) == ["3.act_quant"]
    assert magnitude(model[0]) == 6


def test_half_precision_and_inference_mode():
    model = qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max")).half()
    with torch.inference_mode(), calibrate(model):
        model(x(64.0).half())
        model(x(128.0).half())
    assert magnitude(model) == 96
    with calibrate(model, statistic="mse"):
        with torch.inference_mode():
            model(x(64.0))
        model(x(128.0))
    model.train()(x(3.0)).sum().backward()
    assert model.act_quant.scaling.magnitude_offset.grad is not None


@pytest.mark.parametrize("outside", [True, False])
def test_compiled_models(outside):
    model = nn.Sequential(qnn.QuantIdentity(statistic="abs_max"), qnn.QuantReLU(statistic="abs_max"))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        model.eval()
        compiled(x(1.0))
    with calibrate(compiled if outside else model) as report:
        compiled(x(4.0))
        compiled(x(2.0))
    assert [each.batches for each in report] == [2, 2]
    assert magnitude(model[0]) == 3
    assert compiled(x(9.0)).max().item() == pytest.approx(3, rel=0.01)


def test_in_a_frozen_model():
    model = nn.Sequential(qnn.QuantIdentity(statistic="abs_max")).eval()
    with qnn.frozen(model):
        for largest in (128.0, 256.0):
            with calibrate(model):
                model(x(largest))
            with torch.no_grad():
                assert model(x(9999.0)).max() == 127 * largest / 128


def test_the_state_loads():
    model, other = make(), make()
    with calibrate(model):
        model(x(77.0))
    other.load_state_dict(model.state_dict())
    assert (magnitude(other[0]), other[0].act_quant.calibrating) == (77, False)


def test_a_model_with_a_forward_of_many_arguments_and_keywords():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = qnn.QuantIdentity(statistic="abs_max")

        def forward(self, *, left, right=None):
            return {"sum": self.act(left + (0 if right is None else right))}

    net = Net()
    with calibrate(net):
        net(left=x(1.0), right=x(1.0))
    assert magnitude(net.act) == 2
    report = calibrate(net, [{"left": x(3.0)}, {"left": x(4.0), "right": x(1.0)}])
    assert (magnitude(net.act), report.batches) == (4, 2)


# Batches


def test_a_batch_counts_by_its_size():
    model = make()
    with calibrate(model):
        model(x(10.0, samples=3))
        model(x(50.0, samples=1))
    assert magnitude(model[0]) == 20


@pytest.mark.parametrize(("average", "expected"), [("mean", 2.5), ("max", 4.0), ("ema", 1 + 0.5 * 3)])
def test_averages(average, expected):
    model = make(momentum=0.5)
    with calibrate(model, average=average):
        for largest in (1.0, 4.0):
            model(x(largest))
    assert magnitude(model[0]) == expected


def test_the_average_of_a_zero_point_is_that_of_width_and_lower_end():
    for average, low, width in (("mean", -1.5, 3.5), ("max", -2.0, 5.0), ("ema", -1.1, 2.3)):
        model = qnn.QuantIdentity(act_quant=ShiftedUint8Act(statistic="min_max"))
        with calibrate(model, average=average):
            for batch in ([-1.0, 1.0], [-2.0, 3.0]):
                model(torch.tensor([batch]))
        assert model.act_quant.scaling.low.item() == pytest.approx(low)
        assert magnitude(model) == pytest.approx(width)


SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=6)


@given(
    sizes=SIZES,
    statistic=st.sampled_from([*NAMES, None]),
    average=st.sampled_from(["mean", "max"]),
    chance=st.randoms(),
)
def test_the_order_of_batches_does_not_matter(sizes, statistic, average, chance):
    if statistic in OF_DATA:
        average = "mean"
    data = torch.empty(sum(sizes), 4).normal_(generator=torch.Generator().manual_seed(sum(sizes)))
    batches = list(data.split(sizes))
    model = qnn.QuantIdentity(act_quant=ShiftedUint8Act)
    calibrate(model, batches, statistic=statistic, average=average)
    first = copy.deepcopy(model.state_dict())
    chance.shuffle(batches)
    calibrate(model, batches, statistic=statistic, average=average)
    for name, each in model.state_dict().items():
        assert torch.allclose(each.double(), first[name].double(), rtol=1e-6, atol=0)
        assert torch.equal(each, first[name]) or average == "mean"


@settings(max_examples=15)
@given(
    sizes=SIZES, statistic=st.sampled_from([*NAMES, None]), kind=st.sampled_from([Int8Act, Uint8Act, ShiftedUint8Act])
)
def test_the_split_into_batches_does_not_matter_for_extremes_and_all_data(sizes, statistic, kind):
    data = torch.empty(sum(sizes), 4).normal_(generator=torch.Generator().manual_seed(sum(sizes)))
    states = []
    for batches in (data.split(sizes), [data]):
        model = qnn.QuantIdentity(act_quant=kind(statistic="min_max" if kind is ShiftedUint8Act else "abs_max"))
        calibrate(model, batches, statistic=statistic, average="mean" if statistic in OF_DATA else "max")
        states.append(model.state_dict())
    assert all(torch.equal(each, states[1][name]) for name, each in states[0].items())


@pytest.mark.parametrize("kind", [Int8Act(statistic="abs_max"), ShiftedUint8Act(statistic="min_max")], ids=str)
def test_a_shared_quantizer_measures_all_tensors_of_a_batch_as_one(kind):
    first = qnn.QuantIdentity(act_quant=kind)
    model = nn.Sequential(first, qnn.QuantReLU(act_quant=first.act_quant), qnn.QuantIdentity(act_quant=first.act_quant))
    with calibrate(model) as report:
        for largest in (8.0, 4.0):
            model(torch.tensor([[largest, -1.0]]))
    assert first.act_quant.scale().item() == pytest.approx(7 / 255 if kind.signed is False else 6 / 128)
    assert (report["0.act_quant"].batches, report["0.act_quant"].samples) == (2, 2)
    assert not first.act_quant.calibrating


def test_a_layer_called_twice_in_a_forward_and_parts_called_one_by_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = qnn.QuantIdentity(statistic="abs_max")

        def forward(self, x):
            return self.act(self.act(x) * 3)

    model = Twice()
    with calibrate(model) as report:
        model(x(1.0))
        model.act(x(9.0))
    assert (magnitude(model.act), report["act.act_quant"].batches) == (6, 2)
    quant = model.act.act_quant
    assert quant is not None
    with calibrate(model) as report:
        quant(x(5.0))
    assert (magnitude(model.act), report.batches) == (5, 0)


def test_empty_tensors_do_not_count():
    model = make()
    with calibrate(model) as report:
        model(x(128.0))
        model(torch.zeros(0, 2))
    assert (magnitude(model[0]), report["0.act_quant"].batches) == (128, 1)


# Statistics


@pytest.mark.parametrize("name", ["min_max", "abs_max", AbsMax(), MinMax()], ids=str)
def test_extremes_are_those_that_the_quantizer_can_hold(name):
    model = nn.ModuleList(
        [qnn.QuantIdentity(), qnn.QuantIdentity(act_quant=Uint8Act), qnn.QuantIdentity(act_quant=ShiftedUint8Act)]
    )
    with calibrate(model, statistic=name):
        for each in model:
            each(torch.tensor([[-3.0, 2.0]]))
    assert [magnitude(each) for each in model] == [3, 2, 5]
    assert model[2].act_quant.scaling.low.item() == -3


@pytest.mark.parametrize("name", OF_DATA)
@pytest.mark.parametrize(
    "kind", [Int8Act, Uint8Act, ShiftedUint8Act, Int8ActPerChannel, ShiftedUint8ActPerChannel], ids=str
)
def test_statistics_of_all_data(name, kind):
    chance = torch.Generator().manual_seed(0)
    model = qnn.QuantIdentity(act_quant=kind, bit_width=4)
    data = torch.empty(8, 3, 2000).normal_(generator=chance)
    report = calibrate(model, data.split(3), statistic=name)
    [found] = report
    at_most = 4.8 if name == "percentile" else 4.5
    assert 2.2 < found.high < at_most
    assert found.scales == (3 if "PerChannel" in str(kind) else 1)
    assert found.clipped < (0.52 if kind is Uint8Act else 0.02)


def test_percentiles_that_the_quantizer_has_and_others():
    data = torch.arange(1.0, 1001.0).reshape(-1, 1)
    model = qnn.QuantIdentity(act_quant=Int8Act, percentile=90.0)
    for statistic, expected in (("percentile", 900), (Percentile(50.1), 501), (None, 900.0)):
        calibrate(model, data.split(1000), statistic=statistic)
        assert magnitude(model) == pytest.approx(expected, abs=1)
    calibrate(model, data.split(1), statistic="percentile")
    assert magnitude(model) == pytest.approx(900, abs=1)
    calibrate(model, data.split(1), statistic=None)
    assert magnitude(model) == pytest.approx(500.5)  # the mean of what batches have


def test_statistics_of_a_users_own():
    class Half(DataStatistic):
        def __call__(self, histogram, levels):
            return [histogram.reach / 2]

    def root_mean_square(rows):
        return rows.square().mean(1).sqrt()

    model = make()
    calibrate(model, [x(8.0)], statistic=Half())
    assert magnitude(model[0]) == 4
    calibrate(model, [x(8.0)], statistic=root_mean_square)
    assert magnitude(model[0]) == pytest.approx(32**0.5)


def test_a_statistic_with_a_lower_end_on_a_quantizer_without_zero_point():
    model = qnn.QuantIdentity(act_quant=Int8Act(statistic="min_max"))  # which stores a lower end all the same
    calibrate(model, [torch.tensor([[-1.0, 2.0]])], statistic="mse")
    assert (model.act_quant.calibrated, model.act_quant.scaling.low.item()) == (True, 0)
    calibrate(model, [torch.tensor([[-1.0, 2.0]])])
    assert (magnitude(model), model.act_quant.scaling.low.item()) == (3, -1)


# The function with a loader


def test_tensors_tuples_and_mappings():
    model = make()
    for batch in (x(5.0), (x(5.0), torch.tensor([1, 2])), [x(5.0)], {"input": x(5.0)}, ({"input": x(5.0)}, 3)):
        assert calibrate(model, [batch])["0.act_quant"].largest == 5
    with pytest.raises(GraphError) as error:
        calibrate(model, ["text"])
    assert str(error.value) == (
        "calibrate: the loader gave 'text', and not a tensor, a tuple that begins with one, or a mapping of keyword "
        "arguments. Say how the model takes it: forward=lambda batch: model(...)."
    )


def test_a_forward_of_ones_own():
    model = make()
    report = calibrate(model, [(1.0, 2.0), (3.0, 4.0)], forward=lambda batch: model(x(batch[1])))
    assert (report["0.act_quant"].smallest, report.batches) == (-4, 2)


def test_data_loaders():
    data = torch.utils.data.TensorDataset(torch.linspace(-3, 3, 20).reshape(10, 2), torch.zeros(10))
    model = make()
    report = calibrate(model, torch.utils.data.DataLoader(data, batch_size=4))
    assert (report.batches, report["0.act_quant"].samples, report["0.act_quant"].batches) == (3, 10, 3)


# What is told


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: calibrate(nn.Linear),
            "calibrate: Linear is a class, not a model. Pass an instance of it: Linear(...).",
        ),
        (
            lambda model: calibrate(model, [x(1.0)], statistic="median"),
            "calibrate: statistic='median' is not possible: expected None for each quantizer's own, one of 'min_max', "
            "'abs_max', 'percentile', 'mse', 'kl', or an instance of a statistic, such as Percentile(99.9).",
        ),
        (
            lambda model: calibrate(model, [x(1.0)], statistic=99.9),
            "calibrate: statistic=99.9 is not possible: expected None for each quantizer's own, one of 'min_max', "
            "'abs_max', 'percentile', 'mse', 'kl', or an instance of a statistic, such as Percentile(99.9).",
        ),
        (
            lambda model: calibrate(model, [x(1.0)], average="median"),
            "calibrate: average='median' is not possible: expected one of 'mean', 'max', 'ema'.",
        ),
        (
            lambda model: calibrate(model, [x(1.0)], statistic="mse", average="max"),
            "calibrate: statistic='mse' is that of all data, so there is nothing to average. Leave out average='max', "
            "or write statistic='min_max'.",
        ),
        (
            lambda model: calibrate(model, x(1.0)),
            "calibrate: the loader is one tensor, and a loader gives batches. For one batch write calibrate(model, "
            "[batch]).",
        ),
        (
            lambda model: calibrate(model, {"input": x(1.0)}),
            "calibrate: the loader is one dict, and a loader gives batches. For one batch write calibrate(model, "
            "[batch]).",
        ),
        (
            lambda model: calibrate(model, 3),
            "calibrate: 3 gives no batches. Pass an iterable of them, such as a DataLoader or a list.",
        ),
        (
            lambda model: calibrate(model, forward=model),
            "calibrate: forward= says how the batches of a loader go through the model, and there is no loader. Write "
            "calibrate(model, loader, forward=...), or call the model inside `with calibrate(model)`.",
        ),
        (
            lambda model: calibrate(model, iter([])),
            "calibrate: the loader gave no batch, so the ranges are as before. An iterator that was used up gives "
            "none: pass a list of batches, or a DataLoader.",
        ),
        (
            lambda model: calibrate(nn.Sequential(qnn.QuantLinear(2, 2)), [x(1.0)]),
            "calibrate: no quantizer of this Sequential measures a range. Give it activation quantizers with "
            "scaling='calibrated', such as qnn.QuantIdentity(act_quant=Int8Act).",
        ),
        (
            lambda model: calibrate(nn.Sequential(qnn.QuantIdentity(act_quant=Int8DynamicAct)), [x(1.0)]),
            "calibrate: no quantizer of this Sequential measures a range. The ranges of its activations are constant "
            "or follow each input, so leave calibrate out.",
        ),
    ],
)
def test_what_can_not_be(call, message):
    model = make()
    before = everything(model)
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        call(model)
    assert unchanged(model, before)


def test_statistics_that_can_not_serve_a_zero_point():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=ShiftedUint8Act))
    with pytest.raises(GraphError) as error:
        calibrate(model, [x(1.0)], statistic=lambda rows: rows.amax(1))
    assert re.sub("<.*>", "<>", str(error.value)) == (
        "calibrate: statistic=<> knows no lower end (`low`), which 0.act_quant needs for its zero point. Write "
        "statistic='min_max' or statistic=Percentile(99.9), which serve quantizers with and without one."
    )
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Uint8Act(zero_point=lambda x, scale: torch.full_like(scale, 128)))
    )
    with pytest.raises(GraphError) as error:
        calibrate(model, [x(1.0)], statistic="mse")
    assert str(error.value) == (
        "calibrate: 0.act_quant has a zero point of your own, so only its own statistic knows which range it needs. "
        "Leave out statistic='mse'."
    )
    assert calibrate(model, [x(1.0)])["0.act_quant"].largest == 1


def test_no_batch_inside():
    model = make()
    before = everything(model)
    with pytest.raises(GraphError) as error, calibrate(model):
        copy.deepcopy(model)
    assert str(error.value) == (
        "calibrate: no batch went through the model inside `with calibrate(model)`, so its ranges are as before. Call "
        "model(batch) there."
    )
    assert unchanged(model, before)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = qnn.QuantIdentity(statistic="abs_max"), qnn.QuantReLU(statistic="abs_max")

    def forward(self, x, to=()):
        for each in to:
            x = getattr(self, each)(x)
        return x


def test_quantizers_that_no_batch_reached():
    model = Branches()
    with pytest.warns(GraphWarning) as caught, calibrate(model) as report:
        model(x(2.0), ["left"])
    assert [str(each.message) for each in caught] == [
        "calibrate: no batch reached right.act_quant, so the range there is as before. Pass batches that reach it, or "
        "give the layer None for that quantizer."
    ]
    assert (report.unreached, list(report.ranges)) == (["right.act_quant"], ["left.act_quant"])
    assert (magnitude(model.left), model.right.act_quant.calibrated) == (2, False)
    with pytest.raises(GraphError) as error, calibrate(model):  # noqa: PT012
        model(x(2.0))
        model(x(2.0))
    assert str(error.value) == (
        "calibrate: 2 batches went through the model, and reached no quantizer that measures a range (left.act_quant, "
        "right.act_quant). Call the layers that hold them."
    )
    assert magnitude(model.left) == 2


def test_a_range_of_zero():
    model = nn.ModuleDict(
        {
            "one": qnn.QuantIdentity(),
            "unsigned": qnn.QuantIdentity(act_quant=Uint8Act),
            "channels": qnn.QuantIdentity(act_quant=ShiftedUint8ActPerChannel),
        }
    )
    batch = torch.tensor([[[0.0], [-2.0], [1.0]]])
    with pytest.warns(GraphWarning) as caught, calibrate(model) as report:  # noqa: PT031
        model["one"](torch.zeros(3))
        model["unsigned"](-torch.ones(3))
        model["channels"](batch)
    assert [str(each.message) for each in caught] == [
        "calibrate: nothing but 0 reached one.act_quant, unsigned.act_quant, channels.act_quant (1 of 3 scales), so "
        "the range there is the smallest possible, and any other value is clipped to it. Pass batches that are like "
        "those of use."
    ]
    assert [each.empty for each in report] == [1, 1, 1]
    assert all(bool(each.act_quant.scale().isfinite().all()) for each in model.values())
    assert model["channels"].eval()(batch).tolist() == [[[0.0], [pytest.approx(-2)], [pytest.approx(1)]]]


@pytest.mark.parametrize("statistic", [None, *NAMES])
@pytest.mark.parametrize("kind", [Int8Act(statistic="abs_max"), ShiftedUint8Act], ids=str)
@pytest.mark.parametrize("strange", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(statistic, kind, strange):
    model = nn.Sequential(qnn.QuantIdentity(act_quant=kind))
    with pytest.warns(GraphWarning) as caught, calibrate(model, statistic=statistic) as report:  # noqa: PT031
        model(torch.tensor([[2.0, -2.0, strange]]))
        model(torch.tensor([[2.0, -2.0, 1.0]]))
        model(torch.tensor([[strange] * 3]))
    assert [str(each.message) for each in caught] == [
        "calibrate: values that are not finite reached 0.act_quant (2 batches). They count as 0, and a batch of "
        "nothing else does not count. Look for NaN in the batches and in the weights."
    ]
    [found] = report
    assert (found.not_finite, found.batches, found.largest) == (2, 2, 2)
    assert 1.8 < found.high < 2.2


def test_nothing_finite_at_all():
    model = make()
    before = everything(model)
    with pytest.raises(GraphError) as error:
        calibrate(model, [torch.full((2, 2), float("nan"))])
    assert str(error.value) == (
        "calibrate: no finite value reached 0.act_quant, so the ranges are as before. Look for NaN in the batches and "
        "in the weights."
    )
    assert unchanged(model, before)


def test_evaluation_alone_calibrates_nothing_and_says_so():
    model = nn.Sequential(qnn.QuantIdentity()).eval()
    with pytest.warns(UncalibratedWarning) as caught:
        model(x(1.0))
    assert [str(each.message) for each in caught] == [
        "0.act_quant is evaluated before it saw any data: it uses the range of the tensor at hand and learns nothing "
        "from it. Calibrate the model, `with bitwright.graph.calibrate(model): model(batch)`, train it, or load a "
        "checkpoint."
    ]
    assert not model[0].act_quant.calibrated


def test_training_mode_inside_is_refused_before_it_changes_anything():
    model = nn.Sequential(nn.BatchNorm1d(2), qnn.QuantIdentity())
    before = everything(model)
    with pytest.raises(GraphError) as error, calibrate(model):  # noqa: PT012
        model(x(1.0))
        model[0].train()
        model(x(1.0))
    assert str(error.value) == (
        "calibrate: 0 was put into training mode inside the block, where BatchNorm changes its statistics and dropout "
        "drops values. Leave out train() there."
    )
    assert unchanged(model, before)


def test_inputs_of_other_numbers_of_channels():
    model = nn.Sequential(qnn.QuantIdentity(act_quant=Int8ActPerChannel))
    before = everything(model)
    with pytest.raises(GraphError) as error, calibrate(model):  # noqa: PT012
        model(torch.ones(2, 3))
        model(torch.ones(2, 4))
    assert str(error.value) == (
        "calibrate: 0.act_quant has a scale for each of 3 entries along axis 1 of one input, and 4 entries along "
        "axis 1 of another. Give it inputs of one size, or one scale (axis=None)."
    )
    with pytest.raises(QuantizerError, match="axis=1 is not a dimension of an input of 1 dimensions"), calibrate(model):
        model(torch.ones(3))
    assert unchanged(model, before)


# Exceptions


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
@pytest.mark.parametrize("trained", [0, 1, 3])
def test_after_an_exception_everything_is_as_before(trained, error):
    model = make(calibration_steps=2)
    for _ in range(trained):
        model(x(64.0))
    model[1].eval()
    before, phase = everything(model), model[0].act_quant.scaling.phase
    with pytest.raises(error), calibrate(model):  # noqa: PT012
        model(x(999.0))
        raise error
    assert unchanged(model, before)
    assert model[0].act_quant.scaling.phase == phase == ("empty", "calibrating", "", "calibrated")[trained]
    assert torch.is_grad_enabled()


def test_an_error_inside_the_model_and_one_that_is_caught():
    model = make()
    before = everything(model)
    with pytest.raises(RuntimeError):
        calibrate(model, [x(1.0), torch.ones(2, 3)])
    assert unchanged(model, before)
    with calibrate(model) as report:
        with pytest.raises(RuntimeError):
            model(torch.ones(2, 3))
        model(x(4.0))
    assert report["0.act_quant"].batches == 2


def test_hooks_that_fail_and_are_caught():
    model = make()

    def fail(module, args):
        if args[0].shape[0] == 6:
            raise KeyError

    handle = model.register_forward_pre_hook(fail)
    with calibrate(model) as report:
        for samples in (3, 1, 3, 2):
            with contextlib.suppress(KeyError):
                model(x(1.0 + samples, samples))
    handle.remove()
    assert (report.batches, report["0.act_quant"].batches, report["0.act_quant"].samples) == (2, 2, 6)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            [torch.ones(3)],
            "calibrate: Wrong() gives 1 tensor of 3 numbers as the range of 1.act_quant: expected 2 tensors of 1 "
            "number, a width and its lower end.",
        ),
        (
            [torch.ones(1), torch.ones(2)],
            "calibrate: Wrong() gives 2 tensors of 1 and 2 numbers as the range of 1.act_quant: expected 2 tensors of "
            "1 number, a width and its lower end.",
        ),
        (
            [torch.ones(1), torch.full((1,), float("nan"))],
            "calibrate: the range of 1.act_quant by Wrong() is not finite, so the ranges are as before.",
        ),
    ],
)
def test_statistics_that_give_no_range(found, message):
    class Wrong(DataStatistic):
        def __call__(self, histogram, levels):
            return found if levels.interval else [histogram.reach]

    model = nn.Sequential(qnn.QuantIdentity(), qnn.QuantIdentity(act_quant=ShiftedUint8Act))
    calibrate(model, [x(2.0)])
    before = everything(model)
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        calibrate(model, [x(9.0)], statistic=Wrong())
    assert unchanged(model, before)


def test_a_failure_while_ranges_are_stored_restores_those_that_were(monkeypatch):
    model = nn.Sequential(qnn.QuantIdentity(), qnn.QuantIdentity(act_quant=Int8ActPerChannel))
    calibrate(model, [x(2.0)])
    before = everything(model)

    def fail(found, forwards=1):
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(model[1].act_quant.scaling), "set_range", fail)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, [torch.ones(3, 5)])
    assert unchanged(model, before)
    assert (magnitude(model[0]), model[0].act_quant.calibrating) == (pytest.approx(2), False)


def test_a_warning_that_is_an_error_comes_before_anything_changes():
    model = Branches()
    before = everything(model)
    with warnings.catch_warnings(), pytest.raises(GraphWarning), calibrate(model):  # noqa: PT012
        warnings.simplefilter("error")
        model(x(2.0), ["left"])
    assert unchanged(model, before)


# Whole models


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantConv2d(3, 4, 3, bias_quant=Int32Bias),
        nn.BatchNorm2d(4),
        qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(4 * 36, 5, input_quant=ShiftedUint8Act, weight_bit_width=4),
    ).eval(), torch.randn(16, 3, 8, 8)


@pytest.mark.parametrize("statistic", [None, *NAMES])
def test_a_calibrated_model_is_near_the_float_one(statistic):
    model, data = convolutional()
    report = calibrate(model, data.split(5), statistic=statistic)
    assert list(report.ranges) == ["0.act_quant", "3.act_quant", "5.input_quant"]
    with qnn.unquantized(model):
        expected = model(data)
    assert (model(data) - expected).square().mean() < 0.08 * expected.square().mean()


def test_a_calibrated_model_exports(tmp_path):
    model, data = convolutional()
    calibrate(model, data.split(5), statistic="mse")
    export_onnx_qcdq(model, data[:2], tmp_path / "model.onnx")  # which verifies it


def test_statistics_with_settings_print_in_the_report():
    model = make()
    assert calibrate(model, [x(1.0)], statistic=Entropy(99.5))["0.act_quant"].statistic == "Entropy(99.5)"
    assert calibrate(model, [x(1.0)], statistic=SquaredError())["0.act_quant"].statistic == "SquaredError()"
