"""torch.compile: whole models, from the first step, in two graphs, with eager's numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import bitwright.nn as qnn
from bitwright.qcore import LearnedBitWidth, grid_of, values_of
from bitwright.quantizers import (
    Int8Act,
    Int8ActPowerOfTwo,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerChannelLearned,
    Int8WeightPerTensor,
    Int8WeightPerTensorPowerOfTwo,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    Uint8Act,
)

STEPS = 3  # of collection
TRAIN = 7


class MeanScaling(nn.Module):
    """A scaling of the user's own."""

    def __init__(self, int_range):
        super().__init__()
        self.top = int_range.max_int
        self.factor = nn.Parameter(torch.tensor(4.0, dtype=torch.float64))

    def forward(self, x):
        return x.detach().abs().mean() * self.factor / self.top


class NearestThird:
    """A rounding of the user's own: up from a third."""

    def __call__(self, x):
        return torch.floor(x + 2 / 3)


def coarse(x):
    """A rounding that is a plain function."""
    return torch.round(x / 2) * 2


class Plain(nn.Module):
    """Plain tensors between layers."""

    def __init__(self):
        super().__init__()
        self.conv1 = qnn.QuantConv2d(3, 4, 3, weight_bit_width=4, input_quant=Int8Act, input_calibration_steps=STEPS)
        self.norm = nn.BatchNorm2d(4)
        self.act1 = qnn.QuantReLU(bit_width=4, calibration_steps=STEPS)
        self.up = qnn.QuantConvTranspose2d(4, 4, 2, 2, groups=2, weight_quant=Int8WeightPerChannel)
        self.act2 = qnn.QuantGELU(calibration_steps=STEPS)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, weight_quant=ShiftedUint8WeightPerChannel, bias_quant=Int8BiasOwnScale)
        self.act3 = qnn.QuantHardSwish(act_quant=Int8ActPowerOfTwo, calibration_steps=STEPS)
        self.fc = qnn.QuantLinear(4, 5, output_quant=ShiftedUint8Act, output_calibration_steps=STEPS)

    def forward(self, x):
        x = self.act1(self.norm(self.conv1(x)))
        x = self.act3(self.conv2(self.act2(self.up(x))))
        return self.fc(x.mean((2, 3)))


class Carried(nn.Module):
    """QuantTensors between layers: bias scales, sums on one grid, concatenation, pooling."""

    def __init__(self):
        super().__init__()
        kwargs = {"return_quant_tensor": True, "calibration_steps": STEPS}
        self.inp = qnn.QuantIdentity(**kwargs)
        self.conv1 = qnn.QuantConv2d(3, 4, 3, padding=1, bias_quant=Int32Bias, return_quant_tensor=True)
        self.act1 = qnn.QuantReLU(return_quant_tensor=True, calibration_steps=STEPS)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, padding=1, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel)
        self.act2 = qnn.QuantReLU(act_quant=self.act1.act_quant, return_quant_tensor=True)
        self.fc = qnn.QuantLinear(32, 5, bias_quant=Int32Bias, weight_quant=Int8WeightPerTensorPowerOfTwo)

    def forward(self, x):
        x = self.act1(self.conv1(self.inp(x)))
        y = self.act2(self.conv2(x))
        y += x
        y = F.max_pool2d(F.pad(y, (1, 0, 0, 0))[:, :, :, 1:], 4)
        return self.fc(torch.cat([y, y.flip(1)], 1).flatten(1))


class PerChannel(nn.Module):
    """Activations with a scale for each channel, found with the first data, and a running average."""

    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(axis=1, calibration_steps=STEPS)
        self.conv = qnn.QuantConv2d(3, 4, 3)
        self.act = qnn.QuantReLU(axis=1, scaling="running")
        self.out = qnn.QuantTanh(scaling="statistic", statistic="abs_max")

    def forward(self, x):
        return self.out(self.act(self.conv(self.inp(x))).mean((2, 3)))


class Custom(nn.Module):
    """Scalings and roundings of the user's own, and a learned bit width."""

    def __init__(self):
        super().__init__()
        self.conv1 = qnn.QuantConv2d(3, 4, 3, weight_scaling=MeanScaling, weight_rounding=NearestThird)
        self.act1 = qnn.QuantReLU(scaling=MeanScaling, rounding=coarse)
        self.conv2 = qnn.QuantConv2d(4, 4, 3, weight_bit_width=LearnedBitWidth, weight_initial_bit_width=5)
        self.act2 = qnn.QuantReLU(rounding=coarse, calibration_steps=STEPS)

    def forward(self, x):
        return self.act2(self.conv2(self.act1(self.conv1(x)))).mean((2, 3))


class Learned(nn.Module):
    """Weights whose scales are parameters: in the first forward they are measured."""

    def __init__(self):
        super().__init__()
        self.conv = qnn.QuantConv2d(3, 4, 3, weight_quant=Int8WeightPerChannelLearned)
        self.act = qnn.QuantReLU(calibration_steps=STEPS)

    def forward(self, x):
        return self.act(self.conv(x)).mean((2, 3))


class Small(nn.Module):
    """QuantTensors between layers; unless told otherwise ranges are collected for 300 steps."""

    def __init__(self, **kwargs):
        super().__init__()
        self.inp = qnn.QuantIdentity(return_quant_tensor=True, **kwargs)
        self.conv = qnn.QuantConv2d(3, 4, 2, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel)
        self.act = qnn.QuantReLU(return_quant_tensor=True, **kwargs)
        self.fc = qnn.QuantLinear(4, 2, bias_quant=Int32Bias)

    def forward(self, x):
        return self.fc(torch.flatten(self.act(self.conv(self.inp(x))), 1))


def short():
    """QuantTensors between layers, two ranges to find: quickly compiled."""
    return nn.Sequential(nn.AvgPool2d(4), Small(calibration_steps=STEPS))


MODELS = {"plain": Plain, "carried": Carried, "custom": Custom, "per channel": PerChannel, "learned": Learned}
# While ranges are collected, and from then on. The first forward of the last is another: it sets scales.
GRAPHS = {"plain": 2, "carried": 2, "custom": 2, "per channel": 2, "learned": 3}


def seeded(make):
    """In double precision, where other orders of summation don't move a value over a rounding boundary."""
    torch.manual_seed(0)
    return make().double()


def batch(step, size=4):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(step)).double()


def train(model, forward, steps=range(TRAIN), sizes=(4,)):
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    losses = []
    for step in steps:
        loss = forward(batch(step, sizes[step % len(sizes)])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def close_states(one, other, rtol=1e-9, atol=1e-11):
    for (name, tensor), twin in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, twin, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("carried", "aot_eager"),
        ("learned", "aot_eager"),
        *(pytest.param(name, "aot_eager", marks=pytest.mark.slow) for name in ("plain", "custom", "per channel")),
        pytest.param("carried", "eager", marks=pytest.mark.slow),
    ],
)
def test_training_from_the_first_step_in_two_graphs_with_eagers_numbers(name, backend):
    model = seeded(MODELS[name])
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend(backend)
    losses = train(twin, torch.compile(twin, backend=counter, fullgraph=True))
    assert losses == pytest.approx(train(model, model), rel=1e-9)
    close_states(model, twin)
    assert counter.frame_count == GRAPHS[name]
    model.eval()
    twin.eval()
    with torch.no_grad():
        compiled = torch.compile(twin, backend=counter, fullgraph=True)(batch(99))
        assert torch.equal(compiled, twin(batch(99)))
        torch.testing.assert_close(compiled, model(batch(99)), rtol=1e-9, atol=1e-11)
    assert counter.frame_count == GRAPHS[name] + 1


@pytest.mark.parametrize("name", MODELS)
def test_the_first_forward_is_eagers_to_the_bit(name):
    model = seeded(MODELS[name]).float()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    assert torch.equal(compiled(batch(0).float()), model(batch(0).float()))
    close_states(model, twin, rtol=0, atol=0)


@pytest.mark.slow
def test_inductor_trains_the_same():
    model = seeded(
        lambda: nn.Sequential(
            nn.Flatten(),
            qnn.QuantIdentity(scale=0.05, return_quant_tensor=True),
            qnn.QuantLinear(192, 4, bias_quant=Int32Bias),
            qnn.QuantReLU(calibration_steps=1),
        )
    )
    twin = copy.deepcopy(model)
    losses = train(twin, torch.compile(twin, fullgraph=True), range(3))
    assert losses == pytest.approx(train(model, model, range(3)), rel=1e-8)
    close_states(model, twin, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("scaling", "backend"),
    [("calibrated", "inductor"), ("learned", "inductor"), ("learned", "aot_eager"), ("running", "aot_eager")],
)
def test_the_first_forward_finds_the_number_of_channels(scaling, backend):
    """The state has its length before the graph is made, so that the graph gives a gradient for each channel."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), qnn.QuantReLU(axis=1, scaling=scaling)))
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    for step in range(2):
        for each in (model, compiled):
            each(batch(step)).square().sum().backward()
    assert twin[1].act_quant.scaling.magnitude_base.shape == (4,)
    close_states(model, twin)
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, rtol=1e-8, atol=1e-10)


def test_the_number_of_channels_is_one_where_sizes_are_dynamic():
    model = qnn.QuantReLU(axis=1, calibration_steps=2)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for size in (2, 3, 4, 5):
        compiled(batch(0, size))
    assert counter.frame_count == 2
    with pytest.raises(Exception, match="the input has 5 entries along axis 1, but the 3 scales were collected for as"):
        compiled(torch.rand(2, 5, 8, 8))


@pytest.mark.slow
def test_from_the_first_step_past_a_collection_of_300():
    """As it is by default: one graph that collects, one that learns, for 400 steps."""
    model = seeded(lambda: nn.Sequential(nn.AvgPool2d(4), Small()))
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend("eager")
    losses = train(twin, torch.compile(twin, backend=counter, fullgraph=True), range(400))
    assert losses == pytest.approx(train(model, model, range(400)), rel=1e-9)
    close_states(model, twin)
    assert counter.frame_count == 2
    for scaling in (twin[1].inp.act_quant.scaling, twin[1].act.act_quant.scaling):
        assert (scaling.steps.item(), scaling.calibrating) == (300, False)
        assert scaling.magnitude_offset.any()


@pytest.mark.parametrize("way", [pytest.param("dynamic", marks=pytest.mark.slow), "marked", "left to the compiler"])
def test_training_on_batches_of_several_sizes(way):
    """No graph for each size: two where the compiler is told, and one more where it finds out."""
    model = seeded(short)
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(twin, backend=counter, fullgraph=True, dynamic=True if way == "dynamic" else None)

    def marked(x):
        if way == "marked":
            torch._dynamo.mark_dynamic(x, 0)
        return compiled(x)

    sizes = (4, 6, 3, 5)
    losses = train(twin, marked, range(4 * STEPS), sizes)
    assert losses == pytest.approx(train(model, model, range(4 * STEPS), sizes), rel=1e-9)
    close_states(model, twin)
    assert counter.frame_count == (3 if way == "left to the compiler" else 2)


def test_one_graph_once_the_ranges_are_collected():
    model = seeded(short)
    train(model, model, range(STEPS))
    counter = CompileCounterWithBackend("eager")
    train(model, torch.compile(model, backend=counter, fullgraph=True), range(6))
    assert counter.frame_count == 1


def test_a_long_collection_is_one_graph():
    model = nn.Sequential(*(qnn.QuantReLU(calibration_steps=300) for _ in range(3)))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(20):
        compiled(batch(step))
    assert counter.frame_count == 1
    assert [layer.act_quant.scaling.steps.item() for layer in model] == [20] * 3
    assert all(layer.act_quant.scaling.calibrating for layer in model)


def test_toggling_training_does_not_compile_again():
    model = seeded(short)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for step in range(2 * STEPS):
        model.train()
        compiled(batch(step)).sum().backward()
        model.eval()
        with torch.no_grad():
            compiled(batch(step))
    assert counter.frame_count == 3


@pytest.mark.slow
def test_several_batch_sizes():
    model = seeded(Carried)
    train(model, model, range(STEPS))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    compiled(batch(0, 4))
    graphs = counter.frame_count
    for size in [3, 6, 5, 7, 2]:
        torch.testing.assert_close(compiled(batch(0, size)), model(batch(0, size)), rtol=1e-9, atol=1e-11)
    assert counter.frame_count == graphs


@pytest.mark.parametrize("mode", [pytest.param(torch.no_grad, marks=pytest.mark.slow), torch.inference_mode])
def test_evaluation_without_gradients(mode):
    model = seeded(Carried)
    train(model, model)
    model.eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with mode():
        assert torch.equal(compiled(batch(9)), model(batch(9)))


def test_evaluation_follows_changed_weights():
    model = qnn.QuantLinear(8, 4).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 8)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(x), model(x))
            model.weight.mul_(1.5)


@pytest.mark.slow
def test_a_compiled_model_is_saved_and_resumed_in_the_middle_of_its_collection():
    model = seeded(short)
    train(model, torch.compile(model, backend="eager", fullgraph=True), range(2))
    resumed = seeded(short)
    resumed.load_state_dict(model.state_dict())
    expected = train(model, model, range(2, 6))
    losses = train(resumed, torch.compile(resumed, backend="eager", fullgraph=True), range(2, 6))
    assert losses == pytest.approx(expected, rel=1e-9)


def test_quant_tensors_cross_compiled_functions():
    act = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)
    made = torch.compile(lambda x: F.max_pool2d(act(x), 2), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        q = made(batch(0).float())
    expected = F.max_pool2d(act(batch(0).float()), 2)
    assert torch.equal(q.int(), expected.int())
    assert grid_of(q).source == grid_of(expected).source
    layer = qnn.QuantLinear(4, 2, bias_quant=Int32Bias)
    taken = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(taken(q), layer(expected))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
def test_a_quant_tensor_that_leaves_a_compiled_function_has_no_backward():
    """Torch takes it for granted that the gradient is a QuantTensor, and eager mode computes a plain one."""
    act = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)
    layer = qnn.QuantLinear(4, 2, weight_quant=None)
    x, expected = torch.linspace(-1, 1, 12).reshape(3, 4), torch.ones(3, 4)

    def broken(x):
        y = act(x)
        torch._dynamo.graph_break()
        return layer(y)

    for call in (act, broken):
        given = x.clone().requires_grad_()
        out = torch.compile(call, backend="aot_eager")(given)
        assert torch.equal(out.detach(), call(x).detach())
        with pytest.raises(RuntimeError, match="tensor subclass where we guessed its\nmetadata incorrectly"):
            out.sum().backward()
    given = x.clone().requires_grad_()
    torch.compile(lambda x: values_of(act(x)), backend="aot_eager", fullgraph=True)(given).sum().backward()
    assert torch.equal(given.grad, expected)


def test_mistakes_are_told_under_compile_too():
    model = nn.Sequential(qnn.QuantLinear(4, 4, bias_quant=Int32Bias))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="the scale of bias_quant follows the input's, and the input is a plain tensor"):
        compiled(torch.ones(1, 4))


@pytest.mark.slow
def test_autocast():
    model = seeded(short).float()
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected, out = model(batch(step).float()), compiled(batch(step).float())
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)
        out.float().sum().backward()


@pytest.mark.parametrize(
    "layer", [qnn.QuantReLU(act_quant=Uint8Act), qnn.QuantLinear(8, 8, weight_quant=Int8WeightPerTensor)]
)
def test_a_single_layer(layer):
    x = torch.randn(2, 8)
    twin = copy.deepcopy(layer)
    assert torch.equal(torch.compile(twin, backend="aot_eager", fullgraph=True)(x), layer(x))
