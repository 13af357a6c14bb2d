"""Batch norms: torch's over its argument space, the quantized factors, running statistics, what is refused."""

import copy
import inspect
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.export import ExportError, integers
from bitwright.graph import GraphError, quantize, reestimate_batch_norms
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerChannel,
    Int8WeightPerTensorLearned,
    Int16BiasOwnScale,
    Int32Bias,
)

LAYERS = {
    "1d": (qnn.QuantBatchNorm1d, nn.BatchNorm1d, (4, 3)),
    "1d of sequences": (qnn.QuantBatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    "2d": (qnn.QuantBatchNorm2d, nn.BatchNorm2d, (4, 3, 2, 2)),
    "3d": (qnn.QuantBatchNorm3d, nn.BatchNorm3d, (2, 3, 2, 2, 3)),
}


def message(text):
    return f"^{re.escape(text)}$"


@st.composite
def arguments(draw):
    return {
        "eps": draw(st.floats(1e-6, 1.0)),
        "momentum": draw(st.none() | st.floats(0.0, 1.0)),
        "affine": draw(st.booleans()),
        "track_running_stats": draw(st.booleans()),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }


def filled(torchs):
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter.copy_(torch.linspace(-1, 2, parameter.numel()))
    return torchs


def batches(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(shape, generator=generator).to(dtype) + 1 for _ in range(3)]


@given(st.sampled_from(sorted(LAYERS)), arguments())
def test_without_quantizers_it_is_torchs(name, made):
    ours, torchs, shape = LAYERS[name]
    torchs = filled(torchs(3, **made))
    ours = ours(3, **made, weight_quant=None)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    for x in batches(shape, made["dtype"]):
        assert torch.equal(ours(x), torchs(x))
    x = batches(shape, made["dtype"])[-1]
    assert torch.equal(ours.eval()(x), torchs.eval()(x))
    for key, each in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], each), key


@given(st.sampled_from(sorted(LAYERS)), arguments())
def test_of_many_bits_it_is_close_to_torchs(name, made):
    """Factors and offsets of 16 bits: the same statistics, outputs within the steps of these."""
    ours, torchs, shape = LAYERS[name]
    torchs = filled(torchs(3, **made))
    ours = ours(3, **made, weight_bit_width=16, bias_quant=Int16BiasOwnScale)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    for x in batches(shape, made["dtype"]):
        y = x.clone().requires_grad_()
        out, expected = ours(y), torchs(x)
        torch.testing.assert_close(out, expected, rtol=0, atol=5e-3)
        out.sum().backward()
        assert torch.isfinite(y.grad).all()
    x = batches(shape, made["dtype"])[-1]
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=0, atol=5e-3)
    for key, each in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], each)


@pytest.mark.skipif(
    "bias" not in inspect.signature(nn.BatchNorm1d).parameters, reason="norms without a bias are young in torch"
)
@pytest.mark.parametrize("name", LAYERS)
def test_without_a_bias(name):
    ours, torchs, shape = LAYERS[name]
    torchs = filled(torchs(3, bias=False))
    ours = ours(3, bias=False, weight_bit_width=16)
    ours.load_state_dict(torchs.state_dict(), strict=True)
    x = batches(shape, torch.float32)[0]
    torch.testing.assert_close(ours(x), torchs(x), rtol=0, atol=5e-3)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=0, atol=5e-3)


def known():
    """A batch norm with round numbers: factors 2 and -1, offsets 1 - 3 * 2 and 0.5 + 1."""
    norm = nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([3.0, 1.0]))
        norm.running_var.copy_(torch.tensor([0.25, 4.0]))
        norm.weight.copy_(torch.tensor([1.0, -2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.5]))
    return norm.eval()


def test_the_integers_are_those_of_factor_and_offset():
    norm = qnn.QuantBatchNorm2d(2, eps=0.0, weight_scale=0.5, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.25))
    norm.load_state_dict(known().state_dict(), strict=False)
    norm.eval()(torch.ones(1, 2, 1, 1))
    assert norm.int_weight().tolist() == [4, -2]
    assert norm.int_bias().tolist() == [-40, 12]
    assert norm.quant_bias().value.tolist() == [-5.0, 1.5]
    x = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1)
    assert norm(x).flatten().tolist() == [2 * 1 - 5.0, -3 + 1.5]


def test_products_lie_on_a_grid():
    norm = qnn.QuantBatchNorm2d(
        3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, return_quant_tensor=True
    )
    x = torch.randn(4, 3, 5, 5)
    for training in (True, False):
        out = norm.train(training)(x)
        assert isinstance(out, QuantTensor)
        assert out.scale.shape == (1, 3, 1, 1)
        assert out.is_valid
    per_channel = qnn.QuantIdentity(act_quant=Int8ActPerChannel, return_quant_tensor=True)(x)
    norm.input_quant = None
    out = norm(per_channel)
    assert out.is_valid
    torch.testing.assert_close(out.scale, per_channel.scale * norm.quant_weight().scale.reshape(1, 3, 1, 1))


def test_one_result_in_training_and_evaluation_of_the_same_statistics():
    norm = qnn.QuantBatchNorm1d(3, momentum=1.0, weight_bit_width=4)
    x = torch.randn(1000, 3)
    torch.testing.assert_close(norm(x), norm.eval()(x), rtol=0, atol=5e-3)


def test_evaluation_changes_nothing():
    norm = qnn.QuantBatchNorm1d(3).eval()
    before = copy.deepcopy(norm.state_dict())
    norm(torch.randn(5, 3))
    assert all(torch.equal(each, before[key]) for key, each in norm.state_dict().items())


def test_frozen():
    norm = qnn.QuantBatchNorm1d(3, track_running_stats=False).eval()
    tracked = qnn.QuantBatchNorm1d(3).eval()
    one, other = torch.randn(5, 3), 4 * torch.randn(5, 3)
    expected = [each(x) for each in (norm, tracked) for x in (one, other)]
    with qnn.frozen(nn.Sequential(norm, tracked)), torch.no_grad():
        found = [each(x) for each in (norm, tracked) for x in (one, other)]
    assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_statistics_that_change_in_a_frozen_model():
    """As when they are measured again."""
    norm = qnn.QuantBatchNorm1d(3).eval()
    with qnn.frozen(norm), torch.no_grad():
        before = norm(torch.ones(5, 3))
        norm.running_var.fill_(4.0)
        torch.testing.assert_close(norm(torch.ones(5, 3)), before / 2)


@pytest.mark.parametrize("one_pass", [False, True])
def test_statistics_are_measured_again_as_torchs(one_pass):
    torch.manual_seed(0)
    torchs = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    ours = nn.Sequential(
        qnn.QuantBatchNorm1d(3, weight_bit_width=16), copy.deepcopy(torchs[1]), qnn.QuantBatchNorm1d(3)
    )
    data = [torch.randn(8, 3) * 2 + 1 for _ in range(3)]
    for model in (torchs, ours):
        reestimate_batch_norms(model, data, one_pass=one_pass)
    for index in (0, 2):
        torch.testing.assert_close(ours[index].running_mean, torchs[index].running_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours[index].running_var, torchs[index].running_var, rtol=1e-3, atol=1e-3)


def test_empty_batches():
    norm = qnn.QuantBatchNorm2d(3)
    assert norm(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 2, 2)
    assert norm.running_mean.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    norm = qnn.QuantBatchNorm2d(3, weight_bit_width=16, dtype=dtype)
    torchs = nn.BatchNorm2d(3, dtype=dtype)
    x = torch.randn(8, 3, 4, 4).to(dtype)
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x).float(), torchs(x).float(), rtol=0, atol=0.05)


def test_a_learned_scale_starts_from_the_loaded_statistics():
    for affine in (True, False):
        norm = qnn.QuantBatchNorm2d(2, affine=affine, weight_quant=Int8WeightPerTensorLearned).eval()
        norm(torch.ones(1, 2, 1, 1))
        source = nn.BatchNorm2d(2, affine=affine)
        source.running_var.fill_(1 / 16)
        norm.load_state_dict(source.state_dict(), strict=True)
        assert norm.int_weight().tolist() == [127, 127]


NORM = f"Quant{nn.BatchNorm2d(3, track_running_stats=False)}"


def test_without_running_statistics_there_are_no_integers():
    norm = qnn.QuantBatchNorm2d(3, track_running_stats=False)
    text = (
        f"{NORM}: its factors and offsets are those of each batch, as track_running_stats=False keeps no statistics. "
        "Write track_running_stats=True."
    )
    with pytest.raises(QuantizerError, match=message(text)):
        norm.int_weight()
    with pytest.raises(ExportError, match=re.escape("0.weight_quant: its scale follows the input (StatisticScaling)")):
        integers(nn.Sequential(norm), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (
            torch.ones(1, 3, 1, 1),
            "QuantBatchNorm2d: a batch norm in training needs more than one value for each channel, and the input has "
            "the shape (1, 3, 1, 1).",
        ),
        (
            torch.ones(1, 2, 4, 4),
            "QuantBatchNorm2d: the input has the shape (1, 2, 4, 4), and dimension 1 should count 3 channels.",
        ),
    ],
)
def test_inputs_that_are_refused(x, text):
    with pytest.raises(QuantizerError, match=message(text)):
        qnn.QuantBatchNorm2d(3)(x)
    with pytest.raises(ValueError, match=re.escape("expected 4D input (got 2D input)")):
        qnn.QuantBatchNorm2d(3)(torch.ones(2, 3))


def test_it_does_not_become_a_float_layer_unseen():
    model = nn.Sequential(qnn.QuantBatchNorm2d(3))
    text = (
        "QuantBatchNorm2d: nn.SyncBatchNorm.convert_sync_batchnorm would put a float layer in the place of this one. "
        "Convert the float model, train it, and load its state dict into a model with this layer."
    )
    with pytest.raises(QuantizerError, match=message(text)):
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model[0]) is qnn.QuantBatchNorm2d
    assert model[0].load_state_dict(nn.SyncBatchNorm(3).state_dict(), strict=True)
    plain = nn.Sequential(qnn.QuantBatchNorm2d(3, weight_quant=None))
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(plain)[0]) is nn.SyncBatchNorm


def test_rules():
    model = nn.Sequential(nn.ReLU(), known())
    x = torch.randn(2, 2, 4, 4)
    quantized = quantize(model, {nn.BatchNorm2d: {"weight_quant": Int8WeightPerChannel}})
    assert type(quantized[1]) is qnn.QuantBatchNorm2d
    torch.testing.assert_close(quantized.eval()(x), model.eval()(x))


class Shifted(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + 1


def test_a_subclass_with_its_own_forward_stays_float_by_name():
    with pytest.raises(
        GraphError, match=re.escape("Shifted computes in its own way, which QuantBatchNorm2d can't run")
    ):
        quantize(nn.Sequential(Shifted(3)), {nn.BatchNorm2d: {}})


@pytest.mark.slow
def test_compiled():
    norm = qnn.QuantBatchNorm2d(3, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for x in batches((2, 3, 4, 4), torch.float32):
        torch.testing.assert_close(compiled(x), norm(x))
    torch.testing.assert_close(twin.running_var, norm.running_var)
    assert twin.num_batches_tracked == norm.num_batches_tracked == 3
