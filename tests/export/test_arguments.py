"""Mistyped calls of the exports and verifications: each error says what was found, and what to write."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_program, export_qonnx, verify_program, verify_qonnx


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = qnn.QuantReLU(scale=0.1)

    def forward(self, x, shift=0.0):
        return self.relu(x) + shift


X = torch.rand(2, 4)
DYNAMIC = 'write one entry for each argument of the model, such as dynamic_shapes=({0: torch.export.Dim("batch")},).'
LIST = (
    "is not what a model is called with. Pass a tensor, or a tuple of all positional arguments; for a model that takes "
    "a list itself, a tuple that holds it: (value,)."
)
FIT = "and kwargs don't fit the model's forward, Model(x, shift=0.0):"
CALLS = [
    (
        lambda: export_program(Model(), X, dynamic_shape=1),
        "export_program(dynamic_shape=...) is no keyword. Did you mean dynamic_shapes?",
    ),
    (
        lambda: export_program(Model(), X, opset_version=18),
        "export_program(opset_version=...) is no keyword. There are: module, args, export_path, kwargs, "
        "dynamic_shapes, verify, exact.",
    ),
    (lambda: export_program(Model()), "export_program: args is missing. Write export_program(module, args)."),
    (lambda: export_program(Model(), X, dynamic_shapes=1), f"export_program(dynamic_shapes=1): {DYNAMIC}"),
    (lambda: export_program(Model(), X, exact=3), "export_program(exact=3): write True or False."),
    (
        lambda: export_program(Model(), "model.pt2", X),
        "export_program(export_path=an object of type Tensor) is no path. Write "
        'export_program(model, args, "model.pt2"), or leave it out.',
    ),
    (lambda: export_program(Model(), [1]), f"export_program: args=[1] {LIST}"),
    (lambda: export_program(Model(), (X, X, X)), f"export_program: args {FIT} too many positional arguments."),
    (
        lambda: export_program(Model(), X, kwargs={"shifted": 1.0}),
        f"export_program: args {FIT} got an unexpected keyword argument 'shifted'.",
    ),
    (
        lambda: export_qonnx(Model(), X, kwargs=1),
        "export_qonnx: kwargs=1 is not a dict of keyword arguments. Write {'name': tensor}.",
    ),
    (
        lambda: export_qonnx(Model(), None),
        "export_qonnx: args=None is not what a model is called with. Pass a tensor, or a tuple of all positional "
        "arguments.",
    ),
    (
        lambda: export_qonnx(Model(), X, input_name=["image"]),
        "export_qonnx(input_name=...) is no keyword of torch.onnx.export. Did you mean input_names?",
    ),
    (
        lambda: export_qonnx(Model(), X, input_names="image"),
        "export_qonnx(input_names='image'): write a list of names, such as input_names=['image'].",
    ),
    (
        lambda: export_qonnx(Model(), X, output_names=["a", "b"]),
        "export_qonnx(output_names=['a', 'b']): the model has 1: a. Give no more names than that.",
    ),
    (
        lambda: export_qonnx(Model(), X, opset_version=17),
        "export_qonnx(opset_version=17): write a whole number, 18 or more, or leave it out.",
    ),
    (
        lambda: export_qonnx(Model(), X, fast=True),
        "export_qonnx(fast=...) is not possible: FINN and hls4ml run the file. Leave it out.",
    ),
    (lambda: export_qonnx(Model(), X, verify="no"), "export_qonnx(verify='no'): write True or False."),
    (
        lambda: verify_qonnx(Model(), "model.onnx", X, batch_size=3),
        "verify_qonnx(batch_size=...) is no keyword. There are: module, program, inputs, kwargs.",
    ),
    (
        lambda: verify_qonnx(Model(), "model.onnx"),
        "verify_qonnx: inputs is missing. Write verify_qonnx(module, program, inputs).",
    ),
    (
        lambda: verify_program(Model(), "model.pt2", X, batchsize=3),
        "verify_program(batchsize=...) is no keyword. Did you mean batch_size?",
    ),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_mistyped_calls(call, message):
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        call()


def test_counts_of_samples():
    model = Model()
    program = export_program(model, X)
    for wrong in (0, "3", True):
        message = f"verify_program(batch_size={wrong!r}): write a whole number, 1 or more."
        with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
            verify_program(model, program, X, batch_size=wrong)
    with pytest.raises(ExportError, match=f"^{re.escape('verify_program: inputs=[1] ' + LIST)}$"):
        verify_program(model, program, [1])
