"""Upsampling: torch's; the nearest values keep their grid, means get one."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.qcore import QuantizerError, QuantTensor
from bitwright.quantizers import Int8Act

SHAPES = {1: (2, 3, 5), 2: (2, 3, 4, 5), 3: (2, 3, 3, 4, 5)}
MODES = {
    "nearest": (1, 2, 3),
    "nearest-exact": (1, 2, 3),
    "linear": (1,),
    "bilinear": (2,),
    "bicubic": (2,),
    "trilinear": (3,),
}
CASES = [(mode, dims) for mode, ranks in MODES.items() for dims in ranks]


def values(dims):
    return torch.randn(SHAPES[dims], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("mode", "dims"), CASES)
def test_without_a_quantizer_it_is_torchs(mode, dims):
    corners = [None] if "nearest" in mode else [None, False, True]
    for size, factor in ((7, None), (None, 2), (None, 1.7), (SHAPES[dims][2:], None)):
        for align in corners:
            for recompute in (None, factor is not None):
                arguments = (size, factor, mode, align, recompute)
                expected = nn.Upsample(*arguments)(values(dims))
                assert torch.equal(qnn.QuantUpsample(*arguments)(values(dims)), expected)


@pytest.mark.parametrize(("mode", "dims"), CASES)
def test_the_nearest_is_on_the_grid(mode, dims):
    q = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)(values(dims))
    out = qnn.QuantUpsample(scale_factor=2, mode=mode)(q)
    assert isinstance(out, QuantTensor) == mode.startswith("nearest")
    assert torch.equal(torch.as_tensor(out), nn.Upsample(scale_factor=2, mode=mode)(q.value))


def test_literal_numbers():
    x = torch.tensor([[[1.0, 2.1]]])
    up = qnn.QuantUpsample(None, 2, "linear", act_quant=Int8Act, scale=0.125, return_quant_tensor=True)
    assert up(x).int().tolist() == [[[8, 10, 15, 17]]]  # 1, 1.275, 1.825 and 2.1
    nearest = qnn.QuantUpsample(None, 2, input_quant=Int8Act, input_scale=0.5, return_quant_tensor=True)
    assert nearest(x).int().tolist() == [[[2, 2, 4, 4]]]


@pytest.mark.parametrize("keywords", [{"size": (7, 9)}, {"scale_factor": 2}, {"scale_factor": (2, 3)}])
def test_the_classes_for_images(keywords):
    x = values(2)
    for name, quantizer in (("UpsamplingNearest2d", None), ("UpsamplingBilinear2d", Int8Act)):
        layer = getattr(qnn, f"Quant{name}")
        assert (layer(**keywords).act_quant is None) == (quantizer is None)
        assert torch.equal(layer(**keywords, act_quant=None)(x), getattr(nn, name)(**keywords)(x))


def test_means_need_a_quantizer_to_lie_on_a_grid():
    with pytest.raises(QuantizerError) as caught:
        qnn.QuantUpsample(None, 2, "bilinear", input_quant=Int8Act, return_quant_tensor=True)
    assert str(caught.value) == (
        "QuantUpsample(scale_factor=2.0, mode='bilinear'): return_quant_tensor=True needs act_quant, which is None. "
        "Write act_quant=Int8Act."
    )
