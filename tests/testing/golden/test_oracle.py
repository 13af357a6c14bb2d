"""The golden vectors are what their definitions say, and what the library computes."""

import json
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from bitwright.qcore import ROUNDINGS, Grid, Integers, composed_fake_quant, fake_quant, int_bounds, quantize_to_int
from bitwright.testing.golden import make, oracle
from bitwright.testing.golden.levels import LEVELS
from bitwright.testing.golden.oracle import FORMATS, golden_vectors

names = pytest.mark.parametrize("name", FORMATS)


@names
def test_files_are_what_the_oracle_makes(name):
    kept = (oracle.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(kept)["version"] == oracle.VERSION
    assert kept == oracle.written(FORMATS[name]), (
        "run python -m bitwright.testing.golden.make, and look at the difference"
    )


def test_script_writes_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(make, "FOLDER", tmp_path / "golden")
    make.main()
    for path in oracle.FOLDER.iterdir():
        assert (tmp_path / "golden" / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_no_file_is_left_over():
    assert {path.stem for path in oracle.FOLDER.iterdir()} == {*FORMATS, *LEVELS, "blocks"}


@names
def test_ranges(name):
    form = FORMATS[name]
    assert form.bounds == int_bounds(form.bit_width, form.signed, form.narrow_range)


@names
def test_library_computes_the_golden_codes_and_values(name):
    """To the bit: integers, and the values of both forms, compared as they are stored."""
    form = FORMATS[name]
    for vector in golden_vectors(name):
        x, scale = torch.from_numpy(vector.x), torch.tensor(vector.scale)
        zero_point = torch.tensor(float(vector.zero_point)) if name.endswith("shifted") else None
        rounding = ROUNDINGS[vector.rounding]()
        arguments = (x, scale, *form.bounds, zero_point, rounding)
        codes = quantize_to_int(*arguments)
        assert codes.tolist() == vector.codes.tolist(), vector
        with torch.enable_grad():
            traced = fake_quant(x.clone().requires_grad_(), *arguments[1:]).detach()
        for values in (fake_quant(*arguments), traced, composed_fake_quant(*arguments)):
            np.testing.assert_array_equal(values.numpy(), vector.values)
        grid = Grid(
            scale,
            zero_point,
            number_format=Integers(form.bit_width, signed=form.signed, narrow_range=form.narrow_range),
        )
        np.testing.assert_array_equal(grid.from_int(codes).numpy(), vector.values)
        assert grid.to_int(torch.from_numpy(vector.values)).tolist() == vector.codes.tolist()


@pytest.mark.parametrize("name", ["int2", "uint2", "int4", "uint4"])
def test_codes_survive_the_types_of_ml_dtypes(name):
    codes = np.concatenate([vector.codes for vector in golden_vectors(name)])
    assert np.array_equal(codes.astype(getattr(ml_dtypes, name)).astype(np.int64), codes)


@pytest.mark.parametrize("name", ["int8", "uint8_shifted", "int16"])
def test_onnxruntime_computes_the_golden_codes(name):
    """A third opinion: QuantizeLinear as it runs."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    form = FORMATS[name]
    kind = getattr(onnx.TensorProto, name.split("_")[0].upper())
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])
    tensors = [("x", 1, [None]), ("scale", 1, []), ("zero", kind, [])]
    given = [onnx.helper.make_tensor_value_info(*each) for each in tensors]
    graph = onnx.helper.make_graph([node], "g", given, [onnx.helper.make_tensor_value_info("codes", kind, [None])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for vector in golden_vectors(name):
        if vector.rounding == "half_even":
            inside = np.abs(vector.x / np.float32(vector.scale)) < 2**30  # beyond, its conversion to integers overflows
            zero = np.array(vector.zero_point, dtype=f"{'' if form.signed else 'u'}int{form.bit_width}")
            feed = {"x": vector.x[inside], "scale": np.array(vector.scale, dtype=np.float32), "zero": zero}
            assert session.run(None, feed)[0].tolist() == vector.codes[inside].tolist()


@pytest.mark.parametrize(
    ("quotient", "expected"),
    [
        (Fraction(5, 2), [2, 3, 2, 3, 2]),
        (Fraction(-5, 2), [-2, -2, -3, -2, -2]),
        (Fraction(7, 2), [4, 4, 3, 4, 3]),
        (Fraction(-1, 4), [0, 0, -1, 0, 0]),
        (Fraction(3), [3, 3, 3, 3, 3]),
    ],
)
def test_roundings_by_definition(quotient, expected):
    assert [oracle.rounded(quotient, each) for each in oracle.ROUNDINGS] == expected
