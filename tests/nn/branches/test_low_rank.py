import copy
import pickle
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright import export
from bitwright.export import ExportError
from bitwright.qcore import QuantizerError
from bitwright.quantizers import Int8Act, Int8WeightPerChannel, Int32Bias

QUANTIZED = {"weight_bit_width": 3, "input_quant": Int8Act, "input_scale": 0.0625}


def branch(*down, outputs):
    return qnn.LowRank(torch.randn(down) * 0.1, torch.randn(outputs, 2) * 0.1)


def corrected(layer):
    """A layer with a branch of rank 2."""
    shape = list(layer.weight.shape)
    transposed = "Transpose" in type(layer).__name__
    outputs = shape[1 if transposed else 0]
    shape[1 if transposed else 0] = 2
    layer.correction = branch(*shape, outputs=outputs)
    return layer


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        corrected(qnn.QuantConv2d(2, 4, 3, padding="same", padding_mode="reflect", **QUANTIZED)),
        qnn.QuantReLU(scale=0.0625),
        corrected(qnn.QuantConvTranspose2d(4, 3, 2, stride=2, **QUANTIZED)),
        nn.Flatten(2),
        corrected(
            qnn.QuantLinear(
                64,
                5,
                weight_quant=Int8WeightPerChannel,
                bias_quant=Int32Bias,
                output_quant=Int8Act,
                output_scale=0.125,
                **QUANTIZED,
            )
        ),
    ).eval()


X = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda **how: qnn.QuantLinear(6, 5, **how), (2, 3, 6)),
    "conv1d": (lambda **how: qnn.QuantConv1d(3, 4, 3, stride=2, padding=1, padding_mode="circular", **how), (2, 3, 8)),
    "conv2d": (lambda **how: qnn.QuantConv2d(4, 6, 3, dilation=2, **how), (2, 4, 7, 7)),
    "conv3d": (lambda **how: qnn.QuantConv3d(2, 3, 2, **how), (1, 2, 3, 3, 3)),
    "conv_transpose1d": (lambda **how: qnn.QuantConvTranspose1d(3, 4, 3, stride=2, **how), (2, 3, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_product_of_both_matrices_added_to_the_weight(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = corrected(make(weight_bit_width=3).double()), torch.randn(shape, dtype=torch.float64)
    layer.correction.double()
    down, up = layer.correction.down.detach(), layer.correction.up.detach().flatten(1)
    both = torch.einsum("or,cr...->co...", up, down) if "transpose" in name else torch.einsum("or,r...->o...", up, down)
    whole = copy.deepcopy(layer)
    del whole.correction
    with torch.no_grad():
        whole.weight.copy_(layer.take("weight")[0] + both)
    whole.weight_quant = None
    torch.testing.assert_close(layer(x), whole(x), rtol=1e-12, atol=1e-12)


def test_it_stays_with_the_model():
    model = network()
    out = model(X)
    assert torch.equal(copy.deepcopy(model)(X), out)
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), out)
    with qnn.frozen(model):
        assert torch.equal(model(X), out)
    plain = copy.deepcopy(model)
    for layer in plain[::2]:  # type: ignore[attr-defined]
        del layer.correction
    assert not torch.equal(plain(X), out)
    with qnn.unquantized(model), qnn.unquantized(plain):
        assert torch.equal(model(X), plain(X))
    assert plain.load_state_dict(model.state_dict()).missing_keys == []
    assert torch.equal(plain(X), out)
    assert repr(plain[4].correction) == "LowRank(rank=2)"
    assert plain[4].correction.rank == 2


@pytest.mark.slow
def test_it_compiles():
    model = network()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(X), model(X))


def test_it_learns():
    model = network()
    model(X).sum().backward()
    assert all(bool(each.grad.abs().sum() > 0) for each in model[0].correction.parameters())


@pytest.mark.parametrize(
    "exported", [pytest.param(export.export_onnx_qcdq, marks=pytest.mark.slow), export.export_onnx_qdq]
)
def test_onnx_computes_it(exported):
    pytest.importorskip("onnxruntime")
    model = network()
    report = export.verify_onnx(model, exported(model, X), X)
    assert report.differences == 0


def test_integers_name_it():
    pytest.importorskip("onnx")
    model = nn.Sequential(network()[4])
    x = X.flatten(2).repeat(1, 1, 4)
    found = export.integers(model, x)
    assert found["0"].weight.codes.shape == (5, 64)
    assert "0.correction (LowRank): mm" in [str(each) for each in found.floats]
    remedy = "A low-rank correction is made of floats: del 0.correction, or use export_onnx_qcdq."
    with pytest.raises(ExportError, match=re.escape(f"0.correction (LowRank): mm. {remedy}")):
        export.export_onnx_integer(model, x)


def test_no_grid_of_products():
    layer = qnn.QuantLinear(4, 3, bias=False, return_quant_tensor=True, **QUANTIZED)
    corrected(layer)
    message = (
        "QuantLinear(in_features=4, out_features=3, bias=False): return_quant_tensor=True needs outputs that lie on a "
        "grid, and the low-rank correction adds floats. Remove it, del layer.correction, or output_quant=Int8Act to "
        "quantize the output."
    )
    with pytest.raises(QuantizerError, match=f"^{re.escape(message)}$"):
        layer(torch.ones(4))
