"""Embeddings, norms, slopes and fixed classifiers in files: they compute what the model computes."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, integers, run_integers, verify_onnx
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int4WeightPerTensor,
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int8WeightPerTensorLearned,
    Int32Bias,
    ShiftedUint4WeightPerChannel,
)

AROUND = {"input_quant": Int8Act, "output_quant": Int8Act}
OWN = {**AROUND, "bias_quant": Int8BiasOwnScale}


def rows():
    return torch.randint(0, 20, (4, 5))


def words():
    return torch.randn(4, 5, 16)


def images():
    return torch.randn(4, 6, 5, 5)


class Many(nn.Module):
    """Several layers of the same input, so that one file tests them all."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


class Summed(nn.Module):
    """A bias on the scale of the products of a table's rows."""

    def __init__(self):
        super().__init__()
        self.table = qnn.QuantEmbedding(20, 16, weight_bit_width=4, return_quant_tensor=True)
        self.linear = qnn.QuantLinear(16, 6, bias_quant=Int32Bias)

    def forward(self, x):
        return self.linear(self.table(x))


class Tied(nn.Module):
    """A language model whose output layer shares the table and its quantizer."""

    def __init__(self):
        super().__init__()
        self.table = qnn.QuantEmbedding(20, 16, padding_idx=0, weight_quant=Int8WeightPerChannel)
        self.norm = qnn.QuantLayerNorm(16, output_quant=Int8Act, return_quant_tensor=True)
        self.head = qnn.QuantLinear(16, 20, bias=False, weight_quant=self.table.weight_quant)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.norm(self.table(x)))


MODELS = {
    "tables": (
        lambda: Many(
            qnn.QuantEmbedding(20, 16),
            qnn.QuantEmbedding(20, 16, weight_quant=Int8WeightPerChannel),
            qnn.QuantEmbedding(20, 16, padding_idx=3, weight_quant=Int4WeightPerGroup, weight_group_size=8),
            qnn.QuantEmbedding(20, 16, weight_quant=ShiftedUint4WeightPerChannel),
            qnn.QuantEmbedding(20, 16, weight_bit_width=2, output_quant=Int8Act),
        ),
        rows,
    ),
    "bags": (
        lambda: Many(
            qnn.QuantEmbeddingBag(20, 16, weight_bit_width=4),
            qnn.QuantEmbeddingBag(20, 16, mode="max", weight_quant=Int8WeightPerChannel),
            qnn.QuantEmbeddingBag(20, 16, mode="sum", output_quant=Int8Act),
        ),
        rows,
    ),
    "tied": (Tied, rows),
    "summed": (Summed, rows),
    "norms of words": (
        lambda: Many(
            qnn.QuantLayerNorm(16, **OWN),
            qnn.QuantLayerNorm(16, elementwise_affine=False, **AROUND),
            qnn.QuantRMSNorm(16, weight_bit_width=4, **AROUND),
            qnn.QuantScaleBias(16, bias=False, dim=-1, **AROUND),
            qnn.QuantHadamardClassifier(16, 10, **AROUND),
        ),
        words,
    ),
    "norms of images": (
        lambda: Many(
            qnn.QuantGroupNorm(2, 6, weight_quant=Int4WeightPerTensor, **OWN),
            qnn.QuantBatchNorm2d(6, weight_quant=Int8WeightPerChannel, **OWN),
            qnn.QuantBatchNorm2d(6, bias_quant=Int32Bias, **AROUND),
            qnn.QuantBatchNorm2d(6, affine=False, weight_bit_width=4, **AROUND),
            qnn.QuantBatchNorm2d(6, weight_quant=None, **AROUND),
            qnn.QuantScaleBias(
                6, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias, input_quant=Int8Act, output_quant=Int8Act
            ),
            qnn.QuantPReLU(6, weight_quant=Int8WeightPerChannel, input_quant=Int8Act),
            qnn.QuantPReLU(weight_bit_width=4, input_quant=Int8Act),
        ),
        images,
    ),
}


def calibrated(model, inputs):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name.endswith(("weight", "bias")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
        for _ in range(3):
            model(inputs())
    qnn.finish_calibration(model)
    return model.eval()


@pytest.mark.parametrize("export", [export_onnx_qcdq, pytest.param(export_onnx_qdq, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_the_file_computes_the_same(name, export):
    make, inputs = MODELS[name]
    model = calibrated(make(), inputs)
    program = export(model, inputs())
    for _ in range(2):
        report = verify_onnx(model, program, inputs())
        assert report.differences == 0, report.table()


def test_a_table_is_stored_once():
    model = calibrated(Tied(), rows)
    program = export_onnx_qcdq(model, rows(), verify=False)
    names = set(program.model.graph.initializers)
    assert {"table.weight_quant.codes", "table.weight_quant.scale"} <= names
    assert not {name for name in names if name.startswith("head.")}
    codes = program.model.graph.initializers["table.weight_quant.codes"].const_value.numpy()
    assert (torch.from_numpy(codes) == model.table.int_weight()).all()


def test_the_integers_of_every_layer():
    for name in ("tables", "norms of words", "norms of images"):
        make, inputs = MODELS[name]
        model = calibrated(make(), inputs)
        found = integers(model, inputs())
        for path, layer in model.named_modules():
            if isinstance(layer, qnn.WeightLayer) and layer.weight_quant is not None:
                assert torch.equal(found[path].weight.codes, layer.int_weight())
            if isinstance(layer, qnn.WeightLayer) and layer.bias_quant is not None:
                assert torch.equal(found[path].bias.codes, layer.int_bias())


def test_rows_are_looked_up_as_integers():
    model = calibrated(MODELS["tables"][0](), rows)
    x = rows()
    run = run_integers(model, x)
    assert run.integer_only
    for one, other in zip(run.outputs, model(x), strict=True):
        assert torch.equal(one, other)


def test_a_table_and_a_layer_without_floats():
    model = calibrated(Summed(), rows)
    x = rows()
    assert integers(model, x)["linear"].bias.codes.dtype is torch.int32
    run = run_integers(model, x)
    assert run.integer_only
    torch.testing.assert_close(run.outputs, model(x))


def test_what_is_computed_in_floats_is_said():
    model = calibrated(nn.Sequential(qnn.QuantIdentity(), qnn.QuantLayerNorm(16, output_quant=Int8Act)), words)
    x = words()
    run = run_integers(model, x)
    assert run.floats == {"1": {"layer_norm": 1}}
    torch.testing.assert_close(run.outputs, model(x))


def test_lookups_that_change_the_table_are_refused():
    model = nn.Sequential(qnn.QuantEmbedding(20, 16, max_norm=1.0)).eval()
    text = (
        "0: max_norm=1.0 changes the rows that a forward looks up, and a file can't change its weights. Renormalize "
        "the whole table, layer(torch.arange(layer.num_embeddings)), and set layer.max_norm = None."
    )
    for refusing in (export_onnx_qcdq, integers):
        with pytest.raises(ExportError, match=f"^{re.escape(text)}$"):
            refusing(model, rows())
    model[0](torch.arange(20))
    model[0].max_norm = None
    assert verify_onnx(model, export_onnx_qcdq(model, rows()), torch.arange(20).reshape(4, 5)).differences == 0


@pytest.mark.slow
def test_factors_of_each_batch():
    learned = qnn.QuantBatchNorm2d(6, track_running_stats=False, weight_quant=Int8WeightPerTensorLearned)
    model = calibrated(nn.Sequential(learned), images)
    assert verify_onnx(model, export_onnx_qcdq(model, images()), images()).differences == 0
    model = nn.Sequential(qnn.QuantBatchNorm2d(6, track_running_stats=False)).eval()  # whose scale follows the batch
    assert verify_onnx(model, export_onnx_qcdq(model, images()), images()).differences == 0


def test_the_sum_of_a_bag_is_no_constant():
    """torch writes it as a loop whose body reads the rows without naming them as an input."""
    model = nn.Sequential(qnn.QuantEmbeddingBag(20, 4, mode="sum", output_quant=Int8Act(scale=0.1))).eval()
    program = export_onnx_qcdq(model, torch.zeros(2, 3, dtype=torch.int64))
    assert "Loop" in {node.op_type for node in program.model.graph}
    assert verify_onnx(model, program, torch.full((2, 3), 7)).differences == 0
