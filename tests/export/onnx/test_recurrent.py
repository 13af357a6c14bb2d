"""Recurrent layers in files: one Scan for each layer and direction, or LSTM, GRU and RNN nodes; any number of steps."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_integer, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import (
    Fp8e4m3Act,
    Fp8e4m3DynamicAct,
    Int8Act,
    Int8DynamicAct,
    Int16ActPowerOfTwo,
    Int32Bias,
    MXFloat4e2m1Act,
    Uint8Act,
)

pytest.importorskip("onnxruntime")

BOTH = [export_onnx_qcdq, export_onnx_qdq]
OPEN = ({0: torch.export.Dim("steps"), 1: torch.export.Dim("batch")},)


def sequence(steps=7, batch=3, seed=0):
    return torch.randn(steps, batch, 5, generator=torch.Generator().manual_seed(seed))


def trained(layer, *args):
    """A layer, or a model of some, whose quantizers have seen data."""
    torch.manual_seed(1)
    for parameter in layer.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.5)
    for seed in range(3):
        layer(*(args or (sequence(seed=seed),)))
    qnn.finish_calibration(layer)
    return layer.eval()


def operators(program):
    return Counter(node.op_type for node in program.model.graph.all_nodes())


def exports(layer, export, *others, **options):
    """The program, verified on the example by the export and on other inputs here: 0 differences."""
    options.setdefault("dynamic_shapes", OPEN)
    program = export(layer, sequence(), **options)
    for each in others:
        report = verify_onnx(layer, program, each)
        assert report.ok, str(report)
    return program


# Quantized steps


@pytest.fixture(scope="module")
def lstm():
    """A layer with quantizers of both states, and its file."""
    layer = trained(qnn.QuantLSTM(5, 6, cell_quant=Int16ActPowerOfTwo))
    return layer, exports(layer, export_onnx_qcdq)


def test_an_lstm_is_one_scan(lstm):
    _, program = lstm
    assert operators(program)["Scan"] == 1
    assert program.model.graph.inputs[0].shape == ("steps", "batch", 5)
    (scan,) = (node for node in program.model.graph if node.op_type == "Scan")
    body = scan.attributes["body"].as_graph()
    kinds = [node.op_type for node in body]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 2
    assert not body.initializers  # constants belong to the model
    names = {value.name for node in body for value in node.outputs}
    assert {"hidden_l0_quant", "hidden_l0_quant.codes", "cell_l0_quant", "cell_l0_quant.codes"} <= names


@pytest.mark.parametrize(("steps", "batch"), [(1, 2), (29, 4)])
def test_codes_of_all_steps_are_compared(lstm, steps, batch):
    report = verify_onnx(*lstm, sequence(steps, batch))
    assert report.ok
    for optimizations in ("off", "on"):
        rows = {row.name: row.compared for row in report.only(optimizations).rows if row.kind == "activation"}
        assert rows == {"hidden_l0_quant": steps * batch * 6, "cell_l0_quant": steps * batch * 6}


def test_verification_finds_another_scale_in_a_body(lstm):
    layer, program = lstm
    proto = program.model_proto
    (scale,) = (each for each in proto.graph.initializer if each.name == "hidden_l0_quant.scale")
    scale.raw_data = (np.frombuffer(scale.raw_data, "f4") * np.float32(1.25)).tobytes()
    report = verify_onnx(layer, proto, sequence(9))
    found = {row.name: row for row in report.only("off").rows}
    assert not report.ok
    assert found["hidden_l0_quant"].differences == 9 * 3 * 6
    assert found["hidden_l0_quant"].note == "the file has another scale"
    assert found["weight_hh_l0_quant"].differences == 0


def test_verification_finds_another_operator_in_a_body(lstm):
    layer, program = lstm
    proto = program.model_proto
    (scan,) = (node for node in proto.graph.node if node.op_type == "Scan")
    body = next(each.g for each in scan.attribute if each.name == "body")
    tanh = next(node for node in body.node if node.op_type == "Tanh")  # of the proposed cell state
    tanh.op_type = "Softsign"
    found = {row.name: row for row in verify_onnx(layer, proto, sequence(9)).only("on").rows}
    assert found["cell_l0_quant"].differences > 0
    assert found["cell_l0_quant"].compared == 9 * 3 * 6
    assert found["hidden_l0_quant"].differences == 0  # from the same cell state


def test_weights_alone_are_one_lstm_node():
    layer = trained(qnn.QuantLSTM(5, 6, hidden_quant=None))
    program = export_onnx_qdq(layer, sequence(), dynamic_shapes=OPEN)
    assert (operators(program)["LSTM"], operators(program)["Scan"]) == (1, 0)
    assert verify_onnx(layer, program, sequence(29, 2)).ok


LAYERS = {
    "lstm w4a4": (qnn.QuantLSTM, {"weight_bit_width": 4, "hidden_bit_width": 4, "cell_quant": Int8Act}, 1),
    "lstm 2 layers, both directions, w4a8": (
        qnn.QuantLSTM,
        {"num_layers": 2, "bidirectional": True, "weight_bit_width": 4},
        4,
    ),
    "lstm, cell of 16 bits": (qnn.QuantLSTM, {"cell_quant": Int16ActPowerOfTwo, "num_layers": 2}, 2),
    "lstm, everything": (
        qnn.QuantLSTM,
        {
            "input_quant": Int8Act,
            "gate_quant": Int8Act,
            "sigmoid_quant": Uint8Act,
            "tanh_quant": Int8Act,
            "cell_quant": Int16ActPowerOfTwo,
            "cell_signed": True,
        },
        1,
    ),
    "lstm, projected": (qnn.QuantLSTM, {"proj_size": 4, "projection_quant": Int8Act}, 1),
    "lstm, projected, weights": (qnn.QuantLSTM, {"proj_size": 4, "hidden_quant": None}, 1),
    "lstm, coupled": (qnn.QuantLSTM, {"coupled_input_forget_gates": True}, 1),
    "lstm, integer biases": (
        qnn.QuantLSTM,
        {"input_quant": Int8Act, "bias_quant": Int32Bias, "num_layers": 2, "bidirectional": True},
        4,
    ),
    "lstm, 2 bits, floor": (qnn.QuantLSTM, {"hidden_bit_width": 2, "hidden_rounding": "floor"}, 1),
    "lstm, power of two": (qnn.QuantLSTM, {"hidden_restriction": "power_of_two"}, 1),
    "lstm, no bias": (qnn.QuantLSTM, {"bias": False}, 1),
    "gru": (qnn.QuantGRU, {}, 1),
    "gru, everything": (
        qnn.QuantGRU,
        {
            "input_quant": Int8Act,
            "gate_quant": Int8Act,
            "sigmoid_quant": Uint8Act,
            "tanh_quant": Int8Act,
            "bias_quant": Int32Bias,
        },
        1,
    ),
    "gru 2 layers, both directions": (qnn.QuantGRU, {"num_layers": 2, "bidirectional": True}, 4),
    "rnn": (qnn.QuantRNN, {}, 1),
    "rnn relu, unsigned": (qnn.QuantRNN, {"nonlinearity": "relu", "hidden_quant": Uint8Act}, 1),
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:LSTM with projections is not supported with oneDNN:UserWarning"
)  # torch's own kernel
@pytest.mark.parametrize("export", BOTH)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, export):
    kind, settings, scans = LAYERS[name]
    layer = trained(kind(5, 6, **settings))
    program = exports(layer, export, sequence(19, 4), sequence(2, 1, seed=5))
    found = operators(program)
    assert found["Scan"] == scans
    assert not found["Loop"]
    if name == "lstm w4a4" and export is export_onnx_qdq:
        held = program.model.graph.initializers
        assert held["weight_hh_l0_quant.codes"].dtype.name == "INT4"
        assert held["hidden_l0_quant.zero_point"].dtype.name == "INT4"
        fences = [node for node in program.model.graph.all_nodes() if node.name.endswith(".fence")]
        assert any(node.graph is not program.model.graph for node in fences)  # in the body: of 4 bits
    if name == "lstm, cell of 16 bits":
        assert program.model.graph.initializers["cell_l1_quant.zero_point"].dtype.name == "INT16"
    if name == "lstm, integer biases":
        assert program.model.graph.initializers["bias_hh_l1_reverse_quant.codes"].dtype.name == "INT32"


@pytest.mark.slow
@pytest.mark.parametrize("export", BOTH)
def test_a_file_of_one_length(export):
    layer = trained(qnn.QuantLSTM(5, 6, 2, bidirectional=True))
    program = exports(layer, export, sequence(seed=8), dynamic_shapes=None)
    assert operators(program)["Scan"] == 4
    assert program.model.graph.inputs[0].shape == (7, 3, 5)
    assert operators(export(layer, sequence(1)))["Scan"] == 4


@pytest.mark.slow
def test_batch_first():
    layer = trained(qnn.QuantLSTM(5, 6, batch_first=True), sequence().transpose(0, 1))
    shapes = ({0: "batch", 1: "steps"},)
    program = export_onnx_qdq(layer, sequence().transpose(0, 1), dynamic_shapes=shapes)
    assert program.model.graph.inputs[0].shape == ("batch", "steps", 5)
    assert verify_onnx(layer, program, sequence(19, 4).transpose(0, 1)).ok


@pytest.mark.slow
def test_without_a_batch():
    layer = trained(qnn.QuantGRU(5, 6))
    program = export_onnx_qdq(layer, sequence()[:, 0], dynamic_shapes=({0: "steps"},))
    assert verify_onnx(layer, program, sequence(19)[:, 0]).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "shapes",
    [
        ({0: "steps", 1: "batch"}, ({1: "batch"}, {1: "batch"})),
        {"input": {0: "steps"}, "hx": (None, None)},
        {"input": {0: "steps"}, "hx": [None, {}]},
        ({0: "steps"}, ({}, {})),
    ],
)
def test_states_that_are_given(shapes):
    layer = trained(qnn.QuantLSTM(5, 6, cell_quant=Int16ActPowerOfTwo))
    hx = (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    shapes = {**shapes, "hx": tuple(shapes["hx"])} if isinstance(shapes, dict) else shapes
    program = export_onnx_qdq(layer, (sequence(), hx), dynamic_shapes=shapes, input_names=["x", "h", "c"])
    assert [each.name for each in program.model.graph.inputs] == ["x", "h", "c"]
    report = verify_onnx(layer, program, (sequence(19), hx))
    assert report.ok
    names = {row.name for row in report.rows if row.kind == "activation"}
    assert names == {"hidden_l0_quant", "hidden_l0_quant.1", "cell_l0_quant", "cell_l0_quant.1"}


@pytest.mark.slow
def test_cells():
    """One step; and a loop of a model's own, step by step."""
    x, h = sequence(4), torch.randn(3, 6)
    for kind, hx in ((qnn.QuantLSTMCell, (h, 2 * h)), (qnn.QuantGRUCell, h), (qnn.QuantRNNCell, h)):
        cell = trained(kind(5, 6), x[0], hx)
        program = export_onnx_qdq(cell, (x[0], hx))
        assert verify_onnx(cell, program, (x[1], hx)).ok
        looped = Looped(cell).eval()
        states = 2 * len(x) - 1  # each step quantizes the state that it is given, and the one after
        assert operators(export_onnx_qcdq(looped, x))["QuantizeLinear"] == states


class Looped(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        h = None
        for part in x.unbind(0):
            h = self.cell(part, h)
        return h


class Network(nn.Module):
    """Layers that hand on their grids, with a layer of another kind between them."""

    def __init__(self):
        super().__init__()
        self.lower = qnn.QuantLSTM(5, 6, bidirectional=True, return_quant_tensor=True)
        self.middle = qnn.QuantLinear(12, 4, bias_quant=Int32Bias, output_quant=Int8Act, return_quant_tensor=True)
        self.upper = qnn.QuantGRU(4, 3, bias_quant=Int32Bias)

    def forward(self, x):
        return self.upper(self.middle(self.lower(x)[0]))[0]


@pytest.mark.slow
@pytest.mark.parametrize("export", BOTH)
def test_in_a_network(export):
    network = trained(Network())
    program = exports(network, export, sequence(19, 4))
    assert operators(program)["Scan"] == 3


@pytest.mark.slow
def test_a_module_that_reads_the_grid_of_the_output():
    class InSteps(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = qnn.QuantLSTM(5, 6, hidden_scale=2**-7, return_quant_tensor=True)

        def forward(self, x):
            out, _ = self.rnn(x)
            return out.value / out.scale

    model = InSteps().eval()
    program = export_onnx_qdq(model, sequence(), dynamic_shapes=OPEN)
    assert (operators(program)["Scan"], operators(program)["Div"]) == (1, 1)
    assert verify_onnx(model, program, sequence(19, 4)).ok


# Weights alone

NODES = {
    "lstm": (qnn.QuantLSTM, {}, "LSTM"),
    "gru": (qnn.QuantGRU, {}, "GRU"),
    "rnn tanh": (qnn.QuantRNN, {"nonlinearity": "tanh"}, "RNN"),
    "rnn relu": (qnn.QuantRNN, {"nonlinearity": "relu"}, "RNN"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"num_layers": 2, "bidirectional": True}, {"bias": False, "input_quant": Int8Act}, {"weight_bit_width": 4}],
)
@pytest.mark.parametrize("name", NODES)
def test_weights_alone(name, settings):
    kind, own, node = NODES[name]
    layer = trained(kind(5, 6, hidden_quant=None, **own, **settings))
    count = settings.get("num_layers", 1)
    for shapes, lengths in ((OPEN, (1, 19)), (None, (7,))):
        program = export_onnx_qdq(layer, sequence(), dynamic_shapes=shapes)
        assert (operators(program)[node], operators(program)["Scan"]) == (count, 0)
        assert not operators(program)["Tanh"]
        for steps in lengths:
            assert verify_onnx(layer, program, sequence(steps, 3, seed=4)).ok


# Refusals


def test_packed_sequences_are_refused():
    layer = trained(qnn.QuantLSTM(5, 6))

    class Packing(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = layer

        def forward(self, x):
            return pad_packed_sequence(self.rnn(pack_padded_sequence(x, [7, 6, 2]))[0])[0]

    message = (
        "export_onnx_qdq: rnn gets a PackedSequence, and a file takes tensors of one length. Export with a padded "
        "tensor: pass torch.nn.utils.rnn.pad_packed_sequence(x)[0], or leave out pack_padded_sequence."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx_qdq(Packing(), sequence())
    with pytest.raises(ExportError, match=f"^{re.escape(message.replace('rnn gets', 'QuantLSTM gets'))}$"):
        export_onnx_qdq(layer, (pack_padded_sequence(sequence(), [7, 6, 2]),))


def test_the_integer_dialect_refuses_them_by_name():
    message = (
        "the integer dialect can't express this model:\n  0 (QuantLSTM): its gates are sigmoids and tanhs of floats, "
        "and so are its steps. Use export_onnx_qcdq or export_onnx_qdq.\n  1 (QuantGRUCell): its gates are sigmoids "
        "and tanhs of floats, and so are its steps. Use export_onnx_qcdq or export_onnx_qdq."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(message)}$"):
        export_onnx_integer(nn.Sequential(qnn.QuantLSTM(5, 6), qnn.QuantGRUCell(5, 6)), sequence())


@pytest.mark.parametrize("hidden", [Int8DynamicAct, Fp8e4m3DynamicAct, Fp8e4m3Act(scale=0.004), MXFloat4e2m1Act])
def test_other_formats_and_scales_that_follow_each_step(hidden):
    layer = trained(qnn.QuantGRU(5, 6, hidden_quant=hidden, input_quant=Fp8e4m3Act(scale=0.01)))
    report = verify_onnx(layer, export_onnx_qdq(layer, sequence()), sequence())
    assert report.differences == 0, report.table()
