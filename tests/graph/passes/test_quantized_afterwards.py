"""What passes are for: the quantized model is nearer to the float one."""

import copy
import pickle

import torch
from torch import nn

from bitwright.graph import W8A8, absorb_biases, calibrate, equalize, fold_batch_norms, quantize, smooth, split_channels
from bitwright.quantizers import Int4WeightPerTensor, Int8WeightPerTensor


def decibels(model, rules, reference, x):
    """The signal-to-quantization-noise ratio of a quantized model."""
    quantized = quantize(model, rules, examples=x[:2])
    if any(module.input_quant is not None for module in quantized.modules() if hasattr(module, "input_quant")):
        calibrate(quantized, [x])
    with torch.no_grad():
        expected, got = reference(x), quantized.eval()(x)
    return float(10 * torch.log10(expected.square().sum() / (expected - got).square().sum()))


def test_smooth_with_outliers_in_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)).eval()
    model[0].weight.data[3] = 40.0
    x = torch.randn(128, 32)
    before, after = (decibels(each, W8A8, model, x) for each in (model, smooth(model, x)))
    assert after > before + 6


def network():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    model = nn.Sequential(*layers).eval()
    model[1].weight.data.copy_(torch.logspace(-2, 1, 8))
    model[1].bias.data.copy_(torch.linspace(0, 40, 8) * torch.logspace(-2, 1, 8))
    return model, torch.randn(8, 3, 8, 8)


def test_equalize_with_one_scale_for_a_tensor():
    model, x = network()
    model[5].weight.data.div_(torch.logspace(-2, 1, 8)[:, None, None])  # what is small here is large there
    rules = {nn.Conv2d: {"weight_quant": Int8WeightPerTensor}}
    folded = fold_batch_norms(model, x)
    before, after = (decibels(each, rules, model, x) for each in (folded, equalize(folded, x)))
    assert after > before + 6


def test_absorbed_biases_narrow_activations():
    model, x = network()
    folded = fold_batch_norms(model, x)
    absorbed = absorb_biases(folded, x)
    assert absorbed.report.figures["output moved"] < 1e-5
    with torch.no_grad():
        before, after = (each[:3](x).amax() for each in (folded, absorbed))
    assert after < 0.2 * before


def test_split_channels_with_one_scale_for_a_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    model[2].weight.data[:, 5] *= 8
    x = torch.randn(128, 16)
    rules = {"2*": {"weight_quant": Int4WeightPerTensor}}
    before, after = (decibels(each, rules, model, x) for each in (model, split_channels(model, x, ratio=0.1)))
    assert after > before + 3


def test_models_with_reports_copy_and_pickle():
    model, x = network()
    equalized = equalize(fold_batch_norms(model, x), x)
    for other in (copy.deepcopy(equalized), pickle.loads(pickle.dumps(equalized))):
        assert other.report == equalized.report
        assert torch.equal(other(x), equalized(x))
        assert torch.equal(other[0].folded_mean, equalized[0].folded_mean)
