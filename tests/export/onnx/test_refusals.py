"""What can't be exported is refused before anything is traced, with what to write instead."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.nn.recurrent.scan import scan
from bitwright.qcore import BitwrightError, IntQuant, StochasticRounding, resolve
from bitwright.quantizers import Int8Act, Uint8Act


class Dice:
    """A rounding that is random, and does not say so."""

    name = "dice"

    def __call__(self, x):
        return torch.floor(x + torch.rand_like(x))


class FarZeroPoint:
    def __call__(self, x, scale):
        return torch.full_like(scale, 300.0)


class ScaleOfEverything(nn.Module):
    def forward(self, x):
        return torch.full_like(x, 0.1)


class NoScale(nn.Module):
    def forward(self, x):
        return torch.tensor(float("nan"))


class Doubling(IntQuant):
    def _quantize(self, x, relu=False, floor=None, *more, **named):
        return super()._quantize(2 * x, relu)


class HandMade(nn.Module):
    """A model that holds a quantizer of the user's own."""

    def __init__(self):
        super().__init__()
        self.act_quant = resolve(Int8Act(scale=0.1), {})
        self.act_quant.__class__ = Doubling

    def forward(self, x):
        return self.act_quant(x)


class TwiceWhenExported(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(8, 8, bias=False)

    def forward(self, x):
        x = self.layer(x)
        return self.layer(x) if torch.compiler.is_exporting() else x


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(8, 8)

    def forward(self, x):
        return x


def refused(text, export, *args, **kwargs):
    with pytest.raises(ExportError, match=f"^{re.escape(text)}$") as caught:
        export(*args, **kwargs)
    assert isinstance(caught.value, BitwrightError)


X = torch.zeros(2, 8)
LINEAR = nn.Sequential(qnn.QuantLinear(8, 4))


def test_all_offenders_are_listed_in_one_error():
    model = nn.Sequential(
        qnn.QuantLinear(8, 8, weight_bit_width=24),
        qnn.QuantIdentity(bit_width=20, scale=0.1),
        qnn.QuantReLU(bit_width=17, scale=0.1),
        qnn.QuantIdentity(rounding=Dice, scale=0.1),
        qnn.QuantIdentity(rounding=StochasticRounding, deterministic_evaluation=False, scale=0.1),
        qnn.QuantLinear(8, 8, input_quant=Int8Act(scale=0.1), input_rounding=Dice),
    )
    refused(
        "QCDQ can't express 6 quantizers of this model:\n"
        "  0.weight_quant: 24 bits, signed; QCDQ stores 2 to 16. Write weight_bit_width=16 or less.\n"
        "  1.act_quant: 20 bits, signed; QCDQ stores 2 to 16. Write bit_width=16 or less.\n"
        "  2.act_quant: 17 bits, unsigned; QCDQ stores 2 to 16. Write bit_width=16 or less.\n"
        "  3.act_quant: rounding 'dice' is random in evaluation, and a file can't repeat it. Write "
        "rounding='half_even', or one that is deterministic in evaluation.\n"
        "  4.act_quant: rounding 'stochastic' is random in evaluation, and a file can't repeat it. Write "
        "rounding='half_even', or one that is deterministic in evaluation.\n"
        "  5.input_quant: rounding 'dice' is random in evaluation, and a file can't repeat it. Write "
        "input_rounding='half_even', or one that is deterministic in evaluation.",
        export_onnx_qcdq,
        model,
        X,
    )


@pytest.mark.parametrize(
    ("model", "x", "problem"),
    [
        (
            qnn.QuantIdentity(bit_width=24, scale=0.1),
            X,
            "act_quant: 24 bits, signed; QDQ stores 2 to 16. Write bit_width=16 or less.",
        ),
        (
            qnn.QuantLinear(8, 4, dtype=torch.float64),
            X.double(),
            "weight_quant: its input is float64, and QDQ is exact in float32. Export a float32 model: model.float().",
        ),
        (
            qnn.QuantIdentity(act_quant=Uint8Act(zero_point=FarZeroPoint, scale=0.1)),
            X,
            "act_quant: zero point 300 lies outside 0 to 255, where ONNX wants it. Choose a range that includes 0.",
        ),
        (
            qnn.QuantIdentity(scaling=ScaleOfEverything),
            X,
            "act_quant: its scale has the shape (2, 8) for values of shape (2, 8); QDQ takes one scale per tensor, "
            "per index of one dimension, or per group along one. Write axis=None or axis=1.",
        ),
        (
            qnn.QuantIdentity(scaling=NoScale),
            X,
            "act_quant: a scale is not a positive, finite number. Check what its scaling computes.",
        ),
        (
            HandMade(),
            X,
            "act_quant: Doubling has arithmetic of its own, and QDQ computes IntQuant's. Put what is yours "
            "into a rounding, a scaling or a zero point of an IntQuant.",
        ),
    ],
    ids=["width", "dtype", "zero_point", "scale_shape", "nan_scale", "own_arithmetic"],
)
def test_refusal(model, x, problem):
    refused(f"QDQ can't express 1 quantizer of this model:\n  {problem}", export_onnx_qdq, model, x)


@pytest.mark.parametrize(
    ("bits", "opset", "text"),
    [
        (
            2,
            21,
            "opset_version=21 is too old: weight_quant has 2 bits, stored as INT2, which ONNX has since opset 25. "
            "Write opset_version=25, or leave it out.",
        ),
        (
            4,
            20,
            "opset_version=20 is too old: weight_quant has 4 bits, stored as INT4, which ONNX has since opset 21. "
            "Write opset_version=21, or leave it out.",
        ),
        (
            8,
            13,
            "opset_version=13 is too old: torch.onnx.export writes 18 and later. Write opset_version=18, or leave it "
            "out.",
        ),
    ],
)
def test_opset_that_is_too_old(bits, opset, text):
    refused(text, export_onnx_qdq, qnn.QuantLinear(8, 4, weight_bit_width=bits), X, opset_version=opset)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"opset": 18},
            "export_onnx_qcdq(opset=...) is no keyword of torch.onnx.export. help(torch.onnx.export) lists them.",
        ),
        (
            {"opset_versio": 18},
            "export_onnx_qcdq(opset_versio=...) is no keyword of torch.onnx.export. Did you mean opset_version?",
        ),
        ({"verfy": False}, "export_onnx_qcdq(verfy=...) is no keyword of torch.onnx.export. Did you mean verify?"),
        (
            {"dynamo": False},
            "export_onnx_qcdq(dynamo=...) is not possible. Write no dynamo: exports go through torch.export.",
        ),
        ({"input_t": X}, "export_onnx_qcdq(input_t=...) is not possible. Write args=input_t."),
        (
            {"export_path": "a.onnx", "f": "b.onnx"},
            "export_onnx_qcdq: export_path='a.onnx' and f='b.onnx' are the same setting. Give one.",
        ),
        (
            {"export_path": "missing/a.onnx"},
            "export_onnx_qcdq(export_path='missing/a.onnx'): there is no folder 'missing'. Make it first.",
        ),
    ],
)
def test_keywords(options, text):
    refused(text, export_onnx_qcdq, LINEAR, X, **options)


def test_model_whose_quantizers_are_not_reached():
    refused(
        "Unreached: the example input reached no quantizer, so no scale is known. Pass the args of a whole forward.\n"
        "  layer.weight_quant: never called: the example input does not reach its layer, or the model reads the "
        "layer's weight instead of calling it (F.linear(x, layer.weight)), in floats. Call the layer, or remove it.",
        export_onnx_qcdq,
        Unreached(),
        X,
    )


def test_forward_that_differs_while_it_is_traced():
    refused(
        "layer.weight_quant is called more often while the model is traced than when it runs on the example input. Let "
        "the forward take the same path both times (no branch on torch.compiler.is_exporting()).",
        export_onnx_qcdq,
        TwiceWhenExported(),
        X,
    )


def test_missing_package(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("bitwright.export.optional.import_module", missing)
    refused("export_onnx_qcdq needs the package onnx: pip install bitwright[onnx]", export_onnx_qcdq, LINEAR, X)


def test_verifying_with_other_inputs():
    program = export_onnx_qcdq(LINEAR, X)
    refused(
        "verify_onnx: inputs and kwargs don't fit the model's forward, Sequential(input): too many positional "
        "arguments.",
        verify_onnx,
        LINEAR,
        program,
        (X, X),
    )
    refused(
        "the inputs have 3 samples, and the file takes 2 at a time. Pass a multiple, or export with dynamic_shapes.",
        verify_onnx,
        LINEAR,
        program,
        torch.zeros(3, 8),
    )
    refused(
        "verify_onnx: the file takes input as float32 (2, 8), and what was given has float32 (2, 7).",
        verify_onnx,
        LINEAR,
        program,
        torch.zeros(2, 7),
    )
    refused(
        "verify_onnx: the file takes input as float32 (2, 8), and what was given has float64 (2, 8).",
        verify_onnx,
        LINEAR,
        program,
        torch.zeros(2, 8, dtype=torch.float64),
    )


def test_verifying_by_mistyped_calls():
    given = (verify_onnx, LINEAR, export_onnx_qcdq(LINEAR, X))
    refused("verify_onnx(batchsize=...) is no keyword. Did you mean batch_size?", *given, X, batchsize=3)
    refused("verify_onnx: inputs is missing. Write verify_onnx(module, program, inputs).", *given)
    refused("verify_onnx(batch_size=0): write a whole number, 1 or more.", *given, X, batch_size=0)
    refused(
        "verify_onnx: inputs=an object of type list is not what a model is called with. Pass a tensor, or a tuple of "
        "all positional arguments; for a model that takes a list itself, a tuple that holds it: (value,).",
        *given,
        [X],
    )


def test_size_that_the_model_fixes():
    class Fixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = qnn.QuantLinear(8, 4)

        def forward(self, x):
            return self.layer(x).reshape(2, 4)

    message = (
        "dynamic_shapes leaves dimension 0 of x open, and torch.export fixed it at 2: something in the model works for "
        "that size alone, as torch's own nn.LSTM, nn.GRU and nn.RNN do for the number of steps (qnn.QuantLSTM and its "
        "kin do not). Replace that, leave the dimension out, or name it by a string, {0: 'size'}, with which torch "
        "tries more."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx_qdq(Fixing(), torch.randn(2, 8), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert export_onnx_qdq(Fixing(), torch.randn(2, 8), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def test_loop_whose_steps_have_grids_of_their_own():
    class Summing(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = qnn.QuantIdentity()

        def forward(self, x):
            return scan(self.step, (torch.zeros(3),), (x,))[0][0]

        def step(self, states, inputs, constants):
            total = self.act(states[0] + inputs[0])
            return (total,), (total,)

    message = (
        "QDQ can't express 1 quantizer of this model:\n  act.act_quant: its grid changes from step to step: it saw no "
        "data, so each step takes the range of its own input, and a file has one grid for all steps. Run some batches "
        "in training mode first, or load a checkpoint."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx_qdq(Summing(), torch.arange(12.0).reshape(4, 3))
