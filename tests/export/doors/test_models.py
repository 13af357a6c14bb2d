"""Whole models through every door: they go out and agree, or are refused by name before anything is traced."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.graph import W8A8, calibrate, fold_batch_norms, integer, quantize
from examples.lenet_models import WeightActBiasLeNet, WeightActLeNet, WeightLeNet
from tests.export.doors.ways import DOORS, goes_out, refusal
from tests.graph.models.minilm import MiniLM, Sizes
from tests.graph.models.mobilenet import MobileNetV2
from tests.graph.models.resnet import ResNet

pytest.importorskip("onnxruntime")
pytest.importorskip("qonnx")

Model = tuple[nn.Module, tuple[Tensor, ...]]


def by_hand(make: Callable[[], nn.Module], *shape: int) -> Model:
    """A model of quantized layers whose ranges come from two batches."""
    model, x = make().train(), torch.randn(shape)
    with torch.no_grad():
        model(x)
        model(0.83 * x)
    qnn.finish_calibration(model)
    return model.eval(), (x,)


def by_rule(model: nn.Module, *x: Tensor, rules: Any = W8A8, whole: bool = False) -> Model:
    """A float model that is quantized; `whole` for hardware without floats."""
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):  # as after training
            nn.init.normal_(each.running_mean, std=0.1)
            nn.init.uniform_(each.running_var, 0.5, 1.5)
        elif isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight, nonlinearity="relu")
    model.eval()
    if whole:
        model = quantize(fold_batch_norms(model, x), integer(8, 8), examples=x, placement="outputs")
    else:
        model = quantize(model, rules, examples=x)
    with calibrate(model):
        model(*x)
    return model.eval(), x


SMALL = Sizes(vocabulary=1000, positions=64, layers=2)
IMAGES = (4, 1, 32, 32)


def photos() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def sentences() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    return torch.randint(1000, (2, 16)), mask


class Steps(nn.Module):
    """A cell, step by step: what QONNX takes of recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = qnn.QuantLSTMCell(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for each in x:
            state = self.cell(each, state)
        return state[0]


MODELS: dict[str, Callable[[], Model]] = {
    "LeNet-5, weights": lambda: by_hand(WeightLeNet, *IMAGES),
    "LeNet-5, weights and activations": lambda: by_hand(WeightActLeNet, *IMAGES),
    "LeNet-5, all": lambda: by_hand(WeightActBiasLeNet, *IMAGES),
    "ResNet": lambda: by_rule(ResNet((1, 1, 1, 1), 8, 10), torch.randn(2, 3, 32, 32)),
    "ResNet, whole": lambda: by_rule(ResNet((1, 1, 1, 1), 8, 10), torch.randn(2, 3, 32, 32), whole=True),
    "MobileNetV2": lambda: by_rule(MobileNetV2(), photos()),
    "MobileNetV2, whole": lambda: by_rule(MobileNetV2(), photos(), whole=True),
    "MiniLM": lambda: by_rule(MiniLM(SMALL), *sentences()),
    "LSTM": lambda: by_rule(nn.LSTM(8, 6), torch.randn(5, 3, 8)),
    "LSTM by hand": lambda: by_hand(lambda: qnn.QuantLSTM(8, 6, num_layers=2, bidirectional=True), 5, 3, 8),
    "LSTM, step by step": lambda: by_hand(Steps, 5, 3, 8),
}
FAST = {"LeNet-5, weights and activations", "ResNet, whole", "LSTM"}


FLOAT_BIAS = "its bias is float. Write bias_quant=Int32Bias."
NO_INTEGERS = "There is no integer arithmetic for it: replace it, or use export_onnx_qcdq, which keeps it float."
FOLD = "batch_norm. Fold it into the convolution before that is quantized: graph.fold_batch_norms(model, examples)."
QUANTIZE = (
    "It computes with integers only where its inputs are quantized: put a QuantIdentity in front of it, or quantize "
    "the float model with placement='outputs'."
)
OUTSIDE = "There is no integer arithmetic for it: apply it to the outputs, outside of the model."
GATES = "its gates are sigmoids and tanhs of floats, and so are its steps. Use export_onnx_qcdq or export_onnx_qdq."
LOOP = (
    "QONNX has no loop over time, and its readers take no recurrent layers. Export it by export_onnx_qdq, or call a "
    "cell (QuantLSTMCell) once for each step."
)
# What stands in the way of a model: the sentences, without the module that each begins with, and how many have it.
REFUSED = {
    ("LeNet-5, weights", "onnx-integer"): {
        "its input is not quantized. Write input_quant=Int8Act, or put a QuantIdentity in front of it.": 5,
        FLOAT_BIAS: 5,
    },
    ("LeNet-5, weights and activations", "onnx-integer"): {FLOAT_BIAS: 5},
    ("ResNet", "onnx-integer"): {
        FLOAT_BIAS: 1,
        FOLD: 12,
        f"relu_. {QUANTIZE}": 5,
        f"add_. {QUANTIZE}": 4,
        f"mean. {QUANTIZE}": 1,
    },
    ("MobileNetV2", "onnx-integer"): {
        FLOAT_BIAS: 1,
        FOLD: 52,
        f"hardtanh_. {QUANTIZE}": 35,
        f"add. {QUANTIZE}": 10,
        f"mean. {QUANTIZE}": 1,
    },
    ("MiniLM", "onnx-integer"): {
        FLOAT_BIAS: 12,
        f"add. {QUANTIZE}": 4,
        f"layer_norm. {NO_INTEGERS}": 4,
        f"bmm, div, add, softmax. {NO_INTEGERS}": 2,
        f"rsub, mul. {NO_INTEGERS}": 1,
        f"gelu. {NO_INTEGERS}": 2,
        f"add. {OUTSIDE}": 1,
        f"layer_norm. {OUTSIDE}": 1,
        f"sum, div, linalg_vector_norm. {OUTSIDE}": 1,
    },
    ("LSTM", "onnx-integer"): {GATES: 1},
    ("LSTM", "qonnx"): {LOOP: 1},
    ("LSTM by hand", "onnx-integer"): {GATES: 1},
    ("LSTM by hand", "qonnx"): {LOOP: 1},
    ("LSTM, step by step", "onnx-integer"): {GATES: 1},
}


CASES = [
    pytest.param(name, door, marks=[pytest.mark.slow] if name not in FAST else [], id=f"{name}-{door}")
    for name in MODELS
    for door in DOORS
]


@pytest.fixture(scope="module")
def models() -> Callable[[str], Model]:
    """Each model is made once."""
    made: dict[str, Model] = {}

    def of(name: str) -> Model:
        if name not in made:
            torch.manual_seed(0)
            made[name] = MODELS[name]()
        return made[name]

    return of


@pytest.mark.parametrize(("name", "door"), CASES)
def test_it_goes_out_or_is_refused(name, door, models, tmp_path, monkeypatch):
    model, x = models(name)
    before, expected = copy.deepcopy(model.state_dict()), REFUSED.get((name, door))
    if expected is None:
        torch.manual_seed(1)
        others = tuple(each + 0.1 * torch.randn(each.shape) if each.is_floating_point() else each.flip(0) for each in x)
        assert goes_out(door, model, x, others, tmp_path).compared > 500
    else:
        assert Counter(said for _, said in refusal(door, model, x, tmp_path, monkeypatch)) == expected
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[key]) for key, each in before.items())
