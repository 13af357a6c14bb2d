"""What a user should know before relying on a file is said at every call, in one warning."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import bitwright.nn as qnn
from bitwright.export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.export.capture.caveats import caveats, unreached
from bitwright.qcore import Anneal, BitwrightWarning, QuantizerError
from bitwright.quantizers import Int8Act

HEADLINE = "{}: some quantizers of this model may not do what you expect:"
NO_DATA = (
    "saw no data, so the range is that of the input at hand: in torch another input gets another grid, in a file it "
    "does not. Run some batches in training mode first, or load a checkpoint."
)
CALIBRATING = (
    "still calibrating, so the range is the average of the batches so far and was never learned. Train on, choose "
    "fewer calibration_steps, or end it: qnn.finish_calibration(model)."
)
ATTENTION = (
    "never called: nn.MultiheadAttention does not call out_proj but reads its weight, which stays in floats. Write the "
    "attention with quantized layers of its own."
)
FAST_PATH = (
    "never called: in evaluation nn.TransformerEncoderLayer takes a fast path, which reads the weights of its layers "
    "in floats. Turn it off: torch.backends.mha.set_fastpath_enabled(False)."
)
LEFT_OUT = "never called: the forward of its layer leaves it out. Call it there, or set it to None."
NOT_REACHED = (
    "never called: the example input does not reach its layer, or the model reads the layer's weight instead of "
    "calling it (F.linear(x, layer.weight)), in floats. Call the layer, or remove it."
)


def said(function, *args, **kwargs):
    """The warnings of a call, whatever was said before; a filter shows each text once for each line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        function(*args, **kwargs)
    assert all(each.filename == __file__ for each in caught)
    return [str(each.message) for each in caught if each.category is BitwrightWarning]


def warning(call, *causes):
    return ["\n  ".join([HEADLINE.format(call), *causes])]


class AttentionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.att = nn.MultiheadAttention(16, 2, batch_first=True)
        self.att.out_proj = qnn.QuantLinear(16, 16, weight_bit_width=2, input_quant=Int8Act)
        self.fc = qnn.QuantLinear(16, 4)

    def forward(self, x):
        return self.fc(self.att(x, x, x, need_weights=False)[0])


class WeightReader(nn.Module):
    """Reads a layer's weight, leaves a quantizer out, and has a layer on another path."""

    def __init__(self):
        super().__init__()
        self.read, self.other = qnn.QuantLinear(8, 8), qnn.QuantLinear(8, 8, input_quant=Int8Act)
        self.partly = HalfCalled(8, 8, input_quant=Int8Act(scale=0.1))

    def forward(self, x):
        x = F.linear(x, self.read.weight)
        return self.partly(x) if x.shape[0] < 100 else self.other(x)


class HalfCalled(qnn.QuantLinear):
    def forward(self, input, *extra):  # noqa: A002 - torch's name for it
        assert self.weight_quant is not None
        return F.linear(input, self.weight_quant(self.weight))


def uncalibrated():
    layers = (qnn.QuantIdentity(bit_width=4), qnn.QuantLinear(8, 8), qnn.QuantReLU(bit_width=4), qnn.QuantLinear(8, 2))
    return nn.Sequential(*layers).eval()


def test_quantizers_without_data_are_named_at_every_call():
    model, x = uncalibrated(), torch.randn(4, 8)
    with pytest.warns(BitwrightWarning, match="before it saw any data"):
        model(x)  # whether they have said so themselves changes nothing
    cause = f"0.act_quant, 2.act_quant: {NO_DATA}"
    for _ in range(2):
        assert said(export_onnx_qcdq, model, x) == warning("export_onnx_qcdq", cause)
        assert said(export_onnx_qdq, model, x, verify=False) == warning("export_onnx_qdq", cause)


def test_an_export_does_not_hush_the_quantizers_themselves():
    model, x = uncalibrated(), torch.randn(4, 8)
    assert len(said(export_onnx_qcdq, model, x)) == 1
    with pytest.warns(BitwrightWarning) as caught:
        model(x)
    assert [str(each.message).partition(" is ")[0] for each in caught] == ["0.act_quant", "2.act_quant"]


@pytest.mark.filterwarnings("ignore:.*before it saw any data")
def test_a_verification_tells_that_a_model_without_data_is_not_its_file():
    model, x, other = uncalibrated(), torch.randn(4, 8), 5 * torch.randn(4, 8)
    with pytest.warns(BitwrightWarning):
        program = export_onnx_qcdq(model, x)
    reports = []
    for inputs in (x, other):
        found = said(lambda inputs=inputs: reports.append(verify_onnx(model, program, inputs)))
        assert found == warning("verify_onnx", f"0.act_quant, 2.act_quant: {NO_DATA}")
    same, differing = reports
    assert same.ok
    assert same.output_error < 1e-5
    assert not differing.ok
    note = "the file has another scale: the quantizer saw no data, and takes the range of the input at hand"
    assert {row.name: row.note for row in differing.rows if row.note} == {"0.act_quant": note, "2.act_quant": note}
    file, torch_own = runs(program, other), model(other).detach()
    assert differing.output_error == pytest.approx(float((file - torch_own).abs().max()), rel=1e-5)
    assert differing.relative_output_error == pytest.approx(
        differing.output_error / float(torch_own.abs().max()), rel=1e-5
    )
    assert differing.relative_output_error > 0.1


def runs(program, x):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_calibration_that_stopped_halfway(zoo):
    layers = (qnn.QuantIdentity(), qnn.QuantLinear(8, 8, weight_bit_width=4), qnn.QuantReLU(calibration_steps=100))
    model, x = nn.Sequential(*layers, qnn.QuantReLU(scaling="running")), torch.randn(16, 8)
    for _ in range(100):
        model(x)
    assert said(export_onnx_qcdq, model, x) == warning("export_onnx_qcdq", f"0.act_quant: {CALIBRATING}")
    assert said(export_onnx_qcdq, zoo.finished(model), x) == []


def test_schedules_that_are_not_at_their_end():
    weight = {"weight_bit_width": Anneal(8, 4, steps=4)}
    model = nn.Sequential(qnn.QuantIdentity(scale=0.1, after=3), qnn.QuantLinear(4, 2, **weight))
    x = torch.randn(3, 4)
    model(x)
    going_on = (
        "{}: its settings are not at their end ({}), and the file has what evaluation has now. Train on, or go to "
    )
    going_on += "the end: qnn.finish_schedules(model)."
    assert said(export_onnx_qcdq, model, x) == warning(
        "export_onnx_qcdq",
        going_on.format("0.act_quant", "not quantizing in training before step 3, 1 done"),
        going_on.format("1.weight_quant", "bit_width=7 after 1 of 4 steps"),
    )
    qnn.finish_schedules(model)
    assert said(export_onnx_qcdq, model, x) == []


def test_a_layer_that_attention_reads_the_weight_of():
    """The layer itself refuses; what it can't see, such as a weight that pruning replaced, is named."""
    model, x = AttentionNet().eval(), torch.randn(2, 5, 16)
    with pytest.raises(QuantizerError, match=r"att\.out_proj: MultiheadAttention reads the weight of this layer"):
        export_onnx_qcdq(model, x)
    prune.identity(model.att.out_proj, "weight")
    cause = f"att.out_proj.weight_quant, att.out_proj.input_quant: {ATTENTION}"
    programs = []
    assert said(lambda: programs.append(export_onnx_qcdq(model, x))) == warning("export_onnx_qcdq", cause)
    assert said(verify_onnx, model, programs[0], x) == warning("verify_onnx", cause)


def test_layers_that_are_not_called_and_quantizers_that_their_layer_leaves_out():
    model, x = WeightReader().eval(), torch.randn(2, 8)
    names = "read.weight_quant, other.weight_quant, other.input_quant"
    causes = (f"{names}: {NOT_REACHED}", f"partly.input_quant: {LEFT_OUT}")
    assert said(export_onnx_qcdq, model, x) == warning("export_onnx_qcdq", *causes)


def test_a_fast_path_that_reads_weights():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    layer.linear1 = qnn.QuantLinear(16, 32, weight_bit_width=2)
    model = nn.ModuleDict({"layer": layer})
    assert unreached("layer.linear1.weight_quant", model, ()) == FAST_PATH
    quantizers = {"layer.linear1.weight_quant": layer.linear1.weight_quant}
    assert caveats(model, quantizers, ()) == [f"layer.linear1.weight_quant: {FAST_PATH}"]
    assert caveats(model, quantizers, quantizers) == []


@pytest.mark.filterwarnings("ignore:.*some quantizers of this model")
def test_a_quantizer_that_is_called_only_while_the_model_is_traced():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry, self.layer = qnn.QuantIdentity(scale=0.1), qnn.QuantLinear(8, 8)

        def forward(self, x):
            x = self.entry(x)
            return self.layer(x) if torch.compiler.is_exporting() else F.linear(x, self.layer.weight)

    with pytest.raises(ExportError) as caught:
        export_onnx_qcdq(Sometimes().eval(), torch.randn(2, 8))
    assert str(caught.value) == (
        "layer.weight_quant is called while the model is traced, but not when it runs on the example input:\n"
        f"  layer.weight_quant: {NOT_REACHED}"
    )


def test_a_model_that_does_what_it_was_trained_for_warns_of_nothing():
    model, x = nn.Sequential(qnn.QuantIdentity(calibration_steps=1), qnn.QuantLinear(8, 8)), torch.randn(2, 8)
    model(x)
    programs = []
    assert said(lambda: programs.append(export_onnx_qcdq(model, x))) == []
    assert said(verify_onnx, model, programs[0], x) == []
