"""Codes of number formats whose levels are no integers: taken out, saved, read back, written as C."""

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    Integers,
    accumulator_report,
    compare_integers,
    export_onnx_integer,
    integers,
    run_integers,
)
from bitwright.quantizers import (
    BinaryWeightPerTensor,
    Fp6e2m3WeightPerTensor,
    Fp8e4m3Act,
    Fp8e4m3WeightPerChannel,
    Fp8e5m2WeightPerTensor,
    Int8Act,
    MXFloat4e2m1Weight,
    MXFloat6e3m2Weight,
    MXFloat8e4m3Act,
    NF4Weight,
    NVFloat4Weight,
)

FORMATS = {  # bits of a code, the name of the levels
    BinaryWeightPerTensor: (1, "binary"),
    Fp6e2m3WeightPerTensor: (6, "e2m3fn"),
    Fp8e4m3WeightPerChannel: (8, "e4m3fn"),
    Fp8e5m2WeightPerTensor: (8, "e5m2"),
    MXFloat4e2m1Weight: (4, "e2m1fn"),
    MXFloat6e3m2Weight: (6, "e3m2fn"),
    NF4Weight: (4, "nf4"),
    NVFloat4Weight: (4, "e2m1fn"),
}


def _found(quantizer: Any, **inputs: Any) -> tuple[nn.Sequential, Integers]:
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(72, 4, weight_quant=quantizer, **inputs)).eval()
    return model, integers(model, torch.randn(3, 72))


@pytest.mark.parametrize("quantizer", FORMATS, ids=str)
def test_codes_and_levels_are_the_weight(quantizer: Any) -> None:
    bits, name = FORMATS[quantizer]
    model, found = _found(quantizer)
    weight = found["0"].weight
    assert weight is not None
    assert weight.codes is not None
    assert weight.codes.dtype == torch.uint8
    assert weight.grid.levels is not None
    assert (weight.grid.bit_width, weight.grid.number_format, len(weight.grid.levels)) == (bits, name, 2**bits)
    assert weight.values is not None
    assert torch.equal(weight.values, model[0].weight_quant(model[0].weight))
    assert f"(4, 72) {name}" in str(found)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("quantizer", FORMATS, ids=str)
def test_files_hold_the_bits_of_the_format(quantizer: Any, kind: str, tmp_path: Path) -> None:
    bits, _ = FORMATS[quantizer]
    _, found = _found(quantizer, input_quant=Int8Act(scale=0.1))
    path = tmp_path / "model"
    getattr(found, f"save_{kind}")(path)
    assert Integers.load(path) == found
    if kind == "npz":
        numpy = pytest.importorskip("numpy")
        with numpy.load(path) as archive:
            assert archive["0.weight_quant.codes"].nbytes == math.ceil(4 * 72 * bits / 8)
            described = json.loads(archive["bitwright"].tobytes())
            assert described["version"] == 3
            assert "number_format" not in described["quantizers"]["0.input_quant"]


def test_integers_alone_are_as_before(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    model = nn.Sequential(qnn.QuantLinear(4, 2))
    integers(model, torch.ones(1, 4)).save_npz(tmp_path / "model")
    with numpy.load(tmp_path / "model") as archive:
        assert json.loads(archive["bitwright"].tobytes())["version"] == 2
        assert sorted(archive) == [f"0.weight_quant.{each}" for each in ("codes", "scale", "zero_point")] + [
            "bitwright"
        ]


def test_another_file_of_levels_differs() -> None:
    _, one = _found(NF4Weight)
    _, other = _found(NF4Weight)
    weight = other["0"].weight
    assert weight is not None
    assert weight.grid.levels is not None
    assert one == other
    weight.grid.levels[3] += 1
    assert one != other


def test_activations_have_levels_too() -> None:
    _, found = _found(Fp8e4m3WeightPerChannel, input_quant=Fp8e4m3Act(scale=0.01))
    grid = found["0"].quantizers["input"].grid
    assert grid.number_format == "e4m3fn"
    assert grid.scale.item() == pytest.approx(0.01)
    assert found["0"].quantizers["input"].codes is None
    assert found.floats == ()  # no integers came before


def test_a_header_has_codes_and_their_levels(tmp_path: Path) -> None:
    model = nn.Sequential(qnn.QuantLinear(2, 1, bias=False, weight_quant=Fp8e5m2WeightPerTensor, weight_scale=0.5))
    model[0].weight.data.copy_(torch.tensor([[1.0, -0.75]]))
    text = integers(model, torch.ones(1, 2)).to_c_header("tiny")
    assert "/* Where there are LEVELS, integers are codes: value = (levels[code] - zero point) * scale. */" in text
    assert "#define L0_WEIGHT_BITS 8\n#define L0_WEIGHT_SIGNED 0\n" in text
    assert "static const uint8_t L0_WEIGHT[2] = {\n    64, 190,\n};" in text  # 2 and -1.5 in E5M2
    assert "static const float L0_WEIGHT_LEVELS[256] = {0x0.0p+0f, 0x1.0000000000000p-16f, " in text
    assert "INFINITY, NAN, NAN, NAN, -0x0.0p+0f" in text
    compiler = shutil.which("cc")
    if compiler is not None:
        (tmp_path / "tiny.h").write_text(text)
        program = '#include <stdio.h>\n#include "tiny.h"\nint main(void) { for (int i = 0; i < 2; i++) '
        program += 'printf("%g ", L0_WEIGHT_LEVELS[L0_WEIGHT[i]] * L0_WEIGHT_SCALE[0]); return 0; }'
        (tmp_path / "tiny.c").write_text(program)
        subprocess.run([compiler, "-std=c99", "-o", tmp_path / "tiny", tmp_path / "tiny.c"], check=True)
        said = subprocess.run([tmp_path / "tiny"], check=True, capture_output=True, text=True).stdout
        assert said == "1 -0.75 "


def test_a_header_has_packed_codes_and_takes_them_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(7, 3, bias=False, weight_quant=Fp6e2m3WeightPerTensor)).eval()
    found = integers(model, torch.ones(1, 7))
    text = found.to_c_header("tiny")
    assert "static const uint8_t L0_WEIGHT[16] = {" in text  # 21 codes of 6 bits
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "tiny.h").write_text(text)
    program = '#include <stdio.h>\n#include "tiny.h"\nint main(void) { for (int i = 0; i < 21; i++) '
    program += 'printf("%u ", bitwright_code(L0_WEIGHT, L0_WEIGHT_BITS, i)); return 0; }'
    (tmp_path / "tiny.c").write_text(program)
    subprocess.run([compiler, "-std=c99", "-Wall", "-Werror", "-o", tmp_path / "tiny", tmp_path / "tiny.c"], check=True)
    said = subprocess.run([tmp_path / "tiny"], check=True, capture_output=True, text=True).stdout
    weight = found["0"].weight
    assert weight is not None
    assert weight.codes is not None
    assert [int(each) for each in said.split()] == weight.codes.flatten().tolist()


def test_codes_of_weights_come_without_a_grid_of_the_input() -> None:
    model, found = _found(MXFloat4e2m1Weight, input_quant=MXFloat8e4m3Act)
    assert list(found["0"].quantizers) == ["weight"]
    message = (
        "run_integers: 2 quantizers of this model can't be given as integers:\n  0.input_quant: its levels are e4m3fn, "
        "and run_integers computes with integers. Quantize it to integers, or take its codes: integers(model, example)."
    )
    with pytest.raises(ExportError, match=re.escape(message)):
        run_integers(model, torch.ones(1, 72))


@pytest.mark.parametrize(
    "function", [run_integers, compare_integers, accumulator_report], ids=lambda each: each.__name__
)
def test_what_computes_with_integers_refuses_other_levels_by_name(function: Any) -> None:
    model, found = _found(NF4Weight, input_quant=Int8Act(scale=0.1))
    message = (
        f"{function.__name__}: 1 quantizer of this model can't be given as integers:\n  0.weight_quant: its levels are "
        f"nf4, and {function.__name__} computes with integers. Quantize it to integers, or take its codes: "
        "integers(model, example)."
    )
    with pytest.raises(ExportError, match=re.escape(message) + "$"):
        function(model, torch.ones(1, 72))
    if function is not accumulator_report:
        with pytest.raises(ExportError, match=re.escape(message) + "$"):
            function(model, torch.ones(1, 72), integers=found)


def test_the_integer_dialect_refuses_other_levels_by_name() -> None:
    model, _ = _found(NF4Weight, input_quant=Int8Act(scale=0.1))
    with pytest.raises(ExportError, match=r"0\.weight_quant: its levels are nf4, and the integer dialect has integers"):
        export_onnx_integer(model, torch.ones(1, 72))
