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


@pytest.mark.parametrize("fixed", [3, None])
def test_share_of_right_classes(layer, fixed, tmp_path):
    """Of batches of 8, 8, and 4, to a file that takes 3 at a time, or any number."""
    shapes = None if fixed else ({0: "batch"},)
    program = export_onnx_qdq(layer, torch.randn(fixed or 2, 4), tmp_path / "layer.onnx", dynamic_shapes=shapes)
    data = DataLoader(TensorDataset(*labelled(layer, 20)), batch_size=8)
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    for given in (program, program.model_proto, tmp_path / "layer.onnx", session):
        assert evaluate_onnx(given, data, progress=False) == pytest.approx(0.75)
    empty = (torch.zeros(0, 4), torch.zeros(0))
    assert evaluate_onnx(session, [empty, *data, empty], progress=False) == pytest.approx(0.75)


def test_batches_count_by_their_samples(layer):
    """Of 3 and 1, with labels that are a list, and in a metric of the user's that returns a tensor."""
    program = export_onnx_qdq(layer, torch.randn(2, 4), dynamic_shapes=({0: "batch"},))
    x = torch.randn(4, 4)
    right = layer(x).argmax(1)
    data = [(x[:3], right[:3].tolist()), (x[3:], [(right[3] + 1) % 3])]
    assert evaluate_onnx(program, data, progress=False) == 0.75
    seen = []

    def share(outputs, labels):
        seen.append(tuple(outputs.shape))
        return torch.tensor(float(len(labels)))

    assert evaluate_onnx(program, iter(data), share, progress=False) == (3 * 3 + 1 * 1) / 4
    assert seen == [(3, 3), (1, 3)]


def test_progress_is_shown(layer, monkeypatch):
    asked = []

    def tracked(items, label, *, shown):
        asked.append((label, shown))
        yield from items

    monkeypatch.setattr("bitwright.export.onnx.runtime.evaluation.tracked", tracked)
    program = export_onnx_qdq(layer, torch.randn(2, 4))
    for progress in (True, False):
        evaluate_onnx(program, [labelled(layer, 2)], progress=progress)
    assert asked == [("evaluate_onnx", True), ("evaluate_onnx", False)]


def test_another_figure_of_several_outputs():
    model = Two()
    program = export_onnx_qdq(model, (torch.randn(2, 4), torch.zeros(2)), input_names=["x", "y"])

    def first(outputs, labels):
        assert outputs[0].shape == (5, 3)
        return (outputs[1] - labels).mean()

    x, y, labels = torch.randn(5, 4), torch.arange(5.0), torch.zeros(5)
    for inputs in ((x, y), [x, y], {"y": y, "x": x}):
        assert evaluate_onnx(program, [(inputs, labels)], first, progress=False) == 3.0
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
            [((torch.zeros(2, 4), torch.zeros(2)), torch.zeros(2))],
            "evaluate_onnx: the file takes x, and a batch has an object of type tuple for them. Pass one tensor of "
            "samples for each.",
        ),
        (
            [(torch.zeros(2, 5), torch.zeros(2))],
            "evaluate_onnx: the file takes x as float32 (2, 4), and a batch has float32 (2, 5).",
        ),
        (
            [(torch.zeros(4), torch.zeros(2))],
            "evaluate_onnx: the file takes x as float32 (2, 4), and a batch has float32 (4).",
        ),
        (
            [(torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3))],
            "evaluate_onnx: the file takes x as float32 (2, 4), and a batch has float64 (3, 4).",
        ),
        (
            [(torch.zeros(2, 4), torch.zeros(2, 3))],
            "evaluate_onnx: outputs of shape (2, 3) need labels of shape (2,), the number of a class each, and a batch "
            "has (2, 3). Pass such, or metric=..., a function of the outputs and the labels of a batch.",
        ),
        (
            None,
            "evaluate_onnx: data=None has no batches. Pass pairs of inputs and labels, such as a DataLoader's.",
        ),
        (
            TensorDataset(torch.zeros(2, 4), torch.zeros(2)),
            "evaluate_onnx: data is a Dataset, which gives one sample at a time. Pass "
            "torch.utils.data.DataLoader(data, batch_size=64).",
        ),
    ],
)
def test_data_that_does_not_fit(layer, data, said):
    program = export_onnx_qdq(layer, torch.randn(2, 4), input_names=["x"], verify=False)
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx(program, data, progress=False)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            "top1",
            "evaluate_onnx(metric='top1') is not possible. Pass a function of the outputs and the labels of a batch "
            "that returns a number.",
        ),
        (
            lambda outputs, labels: None,
            "evaluate_onnx: metric returned None for a batch. Return one number, such as a mean.",
        ),
        (
            lambda outputs, labels: torch.tensor([True, False]),
            "evaluate_onnx: metric returned tensor([ True, False]) for a batch. Return one number, such as a mean.",
        ),
    ],
)
def test_metrics_that_are_none(layer, metric, said):
    program = export_onnx_qdq(layer, torch.randn(2, 4), verify=False)
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx(program, [(torch.zeros(2, 4), torch.zeros(2))], metric, progress=False)


class Summed(nn.Module):
    def forward(self, x, y):
        return (x + y).sum(), x - y


def test_what_portions_and_accuracy_can_not_do():
    program = export_onnx_qdq(
        Summed(), (torch.randn(2, 4), torch.randn(2, 4)), input_names=["x", "y"], output_names=["total", "apart"]
    )
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    for data, said in (
        (
            [((x, y), torch.zeros(4))],
            "evaluate_onnx: the file takes 2 samples at a time, a batch has 4, and the output total of shape () can't "
            "be put together from portions. Pass batches of 2, or export with dynamic_shapes.",
        ),
        (
            [((x[:2], y[:2]), torch.zeros(2))],
            "evaluate_onnx: accuracy takes one output of scores, (N, classes), and the file gives 2 tensors. Pass "
            "metric=..., a function of the outputs and the labels of a batch.",
        ),
        (
            [((x, y[:2]), torch.zeros(2))],
            "evaluate_onnx: a batch has 4 of x, 2 of y. The first dimension of every input counts the same samples.",
        ),
    ):
        with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
            evaluate_onnx(program, data, progress=False)


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
    (tmp_path / "text.onnx").write_text("text")
    said = f"evaluate_onnx: onnxruntime {onnxruntime.__version__} does not load the file: "
    with pytest.raises(ExportError, match=f"^{re.escape(said)}"):
        evaluate_onnx(tmp_path / "text.onnx", [])


def test_providers(layer, tmp_path):
    path = tmp_path / "layer.onnx"
    export_onnx_qdq(layer, torch.randn(2, 4), path, verify=False)
    named = [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]
    assert evaluate_onnx(path, [labelled(layer, 2)], providers=named, progress=False) == 1.0
    for given in ("CPUExecutionProvider", ()):
        said = f"evaluate_onnx(providers={given!r}) is not possible. Write providers=['CPUExecutionProvider']."
        with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
            evaluate_onnx(path, [], providers=given)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    said = (
        "evaluate_onnx(providers=['CUDAExecutionProvider']) has no effect on an InferenceSession, which has its own. "
        "Leave it out, or pass the file."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        evaluate_onnx(session, [], providers=["CUDAExecutionProvider"])
