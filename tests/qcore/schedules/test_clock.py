import re

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import bitwright.nn as qnn
from bitwright.qcore import Anneal, QuantizerError, describe, resolve
from bitwright.quantizers import (
    BinaryWeightPerTensor,
    Int4WeightPerTensorDoReFa,
    Int8Act,
    Int8WeightPerChannelLearned,
    TernaryWeightPerChannel,
)


def model(steps=6):
    torch.manual_seed(0)
    return nn.Sequential(
        qnn.QuantLinear(4, 8, weight_bit_width=Anneal(8, 2, steps=steps)),
        qnn.QuantReLU(after=3, calibration_steps=2),
        qnn.QuantLinear(8, 2, weight_quant=Int8WeightPerChannelLearned, weight_after=4),
    )


def inputs(steps):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4, generator=generator) for _ in range(steps)]


def counts(of):
    return [each.clock.steps.item() for each in qnn.quantizers_of(of).values()]


def test_values_pass_until_quantization_begins():
    layer = qnn.QuantIdentity(after=2, bit_width=2, scale=1.0)
    x = torch.tensor([0.3, -9.0], requires_grad=True)
    out = layer(x)
    assert out.tolist() == x.tolist()
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [1, 1]
    assert layer.eval()(x).tolist() == [0, -2]  # evaluation quantizes: a checkpoint chosen by it is a quantized one
    assert layer.train()(x).tolist() == x.tolist()
    out = layer(x)
    assert out.tolist() == [0, -2]
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [1, 0]


def test_a_relu_stays():
    layer = qnn.QuantReLU(after=1, bit_width=2, scale=1.0)
    assert layer(torch.tensor([-1.0, 0.3])).tolist() == pytest.approx([0, 0.3])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_pass_exactly_in_other_types(dtype):
    layer = qnn.QuantIdentity(after=1, scale=0.5)
    x = torch.tensor([0.3, -9.0]).to(dtype)
    assert torch.equal(layer(x), x)


def test_a_range_is_measured_until_then():
    """Longer than it would be, if need be: it is that of the values when quantization begins."""
    layer = qnn.QuantIdentity(after=4, calibration_steps=2, momentum=1.0, statistic="abs_max", narrow_range=True)
    for step in range(1, 7):
        layer(torch.tensor([1.27 * step]))
        assert layer.act_quant.scaling.steps.item() == min(step, 4)
    assert layer.act_quant.scale().item() == pytest.approx(0.04)
    early = qnn.QuantIdentity(after=1, calibration_steps=3)
    for _ in range(4):
        early(torch.ones(1))
    assert early.act_quant.scaling.steps.item() == 3


def test_a_learned_weight_scale_starts_when_quantization_begins():
    layer = qnn.QuantLinear(1, 1, bias=False, weight_quant=Int8WeightPerChannelLearned, weight_after=2)
    scales = []
    for step in range(1, 6):
        with torch.no_grad():
            layer.weight.fill_(1.27 * step)
        layer(torch.ones(1))
        scales.append(layer.weight_quant.scale().item())
    assert scales == pytest.approx([0.01, 0.02, 0.03, 0.03, 0.03])


def test_a_given_start_is_kept():
    quant = resolve(Int8Act(scaling="learned", statistic="abs_max", max_value=1.27, narrow_range=True, after=2))
    for _ in range(3):
        quant(torch.tensor([99.0]))
    assert quant.scale().item() == pytest.approx(0.01)


def test_training_goes_on_from_a_checkpoint():
    whole, half, resumed = model(), model(), model()
    xs = inputs(8)
    for x in xs:
        whole(x)
    for x in xs[:3]:
        half(x)
    resumed.load_state_dict(half.state_dict())
    assert counts(resumed) == [3, 3, 3]
    for x in xs[3:]:
        resumed(x)
    found, expected = resumed.state_dict(), whole.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_files_without_a_clock_and_models_without_one():
    plain = nn.Sequential(qnn.QuantReLU(), qnn.QuantLinear(4, 2))
    delayed = nn.Sequential(qnn.QuantReLU(after=5), qnn.QuantLinear(4, 2, weight_after=5))
    plain(torch.ones(1, 4))
    delayed(torch.ones(1, 4))
    plain.load_state_dict(delayed.state_dict())  # a delay says nothing of the numbers
    delayed.load_state_dict(plain.state_dict())
    assert counts(delayed) == [0, 0]  # trained further, quantization is delayed anew
    floats = nn.Sequential(nn.ReLU(), nn.Linear(4, 2))
    delayed.load_state_dict(floats.state_dict())
    annealed = qnn.QuantLinear(4, 2, weight_bit_width=Anneal(8, 4, steps=3))
    message = (
        "weight_quant: the file holds int8 narrow, per tensor, float scale, the model is annealed int narrow, per "
        "tensor, float scale. Build the model with the file's quantizers, or load with strict=False to keep this "
        "one's scheme."
    )
    with pytest.raises(RuntimeError, match=re.escape(message)):
        annealed.load_state_dict(qnn.QuantLinear(4, 2).state_dict())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_counts_once(use_reentrant):
    plain, again = model(), model()
    for x in inputs(7):
        out = plain(x)
        same = checkpoint(again, x.clone().requires_grad_(), use_reentrant=use_reentrant)
        assert torch.equal(out, same)
        out.sum().backward()
        same.sum().backward()
        for one, other in zip(plain.parameters(), again.parameters(), strict=True):
            assert (one.grad is None) == (other.grad is None)
            assert one.grad is None or torch.equal(one.grad, other.grad)
    assert counts(again) == [7, 7, 7]


def test_averaged_models():
    trained = model()
    average = AveragedModel(trained)
    moving = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for x in inputs(6):
        trained(x)
        average.update_parameters(trained)
        moving.update_parameters(trained)
    assert counts(average.module) == [6, 6, 6]
    assert average.module.eval()[0].quant_weight().bit_width == 2
    assert 2 <= moving.module.eval()[0].quant_weight().bit_width <= 4  # behind, and still on its way
    assert bool(moving(inputs(1)[0]).isfinite().all())


def test_what_does_not_count():
    quantized = model()
    with qnn.calibrating(quantized):
        quantized(inputs(1)[0])
    quantized[0].quant_weight()
    quantized.eval()(inputs(1)[0])
    with qnn.frozen(quantized), torch.no_grad():
        quantized(inputs(1)[0])
    assert counts(quantized) == [0, 0, 0]


def test_layers_that_share_a_quantizer_count_together():
    first = qnn.QuantLinear(2, 2, weight_bit_width=Anneal(8, 4, steps=4))
    second = qnn.QuantLinear(2, 2, weight_quant=first.weight_quant)
    both = nn.Sequential(first, second)
    for _ in range(2):
        both(torch.ones(1, 2))
    assert first.weight_quant.clock.steps.item() == 4
    assert both.eval()[1].quant_weight().bit_width == 6


def test_a_loop_over_time_is_one_forward():
    layer = qnn.QuantLSTM(3, 4, hidden_quant=Int8Act, hidden_after=2, weight_bit_width=Anneal(8, 4, steps=4))
    for _ in range(2):
        layer(torch.randn(5, 2, 3))
    found = {path: each.clock.steps.item() for path, each in qnn.quantizers_of(layer).items() if each.clock is not None}
    assert found == {"weight_ih_l0_quant": 2, "weight_hh_l0_quant": 2, "hidden_l0_quant": 2}


@pytest.mark.slow
def test_compiled_training_has_two_graphs():
    def build():
        torch.manual_seed(0)
        weight = Int8WeightPerChannelLearned(bit_width=Anneal(8, 2, steps=5), after=2)
        return nn.Sequential(qnn.QuantLinear(4, 2, weight_quant=weight), qnn.QuantReLU(after=3, calibration_steps=2))

    eager, made = build(), build()
    backend = CompileCounterWithBackend("aot_eager")  # whose backward pass works out again what is cheap
    compiled = torch.compile(made, backend=backend, fullgraph=True)
    for x in inputs(6):
        a, b = eager(x), compiled(x)
        assert torch.equal(a, b)
        a.sum().backward()
        b.sum().backward()
        for one, other in zip(eager.parameters(), made.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    assert backend.frame_count == 2  # while ranges are measured, and then
    found, expected = made.state_dict(), eager.state_dict()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, msg=key)


@pytest.mark.parametrize(
    "settings",
    [
        {"percentile": Anneal(100.0, 50.0, steps=4), "bit_width": Anneal(8, 3, steps=4, shape="cosine")},
        {"statistic": "mean_sigma", "sigma": Anneal(3.0, 0.5, steps=4)},
        {"scaling": "calibrated", "percentile": Anneal(100.0, 50.0, steps=4), "momentum": Anneal(1.0, 0.5, steps=4)},
    ],
)
def test_compiled_statistics_are_those_of_eager_mode(settings):
    quantizer = Int8Act(**{"scaling": "statistic", **settings})
    eager, made = resolve(quantizer), resolve(quantizer)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    xs = inputs(6)
    for x in xs:
        found = []
        for call in (eager, compiled):
            leaf = x.clone().requires_grad_()
            out = call(leaf)
            found.append((out, torch.autograd.grad(out.square().sum(), leaf)[0]))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])
    eager.eval()
    made.eval()
    assert torch.equal(eager(xs[0]), compiled(xs[0]))


def test_described():
    layer = qnn.QuantLinear(4, 2, weight_bit_width=Anneal(8, 4, steps=4), weight_after=2)
    layer(torch.ones(1, 4))
    assert describe(layer).find("weight_quant").value == (
        "Int8WeightPerTensor(bit_width=Anneal(8, 4, steps=4), after=2) "
        "(not quantizing in training before step 2, 1 done, bit_width=7 after 1 of 4 steps)"
    )
    assert repr(layer.weight_quant.clock) == "Clock(after=2, Anneal(8, 4, steps=4))"
    assert "weight_quant.clock.steps" in layer.state_dict()
    qnn.finish_schedules(layer)
    assert layer.weight_quant.progress() == ""


def test_moves_off_the_meta_device():
    layer = qnn.QuantLinear(4, 2, weight_after=3, device="meta")
    clock = layer.to_empty(device="cpu").weight_quant.clock
    assert clock.steps.item() == 0
    assert layer.half().weight_quant.clock.steps.dtype == torch.int64


@pytest.mark.parametrize("kind", [BinaryWeightPerTensor, TernaryWeightPerChannel])
def test_transforms_that_round_wait_too(kind):
    layer = qnn.QuantLinear(4, 2, weight_quant=kind, weight_after=2)
    x = torch.randn(3, 4)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    assert [torch.equal(layer(x), expected) for _ in range(3)] == [True, True, False]
    layer = qnn.QuantLinear(4, 2, weight_quant=kind, weight_after=2)
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.ones(2, 4))


def test_other_transforms_go_on():
    layer = qnn.QuantLinear(2, 1, bias=False, weight_quant=Int4WeightPerTensorDoReFa, weight_after=1)
    tanh = layer.weight.detach().tanh()
    torch.testing.assert_close(layer(torch.eye(2)), (tanh / tanh.abs().max()).t())


def test_ordinary_quantizers_have_no_clock():
    layer = qnn.QuantLinear(4, 2)
    assert layer.weight_quant.clock is None
    assert not any("clock" in key for key in layer.state_dict())


@pytest.mark.parametrize("after", [-1, 1.5, True, "soon"])
def test_impossible_delays(after):
    message = f"QuantReLU(): after={after!r} is not possible: expected a whole number of training forwards, 0 or more."
    with pytest.raises(QuantizerError, match=re.escape(message)):
        qnn.QuantReLU(after=after)
