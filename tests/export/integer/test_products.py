"""The integers of layers with several weights."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    Integers,
    accumulator_report,
    compare_integers,
    integers,
    run_integers,
)
from bitwright.nn.layer import QuantLayer
from bitwright.nn.slots import Slot
from bitwright.quantizers import Int8Act, Int8ActPowerOfTwo, Int8WeightPerTensor, Int32Bias, Uint8Act

from .test_c_header import run_c

compiled = pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def settled(model, *args):
    """A model whose ranges are measured, in evaluation."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(*args)
    qnn.finish_calibration(model)
    return model.eval()


WHOLE = {"input_quant": Int8Act, "bias_quant": Int32Bias}


class Net(nn.Module):
    """A recurrent layer and a linear one, in integers throughout."""

    def __init__(self, **options):
        super().__init__()
        self.rnn = qnn.QuantRNN(3, 4, nonlinearity="relu", return_quant_tensor=True, **WHOLE, **options)
        self.fc = qnn.QuantLinear(4 * (1 + self.rnn.bidirectional), 2, bias_quant=Int32Bias)

    def forward(self, x):
        return self.fc(self.rnn(x)[0])


X = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(1))


# What is in the table


def test_every_matrix_is_listed_with_what_it_is_multiplied_with():
    found = integers(settled(Net(num_layers=2), X), X)
    layer = found["rnn"]
    assert list(layer.parameters) == [
        *("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0"),
        *("weight_ih_l1", "bias_ih_l1", "weight_hh_l1", "bias_hh_l1"),
    ]
    assert [(each.weight, each.bias, each.input.name) for each in layer.products] == [
        ("weight_ih_l0", "bias_ih_l0", "rnn.input_quant"),
        ("weight_hh_l0", "bias_hh_l0", "rnn.hidden_l0_quant"),
        ("weight_ih_l1", "bias_ih_l1", "rnn.hidden_l0_quant"),
        ("weight_hh_l1", "bias_hh_l1", "rnn.hidden_l1_quant"),
    ]
    assert [(each.weight, each.input.name) for each in found["fc"].products] == [("weight", "rnn.hidden_l1_quant")]
    assert layer.weight is None
    assert found.floats == ()


def test_the_integers_are_those_of_the_layers_quantizers():
    model = settled(qnn.QuantLSTM(3, 4, weight_bit_width=4, input_quant=Int8Act), X)
    found = integers(model, X)[""]
    for name in ("weight_ih_l0", "weight_hh_l0"):
        quant = getattr(model, f"{name}_quant")
        assert torch.equal(found.quantizers[name].codes, quant.codes(getattr(model, name))[0])
    assert found.quantizers["hidden_l0"].codes is None


def test_calls_of_one_quantizer_are_numbered_and_stored_integers_are_listed_once():
    model = settled(qnn.QuantGRU(3, 4, bidirectional=True, sigmoid_quant=Uint8Act, **WHOLE), X)
    found = integers(model, X)[""]
    assert [slot for slot in found.quantizers if slot.startswith("sigmoid")] == [
        *("sigmoid_l0", "sigmoid_l0.1", "sigmoid_l0.2", "sigmoid_l0.3"),
    ]
    assert list(found.parameters) == [
        *("weight_ih_l0", "bias_ih_l0", "weight_ih_l0_reverse", "bias_ih_l0_reverse"),
        *("weight_hh_l0", "bias_hh_l0", "weight_hh_l0_reverse", "bias_hh_l0_reverse"),
    ]
    assert [each.grid.name for each in found.parameters.values()] == [f"{slot}_quant" for slot in found.parameters]


@pytest.mark.parametrize("way", ["npz", "safetensors"])
def test_files_hold_the_products(way, tmp_path):
    pytest.importorskip("numpy" if way == "npz" else "safetensors")
    model = settled(Net(bidirectional=True), X)
    found = integers(model, X)
    getattr(found, f"save_{way}")(tmp_path / "integers")
    loaded = Integers.load(tmp_path / "integers")
    assert loaded == found
    assert len(loaded["rnn"].products) == 4
    assert torch.equal(run_integers(model, X, integers=loaded).outputs, run_integers(model, X).outputs)


# Running them


def test_a_recurrent_layer_with_relu_needs_no_floats():
    model = settled(Net(num_layers=2, bidirectional=True), X)
    run = run_integers(model, X)
    assert run.integer_only
    assert run.codes["rnn.hidden_l0_quant"].shape == (6, 2, 4)  # the steps come first
    torch.testing.assert_close(run.outputs, model(X), rtol=0, atol=1e-6)


def test_what_a_recurrent_layer_computes_in_floats_is_named():
    for layer, expected in (
        (qnn.QuantLSTM(3, 4, **WHOLE), ("sigmoid", "mul", "tanh", "add")),
        (qnn.QuantGRU(3, 4, **WHOLE), ("sigmoid", "mul", "add", "tanh", "sub")),
        (qnn.QuantRNN(3, 4, **WHOLE), ("tanh",)),
    ):
        (floats,) = integers(settled(nn.Sequential(layer), X), X).floats
        assert (floats.path, floats.kind, floats.place) == ("0", type(layer).__name__, "between")
        assert sorted(floats.operations) == sorted(expected)


RECURRENT = {
    "lstm": lambda: qnn.QuantLSTM(3, 4, cell_quant=Int8ActPowerOfTwo, **WHOLE),
    "both ways": lambda: qnn.QuantLSTM(3, 4, bidirectional=True, bias=False),
    "gru": lambda: qnn.QuantGRU(3, 4, gate_quant=Int8Act, sigmoid_quant=Uint8Act, tanh_quant=Int8Act, **WHOLE),
    "projected": lambda: qnn.QuantLSTM(3, 4, proj_size=2, projection_quant=Int8Act, **WHOLE),
    "tanh": lambda: qnn.QuantRNN(3, 4, **WHOLE),
    "weights alone": lambda: qnn.QuantLSTM(3, 4, hidden_quant=None),
}


@pytest.mark.parametrize(
    "name", [each if each == "gru" else pytest.param(each, marks=pytest.mark.slow) for each in RECURRENT]
)
def test_step_by_step_the_integers_are_those_of_torch_and_of_the_file(name):
    pytest.importorskip("onnxruntime")
    model = settled(nn.Sequential(RECURRENT[name]()), X)
    comparison = compare_integers(model, X)
    assert comparison.ok
    hidden = [row for row in comparison.report.rows if row.name == "0.hidden_l0_quant"]
    assert all(row.compared == 6 * 2 * (2 if name == "projected" else 4) for row in hidden)
    assert len(hidden) == (0 if name == "weights alone" else 3)  # torch, and optimizations off and on


def test_cells_and_given_states():
    cell, states = qnn.QuantLSTMCell(3, 4, **WHOLE), (torch.rand(2, 4), torch.rand(2, 4))
    model = settled(cell, X[0], states)
    run = run_integers(model, (X[0], states))
    for one, other in zip(run.outputs, model(X[0], states), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert {each.input.name for each in integers(model, (X[0], states))[""].products} == {
        "input_quant",
        "hidden_quant",
    }


def test_packed_sequences_whose_lengths_differ():
    packed = pack_sequence([X[:5, 0], X[:3, 1]])
    model = settled(qnn.QuantRNN(3, 4, nonlinearity="relu", bidirectional=True, **WHOLE), packed)
    run = run_integers(model, (packed,))
    assert run.integer_only
    torch.testing.assert_close(run.outputs[0].data, model(packed)[0].data, rtol=0, atol=1e-6)


def test_an_example_of_zeros_gives_the_same_table():
    """Zeros of the example are no zeros that lie on any grid."""
    model = settled(Net(bias_bit_width=16), X)
    found, empty = integers(model, X), integers(model, torch.zeros(6, 2, 3))
    assert found.quantized() == empty.quantized()
    assert found["rnn"].products == empty["rnn"].products


def test_rows_of_a_table_are_integers():
    model = nn.Sequential(qnn.QuantEmbedding(5, 4), qnn.QuantLinear(4, 3, bias_quant=Int32Bias, input_quant=Int8Act))
    indices = torch.tensor([[0, 4], [2, 2]])
    model = settled(model, indices)
    run, found = run_integers(model, indices), integers(model, indices)
    assert run.integer_only
    assert found.floats == ()
    assert found["1"].quantizers["input"].entering is not None
    torch.testing.assert_close(run.outputs, model(indices), rtol=0, atol=1e-6)
    assert [row.name for row in accumulator_report(model, indices).rows] == ["1"]


# Accumulators


def test_accumulators_of_each_weight():
    model = settled(Net(), X)
    report = accumulator_report(model, X)
    assert [row.name for row in report.rows] == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "fc"]
    found = integers(model, X)["rnn"]
    for row, slot in zip(report.rows, ("weight_ih_l0", "weight_hh_l0"), strict=False):
        codes, bias = found.quantizers[slot].codes.long(), found.quantizers[slot.replace("weight", "bias")].codes
        low, high = -codes.abs().sum(1) * 128, codes.abs().sum(1) * 128
        assert row.worst is not None
        assert row.actual is not None
        assert bool((row.worst.low >= low + bias.clamp_max(0)).all())
        assert bool((row.worst.high <= high + bias.clamp_min(0)).all())
        assert bool((row.worst.low <= row.actual.low).all())
        assert bool((row.worst.high >= row.actual.high).all())
    report.certify(24)


def test_a_weight_whose_input_has_no_grid_is_unknown():
    model = settled(qnn.QuantLSTM(3, 4, bias_quant=None, bias=False), X)
    rows = {row.name: row.worst_bits for row in accumulator_report(model, X).rows}
    assert rows["weight_ih_l0"] is None
    assert rows["weight_hh_l0"] == 17
    with pytest.raises(ExportError, match="no bound is known for every layer"):
        accumulator_report(model, X).certify(24)


def test_a_weight_that_is_no_matrix_has_no_accumulator():
    model = nn.Sequential(qnn.QuantLayerNorm(3, weight_quant=Int8WeightPerTensor, output_quant=Int8Act))
    assert accumulator_report(settled(model, X), X).rows == []


# In C


@compiled
def test_a_recurrent_layer_in_c(tmp_path):
    model = settled(Net(), X)
    run = run_integers(model, X, requantize="multiplier")
    header = integers(model, X).to_c_header()
    body = """
    int8_t x[2][6][3], h[2][4] = {{0}};
    for (int t = 0; t < 6; t++) for (int b = 0; b < 2; b++) for (int i = 0; i < 3; i++) x[b][t][i] = (int8_t)next();
    for (int t = 0; t < 6; t++) for (int b = 0; b < 2; b++) {
        int32_t of_x[4], of_h[4], sums[2];
        rnn_weight_ih_l0_sums(x[b][t], of_x);
        rnn_weight_hh_l0_sums(h[b], of_h);
        for (int o = 0; o < 4; o++) h[b][o] = rnn_hidden_l0_requantize(of_x[o], of_h[o], o);
        for (int o = 0; o < 4; o++) put(h[b][o]);
        fc_sums(h[b], sums);
        for (int o = 0; o < 2; o++) put(sums[o]);
    }"""
    found = torch.tensor(run_c(tmp_path, header, body, run.codes["rnn.input_quant"].reshape(-1))).reshape(6, 2, 6)
    assert torch.equal(found[..., :4], run.codes["rnn.hidden_l0_quant"])
    assert torch.equal(found[..., 4:], run.accumulators["fc"].reshape(6, 2, 2))


class TwoWeights(QuantLayer):
    """A layer of a user's own, with two weights and one bias."""

    slots = (
        Slot("up", "up", family=("weight",)),
        Slot("down", "down", family=("weight",)),
        Slot("shift", "shift", follows=("input", "up")),
        Slot("input"),
        Slot("middle"),
    )

    def __init__(self, **quantizers):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(2, 5))
        self.shift = nn.Parameter(torch.randn(5))
        self.fill_slots(**quantizers)

    def forward(self, x):
        x, grid = self.pass_through("input", x)
        up, weights = self.take("up")
        x = nn.functional.linear(x, up, self.take("shift", grid, weights)[0])
        return nn.functional.linear(self.pass_through("middle", x)[0], self.take("down")[0])


@compiled
def test_a_layer_of_the_users_own_in_c(tmp_path):
    model = settled(
        TwoWeights(
            up_quant=Int8WeightPerTensor, down_quant=Int8WeightPerTensor, down_bit_width=4,
            shift_quant=Int32Bias, input_quant=Int8Act, middle_quant=Uint8Act,
        ),
        torch.randn(20, 3),
    )  # fmt: skip
    x = torch.randn(4, 3)
    run, found = run_integers(model, x, requantize="multiplier"), integers(model, x)
    assert [(each.weight, each.bias, each.input.name) for each in found[""].products] == [
        ("up", "shift", "input_quant"),
        ("down", None, "middle_quant"),
    ]
    body = """
    for (int n = 0; n < 4; n++) {
        int8_t x[3]; uint8_t middle[5]; int32_t ups[5], downs[2];
        for (int i = 0; i < 3; i++) x[i] = (int8_t)next();
        own_up_sums(x, ups);
        for (int o = 0; o < 5; o++) middle[o] = own_middle_requantize(ups[o], o);
        own_down_sums(middle, downs);
        for (int o = 0; o < 2; o++) put(downs[o]);
    }"""
    printed = run_c(tmp_path, found.to_c_header("own"), body, run.codes["input_quant"].reshape(-1))
    assert printed == run.accumulators[""].reshape(-1).tolist()


def test_the_header_says_why_a_weight_has_no_sums():
    layer = TwoWeights(up_quant=Int8WeightPerTensor, down_quant=Int8WeightPerTensor, middle_quant=Uint8Act)
    header = integers(settled(layer, torch.randn(20, 3)), torch.randn(4, 3)).to_c_header("own")
    assert "/* no own_up_sums: its input has no grid */" in header
    assert "own_down_sums(const uint8_t *x, int32_t *sums)" in header


def test_sigmoids_can_not_be_said_in_c():
    found = integers(settled(nn.Sequential(qnn.QuantLSTM(3, 4, **WHOLE)), X), X)
    message = (
        "a C header can't express this model:\n"
        "  0 (QuantLSTM): sigmoid, mul, tanh, add. There is no integer arithmetic for it: replace it, or use "
        "export_onnx_qcdq, which keeps it float."
    )
    with pytest.raises(ExportError) as caught:
        found.to_c_header()
    assert str(caught.value) == message
