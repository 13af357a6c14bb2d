"""Files of one model: the same bytes from run to run, and read by later versions."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int8Act, Int32Bias

FORMER = Path(__file__).parent / "files" / "before_targets.onnx"  # written by bitwright d0a776d, torch 2.13


def small():
    layer = qnn.QuantLinear(4, 2, weight_bit_width=4, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.0625))
    with torch.no_grad():
        layer.weight.copy_(torch.arange(8.0).reshape(2, 4) / 4 - 0.75)
        layer.bias.copy_(torch.tensor([0.5, -0.25]))
    return nn.Sequential(layer, qnn.QuantReLU(scale=0.125)).eval()


def inputs():
    return torch.linspace(-8, 8, 64).reshape(16, 4)


def written(path):
    export_onnx_qdq(small(), inputs(), path)


def test_former_file_is_verified_today():
    report = verify_onnx(small(), FORMER, inputs()[:1])
    assert report.ok
    assert report.output_error == 0


def test_other_model_is_not_the_former_file():
    other = small()
    with torch.no_grad():
        other[0].weight[0, 0] = 0.75
    assert not verify_onnx(other, FORMER, inputs()[:1]).ok


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    root = Path(__file__).parents[3]
    code = "import sys; from tests.export.onnx.test_same_file import written; written(sys.argv[1])"
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path], cwd=root, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed, path in zip("12", paths, strict=True)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes()
