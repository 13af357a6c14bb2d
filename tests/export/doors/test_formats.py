"""Every format with every granularity through every door: it agrees, or is refused by name before tracing."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import supports
from tests.export.doors.ways import DOORS, goes_out, refusal
from tests.quantizers.matrix import INPUTS, layer, role
from tests.quantizers.shipped import COMPLETE

pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")
pytestmark = pytest.mark.filterwarnings("ignore:.* is clipped:UserWarning")  # a bias of 8 bits may be

FEW = ["BinaryWeightPerChannel", "Fp8e4m3Act", "MXFloat4e2m1Weight", "Int8ActPerChannel"]
CASES = [
    pytest.param(name, door, marks=[] if name in FEW else pytest.mark.slow, id=f"{name}-{door}")
    for name in COMPLETE
    if role(COMPLETE[name]) != "gradient"
    for door in DOORS
]


def samples(seed, count):
    return (torch.randn(count, INPUTS, generator=torch.Generator().manual_seed(seed)),)


def model_of(quantizer):
    """A layer with the quantizer, whose other tensors are integers of 8 bits and whose bias is none of floats."""
    entry = qnn.QuantIdentity(scale=0.05, return_quant_tensor=True) if role(quantizer) == "weight" else nn.Identity()
    options = {} if role(quantizer) == "bias" or quantizer.__name__.startswith("Trunc") else {"bias": False}
    model = nn.Sequential(entry, layer(quantizer, **options))
    qnn.finish_calibration(model.eval())
    return model


@pytest.mark.parametrize(("name", "door"), CASES)
def test_it_goes_out_or_is_refused(name, door, tmp_path, monkeypatch):
    model, x = model_of(COMPLETE[name]), samples(1, 8)
    said = supports(model, door, x)
    if said.ok:
        goes_out(door, model, x, samples(2, 8), tmp_path)
    else:
        blocked = [(row.path, f"{row.what}. {row.remedy}") for row in said.rows]
        assert refusal(door, model, x, tmp_path, monkeypatch) == blocked
