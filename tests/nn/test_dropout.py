"""Dropout: torch's, and grids are kept."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act

LAYERS = {
    "QuantDropout": (4, 6),
    "QuantDropout1d": (4, 6, 3),
    "QuantDropout2d": (4, 6, 3, 3),
    "QuantDropout3d": (4, 6, 2, 3, 3),
}


def values(name):
    return torch.randn(LAYERS[name], generator=torch.Generator().manual_seed(0))


def on_grid(name):
    return qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)(values(name))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_torchs(name, p, inplace):
    ours, torchs = getattr(qnn, name)(p, inplace), getattr(nn, name.removeprefix("Quant"))(p, inplace)
    for training in (True, False):
        outs = []
        for layer in (ours.train(training), torchs.train(training)):
            torch.manual_seed(1)
            outs.append(layer(values(name)))
        assert torch.equal(*outs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_quant_tensor_passes_in_evaluation(name):
    q = on_grid(name)
    out = getattr(qnn, name)(0.5).eval()(q)
    assert torch.equal(out.int(), q.int())
    assert out.scale == 0.25


@pytest.mark.parametrize("name", LAYERS)
def test_in_training_the_step_grows_with_the_values(name):
    q = on_grid(name)
    torch.manual_seed(1)
    out = getattr(qnn, name)(0.5)(q)
    assert out.scale == 0.5
    kept = out.value != 0
    assert kept.any()
    assert not kept.all()
    assert torch.equal(out.int()[kept], q.int()[kept])


def test_what_is_kept_can_be_quantized():
    dropout = qnn.QuantDropout(0.5, act_quant=Int8Act, scale=0.25, return_quant_tensor=True)
    torch.manual_seed(1)
    out = dropout(torch.full((100,), 0.3))
    assert sorted({*out.int().tolist()}) == [0, 2]  # 0.6, in steps of 0.25
    assert {*dropout.eval()(torch.full((100,), 0.3)).int().tolist()} == {1}


def test_a_quantized_input_stays_on_its_grid():
    dropout = qnn.QuantDropout(0.5, input_quant=Int8Act, input_scale=0.25, return_quant_tensor=True).eval()
    out = dropout(torch.tensor([0.3, -9.0]))
    assert isinstance(out, QuantTensor)
    assert out.int().tolist() == [1, -36]


def test_bits_are_no_flag():
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantDropout(0.5, 8)
    assert str(caught.value) == "QuantDropout: inplace=8 is not possible: expected True or False."
