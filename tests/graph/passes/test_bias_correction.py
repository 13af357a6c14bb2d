"""Bias correction of quantized models."""

import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import bitwright.nn as qnn
from bitwright.graph import gptq
from bitwright.graph.errors import GraphError
from bitwright.graph.passes.bias_correction import BiasReport, correct_biases
from bitwright.graph.passes.reports import Entry
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int32Bias, Uint8Act

W3 = {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 3}


class Net(nn.Module):
    """A stem, a depthwise convolution, a pointwise one, a classifier."""

    def __init__(self, **settings):
        super().__init__()
        self.stem = qnn.QuantConv2d(3, 8, 3, padding=1, **settings)
        self.depthwise = qnn.QuantConv2d(8, 8, 3, groups=8, **settings)
        self.point = qnn.QuantConv2d(8, 6, 1, **settings)
        self.head = qnn.QuantLinear(6, 5, **settings)

    def forward(self, x, tag=None):
        x = self.stem(x).clamp(0, 6)
        x = self.point(self.depthwise(x).clamp(0, 6)).relu()
        return self.head(x.mean((2, 3)))


LAYERS = ("stem", "depthwise", "point", "head")


def images(count=16):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 0.5


def network(seed=0, **settings):
    torch.manual_seed(seed)
    net = Net(**(W3 | settings)).eval()
    if "input_quant" in settings:
        with qnn.calibrating(net):
            net(images())
    return net


def means(net, x, names=LAYERS):
    """The mean of each output channel of each layer."""
    found = {}

    def look(name):
        def see(layer, args, out):
            axis = out.ndim - 1 if isinstance(layer, nn.Linear) else 1
            found[name] = out.double().movedim(axis, 0).flatten(1).mean(1)

        return see

    handles = [net.get_submodule(name).register_forward_hook(look(name)) for name in names]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return found


def biases(net):
    return {name: each.detach().clone() for name, each in net.named_parameters() if name.endswith("bias")}


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    return all(float((one[name] - other[name]).abs().max()) <= tolerance for name in one)


def line(weight, bias=0.0, **settings):
    layer = qnn.QuantLinear(1, 1, weight_quant=None, **settings)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


def true_line(weight, bias=0.0):
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, weight)
    nn.init.constant_(layer.bias, bias)
    return layer


# What it computes


def test_samples_count_and_batches_do_not():
    model = line(0.75, bias=2.0)
    report = correct_biases(
        model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])], true_line(1.0, 2.0), held_out=False
    )
    assert model.bias.item() == 3.0  # 0.25 times the mean of 1, 3 and 8
    (entry,) = report
    assert entry.figures["after"] == 0
    assert entry.figures["before"] == pytest.approx(1 / math.sqrt((3**2 + 5**2 + 10**2) / 3))


@pytest.mark.parametrize("settings", [{}, {"input_quant": Int8Act}], ids=["weights", "activations"])
def test_means_of_all_channels_are_right_afterwards(settings):
    net, x = network(**settings), images()
    with qnn.unquantized(net):
        wanted = means(net, x)
    before = means(net, x)
    report = correct_biases(net, x, held_out=False)
    found = means(net, x)
    for name in LAYERS:
        assert float((before[name] - wanted[name]).abs().max()) > 1e-3
        assert float((found[name] - wanted[name]).abs().max()) < 1e-6
    assert [entry.path for entry in report.changed] == list(LAYERS)
    assert report.sqnr_after > report.sqnr_before + 3


def test_what_proves_right_with_half_of_the_samples_is_done_with_all():
    net, x = network(), images()
    with qnn.unquantized(net):
        wanted = means(net, x)
    report = correct_biases(net, x)
    found = means(net, x)
    changed = [entry.path for entry in report.changed]
    assert changed
    for name in changed:
        assert float((found[name] - wanted[name]).abs().max()) < 1e-6
        assert report[name].figures["after"] < report[name].figures["before"]


def test_layers_are_corrected_in_order():
    """A shift that arises upstream is repaired by the next layer, though that has no error of its own."""
    model = nn.Sequential(line(0.5), line(2.0))
    model[0].bias = None  # can't be corrected itself
    report = correct_biases(model, torch.tensor([[4.0]]), nn.Sequential(true_line(1.0), true_line(2.0)), held_out=False)
    assert model[1].bias.item() == 4.0  # 2 x 4 is wanted, 2 x 2 comes
    assert report["0"].reason == "has no bias; add_biases=True gives it one"


def test_a_corrected_layer_leaves_the_next_one_right():
    model = nn.Sequential(line(0.5), line(2.0))
    correct_biases(model, torch.tensor([[4.0]]), nn.Sequential(true_line(1.0), true_line(2.0)), held_out=False)
    assert [each.bias.item() for each in model] == [2.0, 0.0]


def test_outputs_are_compared_before_they_are_quantized():
    """Of an output that is clipped at zero, the mean is another: that shift is the output quantizer's."""
    model = line(0.75, output_quant=Uint8Act, output_scale=0.0625)
    x = torch.tensor([[-8.0], [4.0]])
    correct_biases(model, x, true_line(1.0), held_out=False)
    assert model.bias.item() == -0.5  # 0.25 times the mean of x
    assert model(x).tolist() == [[0.0], [2.5]]


def test_transposed_and_one_dimensional():
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantConv1d(4, 6, 3, groups=2, **W3),
        nn.ReLU(),
        qnn.QuantConvTranspose1d(6, 4, 2, stride=2, groups=2, weight_bit_width=3),
    ).eval()
    x = torch.randn(6, 4, 9)
    with qnn.unquantized(model):
        wanted = means(model, x, ("0", "2"))
    correct_biases(model, x, held_out=False)
    found = means(model, x, ("0", "2"))
    assert all(float((found[name] - wanted[name]).abs().max()) < 1e-6 for name in ("0", "2"))


def test_a_quantized_bias_follows():
    net, x = network(input_quant=Int8Act, bias_quant=Int32Bias), images()
    codes = net.stem.int_bias()
    with qnn.unquantized(net):
        wanted = means(net, x)
    correct_biases(net, x, held_out=False)
    found = means(net, x)
    assert not torch.equal(net.stem.int_bias(), codes)
    for name in LAYERS:
        step = net.get_submodule(name).quant_bias().scale.max()
        assert float((found[name] - wanted[name]).abs().max()) < 0.51 * float(step)


def test_nothing_to_correct_where_weights_lie_on_the_grid():
    net = network()
    with torch.no_grad():
        for layer in map(net.get_submodule, LAYERS):
            layer.weight.copy_(layer.quant_weight().value)
    before = biases(net)
    report = correct_biases(net, images())
    assert same(biases(net), before)
    assert {entry.reason for entry in report} == {"its means are right"}


@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("settings", [{}, {"input_quant": Int8Act, "bias_quant": Int32Bias}], ids=["float", "int32"])
def test_twice_is_once(held_out, settings):
    net, x = network(**settings), images()
    correct_biases(net, x, held_out=held_out)
    once = biases(net)
    report = correct_biases(net, x, held_out=held_out)
    assert same(biases(net), once)
    assert not report.changed


def test_twice_is_once_in_a_copy_and_with_the_float_model():
    net, x = network(), images()
    reference = copy.deepcopy(net)
    correct_biases(net, x, held_out=False)
    once = biases(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        correct_biases(copied, x, held_out=False)
        assert same(biases(copied), once)
    fresh = network(1)
    fresh.load_state_dict(net.state_dict())  # which knows nothing of what biases were
    correct_biases(fresh, x, reference, held_out=False)
    assert same(biases(fresh), once)


def test_a_bias_that_was_trained_since_is_that_of_the_float_model():
    model, x = line(0.75), torch.tensor([[4.0]])
    correct_biases(model, x, true_line(1.0), held_out=False)
    nn.init.constant_(model.bias, 5.0)
    correct_biases(model, x, held_out=False)  # nothing is quantized: the model is its own reference
    assert model.bias.item() == 5.0


@pytest.mark.parametrize("held_out", [True, False])
def test_batches_do_not_matter(held_out):
    x, found = images(), []
    for batches in ([x], list(x.split(3)), [x[:1], x[1:]], [{"x": x[:9]}, {"x": x[9:]}]):
        net = network()
        correct_biases(net, batches, held_out=held_out)
        found.append(biases(net))
    assert all(same(each, found[0]) for each in found)


def test_batches_that_can_not_be_joined():
    """A forward for each layer gives what one forward of all gives."""
    x, found = images(), []
    for batches in ([(x[:8],), (x[8:],)], [(x[:8], "first"), (x[8:], "second")]):
        net = network()
        report = correct_biases(net, batches, held_out=False)
        found.append((biases(net), report.sqnr_after))
    assert same(found[0][0], found[1][0], 1e-6)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-3)


def test_every_other_batch_is_held_out_where_they_can_not_be_joined():
    x, net = images(), network()
    with qnn.unquantized(net):
        wanted = means(net, x)
    report = correct_biases(net, [(x[:8], "estimates"), (x[8:], "judges")])
    found = means(net, x)
    changed = [entry.path for entry in report.changed]
    assert changed
    assert all(float((found[name] - wanted[name]).abs().max()) < 1e-6 for name in changed)


def test_labels_of_a_loader_are_left_out():
    x, found = images(), []
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(16)), batch_size=5)
    for data in (x, loader):
        net = nn.Sequential(network())  # its forward takes one argument
        correct_biases(net, data)
        found.append(biases(net))
    assert same(*found)


# What is kept


def test_a_layer_without_gain_on_held_out_samples_is_left():
    model = line(0.75)
    report = correct_biases(model, torch.tensor([[4.0], [-4.0]]), true_line(1.0))
    assert model.bias.item() == 0
    assert report[""].reason == "no gain on the samples held out"
    assert report[""].figures == {"before": 0.25, "after": 0.5}


def test_a_layer_is_left_where_a_few_large_errors_have_moved_the_mean():
    """0.25 x is missing: 1.25 in the mean, which is the mean of 0.25, 0.25, 0.25 and 4.25."""
    model = line(0.75)
    x = torch.tensor([[1.0], [1.0], [1.0], [1.0], [1.0], [1.0], [17.0], [17.0]])
    report = correct_biases(model, x, true_line(1.0))
    assert model.bias.item() == 0
    assert report[""].reason == "most of the samples held out lose by it"
    assert report[""].figures["after"] == 0
    correct_biases(model, x[:6], true_line(1.0))
    assert model.bias.item() == 0.25


def test_all_is_undone_where_the_outputs_get_worse():
    """The second layer makes up for the error of the first, until that is corrected."""
    model = nn.Sequential(line(0.5), line(2.0))
    model[1].bias = None
    reference = nn.Sequential(true_line(1.0), true_line(1.0))
    report = correct_biases(model, torch.tensor([[4.0], [4.0]]), reference)
    assert model[0].bias.item() == 0
    assert report["0"].reason == "the outputs of the model get worse on the samples held out"
    assert report.sqnr_before == math.inf
    assert report.sqnr_after == 0  # 8 instead of 4
    correct_biases(model, torch.tensor([[4.0], [4.0]]), reference, held_out=False)
    assert model[0].bias.item() == 2.0


def test_biases_are_added_on_request():
    model = nn.Sequential(qnn.QuantConv2d(3, 4, 3, bias=False, **W3), nn.BatchNorm2d(4)).eval()
    keys = list(model.state_dict())
    message = "correct_biases: nothing to correct. 0: has no bias; add_biases=True gives it one."
    with pytest.raises(GraphError, match=re.escape(message)):
        correct_biases(model, images(), held_out=False)
    model[0].weight.requires_grad_(False)
    correct_biases(model, images(), held_out=False, add_biases=True)
    assert set(model.state_dict()) - set(keys) == {"0.bias"}
    assert not model[0].bias.requires_grad
    assert float(model[0].bias.abs().max()) > 0


def test_added_biases_that_bring_nothing_are_gone():
    model = nn.Sequential(line(0.75), nn.Identity())
    model[0].bias = None
    reference = nn.Sequential(true_line(1.0), nn.Identity())
    correct_biases(model, torch.tensor([[4.0], [-4.0]]), reference, add_biases=True)
    assert model[0].bias is None
    assert list(model.state_dict()) == ["0.weight"]


def test_no_bias_is_added_to_outputs_on_the_grid_of_the_products():
    model = qnn.QuantLinear(2, 2, bias=False, input_quant=Int8Act, input_scale=0.1, return_quant_tensor=True)
    message = (
        "correct_biases: nothing to correct. the model: has no bias, and returns sums of products, on whose grid a new "
        "one would not lie."
    )
    with pytest.raises(GraphError, match=re.escape(message)):
        correct_biases(model, torch.ones(4, 2), add_biases=True)


# What it leaves alone


class Odd(nn.Module):
    """Layers that can't be corrected, and one that can."""

    def __init__(self):
        super().__init__()
        self.twice = qnn.QuantLinear(4, 4, **W3)
        self.one = qnn.QuantLinear(4, 4, **W3)
        self.other = qnn.QuantLinear(4, 4, **W3)
        self.other.bias = self.one.bias
        self.never = qnn.QuantLinear(4, 4, **W3)
        self.fine = qnn.QuantLinear(4, 4, **W3)
        self.mixes = qnn.QuantLinear(4, 4, **W3)
        self.parametrized = qnn.QuantLinear(4, 4, **W3)
        parametrize.register_parametrization(self.parametrized, "bias", nn.Identity())

    def forward(self, x):
        x = self.twice(self.twice(x))
        x = self.parametrized(self.other(self.one(x)))
        return self.fine(x) + self.mixes(torch.ones(3, 4))[0]


def test_what_can_not_be_corrected_is_named():
    torch.manual_seed(0)
    model = Odd().eval()
    before = biases(model)
    report = correct_biases(model, torch.rand(8, 4), held_out=False)
    assert {entry.path: entry.reason for entry in report} == {
        "twice": "is called 2 times in one forward",
        "one": "shares its bias with other",
        "other": "shares its bias with one",
        "never": "saw no data",
        "fine": "",
        "mixes": "mixes samples, or counts them in no dimension of its output",
        "parametrized": "has a parametrized bias",
    }
    assert [name for name, each in biases(model).items() if not torch.equal(each, before[name])] == ["fine.bias"]


def test_outputs_that_are_not_finite_are_left():
    model = nn.Sequential(line(math.inf), line(1.0))
    report = correct_biases(model, torch.ones(2, 1), nn.Sequential(true_line(1.0), true_line(1.0)), held_out=False)
    assert {entry.reason for entry in report} == {"computes outputs that are not finite"}
    assert [each.bias.item() for each in model] == [0, 0]


def test_batch_norm_and_dropout_rest_in_a_model_that_trains():
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(4, 4, **W3), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    evaluated = copy.deepcopy(model).eval()
    x = torch.rand(8, 4)
    for each in (model, evaluated):
        correct_biases(each, x, held_out=False)
    assert all(module.training for module in model.modules())
    assert all(
        torch.equal(*pair) for pair in zip(*(each.state_dict().values() for each in (model, evaluated)), strict=True)
    )
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_a_frozen_model_is_corrected_for_what_its_weights_are_now():
    model, x = line(0.75), torch.tensor([[4.0]])
    with qnn.frozen(model):
        model(x)
        correct_biases(model, x, true_line(1.0), held_out=False)
    assert model(x).item() == 4.0


# What fails leaves everything as it was


class Fails(Net):
    """Breaks at some forward."""

    left = None

    def forward(self, x, tag=None):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("broken")
        return super().forward(x, tag)


@pytest.mark.parametrize(
    ("left", "tags"), [(left, tags) for tags in (False, True) for left in (1, 3, 4, 5, 6, 9) if tags or left < 7]
)
def test_an_exception_leaves_the_model_as_it_was(left, tags):
    torch.manual_seed(0)
    net, x = Fails(**W3, input_quant=Int8Act, bias_quant=Int32Bias), images()
    net.point.bias_quant = None
    net.point.bias = None
    with qnn.calibrating(net):
        net(x)
    net.train()
    net.head.eval()
    net.stem.bias.requires_grad_(False)
    codes = net.stem.int_bias()
    state = {name: each.clone() for name, each in net.state_dict().items()}
    modes = {name: each.training for name, each in net.named_modules()}
    hooks = {name: len(each._forward_hooks) for name, each in net.named_modules()}
    net.left = left
    with pytest.raises(RuntimeError, match=r"^broken$"):
        correct_biases(net, [(x[:8], "first"), (x[8:], "second")] if tags else [x[:8], x[8:]], add_biases=True)
    after = net.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], each) for name, each in state.items())
    assert {name: each.training for name, each in net.named_modules()} == modes
    assert {name: len(each._forward_hooks) for name, each in net.named_modules()} == hooks
    assert all(each.intercept is None for each in qnn.quantizers_of(net).values())
    assert [name for name, each in net.named_parameters() if not each.requires_grad] == ["stem.bias"]
    assert torch.equal(net.stem.int_bias(), codes)


# Messages


def fails(message, *args, **kwargs):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        correct_biases(*args, **kwargs)


def test_no_model():
    fails("correct_biases: 3 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).", 3, images())
    fails(
        "correct_biases: 'm' is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).",
        network(),
        images(),
        "m",
    )


def test_no_quantized_layer():
    fails(
        "correct_biases: this Sequential has no quantized linear layer or convolution. Quantize it first: "
        "quantize(model, {nn.Conv2d: W8A8, nn.Linear: W8A8}).",
        nn.Sequential(nn.Linear(2, 2)),
        torch.ones(2, 2),
    )


@pytest.mark.parametrize("data", [[], iter(())])
def test_no_batch(data):
    fails("correct_biases: data holds no batch. Pass a tensor, or a list or loader of batches.", network(), data)


@pytest.mark.parametrize(("data", "named"), [(7, "7"), ("images", "'images'")])
def test_no_data(data, named):
    fails(f"correct_biases: data={named} is no batch. Pass a tensor, or a list or loader of batches.", network(), data)


def test_a_batch_that_is_none():
    fails(
        "correct_biases: a batch of data is 7. Pass a tensor, a tuple of positional arguments, or a dict of keyword "
        "arguments.",
        network(),
        [images(), 7],
    )


def test_no_range():
    torch.manual_seed(0)
    net = Net(**W3, input_quant=Int8Act)
    fails(
        "correct_biases: stem.input_quant, depthwise.input_quant, point.input_quant, head.input_quant saw no data and "
        "have no range yet, so there is nothing to compare with. Calibrate first: with calibrate(model): model(batch).",
        net,
        images(),
    )
    model = nn.Sequential(qnn.QuantLinear(3, 3), qnn.QuantReLU())
    fails(
        "correct_biases: 1.act_quant saw no data and has no range yet, so there is nothing to compare with. Calibrate "
        "first: with calibrate(model): model(batch).",
        model,
        images(),
    )


def test_another_reference():
    net, x = network(), images()
    fails(
        "correct_biases: the reference has no layer stem. Pass the float model that this one was made from, with the "
        "same paths.",
        net,
        x,
        nn.Sequential(net),
    )
    other = network()
    other.point = nn.Conv2d(8, 7, 1)
    fails(
        "correct_biases: the reference has another layer at point. Pass the float model that this one was made from, "
        "with the same paths.",
        net,
        x,
        other,
    )


def test_one_sample_can_not_be_held_out():
    fails(
        "correct_biases: data is one batch that can't be split into samples, and every other one is to be held out. "
        "Pass at least two batches, or held_out=False.",
        network(),
        images(1),
    )


def test_a_model_that_mixes_samples_is_not_split():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = qnn.QuantLinear(4, 4, **W3)

        def forward(self, x):
            return self.fc(x - x.mean(0))

    torch.manual_seed(0)
    model, x = Centred().eval(), torch.rand(8, 4)
    fails(
        "correct_biases: data is one batch that can't be split into samples, and every other one is to be held out. "
        "Pass at least two batches, or held_out=False.",
        model,
        x,
    )
    with qnn.unquantized(model):
        wanted = [model(x[:4]).mean(0), model(x[4:]).mean(0)]
    correct_biases(model, [x[:4], x[4:]], held_out=False)  # as batches, not as one of eight
    assert torch.allclose((model(x[:4]).mean(0) + model(x[4:]).mean(0)) / 2, (wanted[0] + wanted[1]) / 2, atol=1e-6)


def test_everything_was_left():
    model = nn.Sequential(*(qnn.QuantLinear(2, 2, bias=False) for _ in range(10)))
    fails(
        "correct_biases: nothing to correct. 0, 1, 2, 3, 4, 5, 6, 7 and 2 more: has no bias; add_biases=True gives it "
        "one.",
        model,
        torch.ones(2, 2),
    )


def test_rounded_weights_need_the_float_model():
    model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=4)).eval()
    original, x = copy.deepcopy(model), torch.randn(64, 8)
    assert gptq(model, x)["0"].changed
    message = (
        "correct_biases: the weights of 0 were rounded by an algorithm, so the model no longer knows what the float "
        "model computes. Pass that: correct_biases(model, data, reference=float_model)."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        correct_biases(model, x)
    assert correct_biases(model, x, original, held_out=False)["0"].action == "corrected"


# The report


def test_report():
    entries = Entry("conv", "corrected", "", {"before": 0.5, "after": 0.125}), Entry("fc", "left", "saw no data")
    report = BiasReport("correct_biases", entries, 5.04, 9.5)
    assert str(report) == (
        "correct_biases: 1 changed, 1 left; SQNR of the outputs 5.0 dB before, 9.5 dB after\n"
        "  conv  corrected (before 0.5, after 0.125)\n"
        "  fc    left: saw no data"
    )
    assert report.as_dict() == {
        "call": "correct_biases",
        "entries": [
            {"path": "conv", "action": "corrected", "reason": "", "figures": {"before": 0.5, "after": 0.125}},
            {"path": "fc", "action": "left", "reason": "saw no data", "figures": {}},
        ],
        "sqnr_before": 5.04,
        "sqnr_after": 9.5,
    }


def test_report_is_in_the_order_of_the_model():
    net = network()
    report = correct_biases(net, images())
    assert [entry.path for entry in report] == list(LAYERS)
