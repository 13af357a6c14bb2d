"""Figures of files on data."""

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bitwright.nn as qnn
from bitwright.export import ExportError, evaluate_onnx, export_onnx_qdq

onnxruntime = pytest.importorskip("onnxruntime")


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(4, 3, weight_bit_width=4)

    def forward(self, x, y):
        return self.layer(x), y + 1


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    return qnn.QuantLinear(4, 3, weight_bit_width=4)


def labelled(layer, count):
    """As many samples; the labels of a quarter are wrong."""
    x = torch.randn(count, 4)
    labels = layer(x).argmax(1)
    labels[: count // 4] = (labels[: count // 4] + 1) % 3
    return x, labels


@pytest.mark.parametrize("fixed", [True, False])
def test_share_of_right_classes(layer, fixed, tmp_path):
    """Of batches of 8, 8, and 4, to a file that takes 2 at a time, or any number."""
    shapes = None if fixed else ({0: "batch"},)
    program = export_onnx_qdq(layer, torch.randn(2, 4), tmp_path / "layer.onnx", dynamic_shapes=shapes)
    data = DataLoader(TensorDataset(*labelled(layer, 20)), batch_size=8)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    for given in (program, program.model_proto, tmp_path / "layer.onnx", session):
        assert evaluate_onnx(given, data, progress=False) == pytest.approx(0.75)


def test_another_figure_of_several_outputs():
    model = Two()
    program = export_onnx_qdq(model, (torch.randn(2, 4), torch.zeros(2)), input_names=["x", "y"])

    def first(outputs, labels):
        assert outputs[0].shape == (2, 3)
        return (outputs[1] - labels).mean()

    x, y, labels = torch.randn(2, 4), torch.ones(2), torch.zeros(2)
    for inputs in ((x, y), {"y": y, "x": x}):
        assert evaluate_onnx(program, [(inputs, labels)], first) == 2.0
    said = "evaluate_onnx: the inputs of a batch are named x, z, those of the file x, y. Name them as the file does."
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx(program, [({"x": x, "z": y}, labels)], first)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "evaluate_onnx: data is empty. Pass at least one batch; an iterator can be used only once."),
        (
            [torch.zeros(2, 4)],
            "evaluate_onnx: data has an object of type Tensor for a batch. Pass pairs of inputs and labels, such as a "
            "DataLoader's.",
        ),
        (
            [(torch.zeros(3, 4), torch.zeros(3))],
            "evaluate_onnx: a batch has 3 samples, and the file takes 2 at a time. Pass batches of a multiple, such as "
            "by DataLoader(drop_last=True), or export with dynamic_shapes.",
        ),
        (
            [((torch.zeros(2, 4), torch.zeros(2)), torch.zeros(2))],
            "evaluate_onnx: the file takes x, and a batch has an object of type tuple for them. Pass one tensor of "
            "samples for each.",
        ),
    ],
)
def test_data_that_does_not_fit(layer, data, said):
    program = export_onnx_qdq(layer, torch.randn(2, 4), input_names=["x"])
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx(program, data)


def test_what_is_not_there(layer, tmp_path):
    with pytest.raises(ExportError, match=r"^evaluate_onnx: there is no file 'nowhere.onnx'\.$"):
        evaluate_onnx("nowhere.onnx", [])
    said = (
        f"evaluate_onnx: onnxruntime {onnxruntime.__version__} has no NoneExecutionProvider here, only "
        f"{', '.join(onnxruntime.get_available_providers())}. Pass providers of these, or install the package of "
        "onnxruntime that has it."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx("nowhere.onnx", [], providers=["NoneExecutionProvider"])
    with pytest.raises(ExportError, match=r"^evaluate_onnx: program=5 is not an exported model\."):
        evaluate_onnx(5, [])
