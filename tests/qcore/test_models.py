"""What is given for a model and is none: one error for every function that takes a model."""

from functools import partial

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright import export, graph
from bitwright.export import ExportError, Integers
from bitwright.graph import GraphError
from bitwright.qcore import BitwrightError, QuantizerError, bit_width_report, describe, size_penalty

X = torch.zeros(1, 4)


def entered(manager):
    def call(model):
        with manager(model):
            raise AssertionError("the block was entered")

    return call


def layerwise(name, model):
    more = (lambda path, problem: None,) if name == "walk_blocks" else ()
    return getattr(graph, name)(model, X, *more)


CALLS = {
    "frozen": (entered(qnn.frozen), QuantizerError),
    "calibrating": (entered(qnn.calibrating), QuantizerError),
    "finish_calibration": (qnn.finish_calibration, QuantizerError),
    "quantizers_of": (qnn.quantizers_of, QuantizerError),
    "unquantized": (entered(qnn.unquantized), QuantizerError),
    "bit_width_report": (bit_width_report, QuantizerError),
    "size_penalty": (size_penalty, QuantizerError),
    "accumulator_penalty": (qnn.accumulator_penalty, QuantizerError),
    "bit_loss": (qnn.bit_loss, QuantizerError),
    "finish_schedules": (qnn.finish_schedules, QuantizerError),
    "range_penalty": (qnn.range_penalty, QuantizerError),
    "rounding_penalty": (qnn.rounding_penalty, QuantizerError),
    "export_onnx_qcdq": (lambda model: export.export_onnx_qcdq(model, X), ExportError),
    "export_onnx_qdq": (lambda model: export.export_onnx_qdq(model, X), ExportError),
    "export_onnx_integer": (lambda model: export.export_onnx_integer(model, X), ExportError),
    "export_qonnx": (lambda model: export.export_qonnx(model, X), ExportError),
    "verify_qonnx": (lambda model: export.verify_qonnx(model, "model.onnx", X), ExportError),
    "integers": (lambda model: export.integers(model, X), ExportError),
    "accumulator_report": (lambda model: export.accumulator_report(model, X), ExportError),
    "run_integers": (lambda model: export.run_integers(model, X, integers=Integers({})), ExportError),
    "compare_integers": (lambda model: export.compare_integers(model, X), ExportError),
    "supports": (lambda model: export.supports(model, "qonnx"), ExportError),
    "export_program": (lambda model: export.export_program(model, X), ExportError),
    "verify_program": (lambda model: export.verify_program(model, "model.pt2", X), ExportError),
    "verify_onnx": (lambda model: export.verify_onnx(model, "model.onnx", X), ExportError),
    "save_packed": (lambda model: export.save_packed(model, "model.safetensors"), ExportError),
    "load_packed": (lambda model: export.load_packed(model, "model.safetensors"), ExportError),
    "export_compressed_tensors": (lambda model: export.export_compressed_tensors(model, "folder"), ExportError),
}
LAYERWISE = ("adaround", "autoround", "gpfq", "gptq", "magr", "qronos", "search_scales", "walk_blocks")
CALLS |= {name: (partial(layerwise, name), GraphError) for name in LAYERWISE}
GIVEN = [
    (5, "5 is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."),
    (None, "None is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4)."),
    (
        torch.zeros(9, 9),
        "an object of type Tensor is not a model. Pass a torch.nn.Module, such as qnn.QuantLinear(8, 4).",
    ),
    (
        qnn.QuantLinear,
        "QuantLinear is a class, not a model. Pass an instance of it: QuantLinear(...).",
    ),
    (
        [nn.ReLU(), nn.ReLU()],
        "a list of modules is not a model. Pass one module that holds them: nn.ModuleList([...]).",
    ),
]


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_model(name):
    call, kind = CALLS[name]
    for given, said in GIVEN:
        with pytest.raises(kind) as caught:
            call(given)
        assert type(caught.value) is kind
        assert str(caught.value) == f"{name}: {said}"


def test_every_public_function_with_a_model_is_among_them():
    taking = {
        name
        for package in (qnn, export)
        for name in package.__all__
        if {"model", "module"} & set(getattr(getattr(package, name), "__annotations__", {}))
    }
    assert taking == {name for name in CALLS if name not in ("bit_width_report", "size_penalty", *LAYERWISE)}


def test_plots_of_what_is_no_model_and_no_quantizer():
    testing = pytest.importorskip("bitwright.testing")
    pytest.importorskip("matplotlib")
    for given, said in GIVEN:
        with pytest.raises(BitwrightError) as caught:
            testing.plot_model(given, X)
        assert str(caught.value) == f"plot_model: {said}"
    with pytest.raises(QuantizerError) as caught:
        testing.plot_quantizer(5)
    assert str(caught.value) == (
        "plot_quantizer: 5 is not a quantizer. Pass a class such as Int8Act, or the quantizer module of a layer, such "
        "as layer.weight_quant."
    )


def test_describe_takes_no_class_of_a_model():
    with pytest.raises(TypeError) as caught:
        describe(nn.Linear)
    assert str(caught.value) == "describe takes a quantizer class, a layer or a model; found type."


@pytest.mark.parametrize("name", ["verify_onnx", "compare_integers"])
def test_what_is_no_exported_model(name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    layer = qnn.QuantLinear(4, 4)
    with pytest.raises(ExportError) as caught:
        getattr(export, name)(layer, program=5, **{"inputs" if name == "verify_onnx" else "example": X})
    assert str(caught.value) == (
        f"{name}: program=5 is not an exported model. Pass what an export returned, the path of a file, or an "
        "onnx.ModelProto."
    )


@pytest.mark.parametrize("name", ["run_integers", "compare_integers"])
def test_what_is_no_integers(name):
    with pytest.raises(ExportError) as caught:
        getattr(export, name)(qnn.QuantLinear(4, 4), X, integers=5)
    assert str(caught.value) == (
        f"{name}: integers=5 is not possible. Pass what integers(model, example) or Integers.load returned, or leave "
        "it out."
    )
