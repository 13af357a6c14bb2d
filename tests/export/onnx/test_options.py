"""Arguments, keywords of torch.onnx.export, several inputs and outputs, nested models."""

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.qcore import BitwrightWarning
from bitwright.quantizers import Int32Bias, Uint8Act


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict(
            {
                "conv": qnn.QuantConv2d(4, 4, 3, padding=1, bias=True, bias_quant=Int32Bias, weight_bit_width=4),
                "act": qnn.QuantReLU(bit_width=4, return_quant_tensor=True),
            }
        )

    def forward(self, x):
        return self.body["act"](self.body["conv"](x))


class Several(nn.Module):
    """Two inputs, one of them by keyword, nested modules, and a dictionary of nested outputs."""

    def __init__(self):
        super().__init__()
        self.entry = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.blocks = nn.Sequential(Block(), nn.Sequential(Block()))
        self.head = qnn.QuantLinear(4, 3)

    def forward(self, x, *, shift=None, flag=True):
        quantized = self.entry(x)
        y = self.blocks(quantized)
        if shift is not None and flag:
            y = y + self.entry(shift)
        return {"entry": quantized, "rest": [self.head(y.mean((2, 3))), (y, None)]}


@pytest.fixture
def several(zoo):
    return zoo.trained(Several(), zoo.example())


@pytest.mark.parametrize("export", [export_onnx_qcdq, export_onnx_qdq])
def test_several_inputs_and_outputs_by_name_with_any_batch(several, zoo, export, tmp_path):
    path = tmp_path / "model.onnx"
    program = export(
        several,
        (zoo.example(),),
        path,
        kwargs={"shift": zoo.example(), "flag": True},
        input_names=["image", "shift"],
        output_names=["entry", "head", "features"],
        dynamic_shapes={"x": {0: "batch"}, "shift": {0: "batch"}, "flag": None},
    )
    graph = onnx.load(path).graph
    assert [each.name for each in graph.input] == ["image", "shift"]
    assert [each.name for each in graph.output] == ["entry", "head", "features"]
    assert all(each.type.tensor_type.shape.dim[0].dim_param for each in (*graph.input, *graph.output))
    assert program.model_proto.graph == graph
    fresh = {"shift": zoo.example(70), "flag": True}
    report = verify_onnx(several, path, zoo.example(70), kwargs=fresh, batch_size=32)
    assert report.ok, report.table()
    rows = {row.name: row.compared for row in report.only("off").rows}
    assert rows["entry.act_quant"] == rows["entry.act_quant.1"] == 70 * 4 * 6 * 6
    assert {"blocks.1.0.body.act.act_quant", "head.weight_quant", "head"} <= rows.keys()


@pytest.mark.parametrize("args", [lambda x: x, lambda x: (x,)], ids=["tensor", "tuple"])
def test_one_tensor_or_a_tuple(several, zoo, args):
    program = export_onnx_qcdq(several, args(zoo.example()))
    assert isinstance(program, torch.onnx.ONNXProgram)
    assert verify_onnx(several, program, args(zoo.example(10))).ok


def test_a_newer_opset_on_request(several, zoo):
    program = export_onnx_qcdq(several, zoo.example(), opset_version=22)
    assert program.model_proto.opset_import[0].version == 22
    assert verify_onnx(several, program, zoo.example(4)).ok


def test_the_path_may_be_called_f(several, zoo, tmp_path):
    export_onnx_qcdq(several, zoo.example(), f=tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_file()


def test_initializers_as_inputs_on_request(tmp_path):
    layer = qnn.QuantLinear(8, 4, bias=False)
    export_onnx_qcdq(layer, torch.randn(2, 8), tmp_path / "model.onnx", keep_initializers_as_inputs=True)
    assert "weight_quant.codes" in [each.name for each in onnx.load(tmp_path / "model.onnx").graph.input]


def test_a_model_in_training_mode_is_exported_as_it_evaluates():
    act = qnn.QuantReLU(calibration_steps=1)
    model = nn.Sequential(qnn.QuantLinear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), act).train()
    model(torch.randn(16, 8))
    program = export_onnx_qcdq(model, torch.randn(2, 8))
    assert model.training
    assert verify_onnx(model, program, torch.randn(20, 8)).ok


def test_an_untrained_model_takes_its_scales_from_the_example():
    model = nn.Sequential(qnn.QuantReLU())
    x = torch.tensor([[0.0, 2.55]])
    with pytest.warns(BitwrightWarning, match=r"\n  0\.act_quant: saw no data"):
        program = export_onnx_qcdq(model, x)
    scale = next(each for each in program.model_proto.graph.initializer if each.name == "0.act_quant.scale")
    assert onnx.numpy_helper.to_array(scale).item() == pytest.approx(0.01)


@pytest.mark.filterwarnings("ignore:.* some quantizers of this model")
@pytest.mark.parametrize("seed", range(4))
def test_untrained_biases_agree_although_a_tie_moves_the_ranges_at_hand(seed):
    """The ranges are multiples of the products' steps, so many values are ties; the file's scales are what counts."""
    torch.manual_seed(seed)
    x = torch.randn(20, 3, 16, 16)

    def layer(kind, *shape):
        return kind(*shape, bias=True, weight_bit_width=4, bias_quant=Int32Bias)

    def act():
        return qnn.QuantReLU(bit_width=4, return_quant_tensor=True)

    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=4, return_quant_tensor=True),
        *(layer(qnn.QuantConv2d, 3, 6, 5), act(), layer(qnn.QuantConv2d, 6, 16, 5), act()),
        *(nn.Flatten(), layer(qnn.QuantLinear, 1024, 20), act(), layer(qnn.QuantLinear, 20, 10)),
    )
    program = export_onnx_qdq(model, x, dynamic_shapes=({0: "batch"},))
    assert verify_onnx(model, program, x, batch_size=7).ok  # the ranges are those of all of them
    assert not verify_onnx(model, program, x[:10]).ok


def test_a_quantizer_at_the_output_and_two_outputs_of_one_value():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = qnn.QuantIdentity(act_quant=Uint8Act(scale=0.1))

        def forward(self, x):
            y = self.act(x)
            return y, y, self.act(torch.full((3,), 0.52))

    x = torch.rand(2, 3)
    program = export_onnx_qcdq(Same(), x, output_names=["a", "b", "c"])
    assert [each.name for each in program.model_proto.graph.output] == ["a", "b", "c"]
    assert verify_onnx(Same(), program, x).ok
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    a, b, c = (torch.tensor(each) for each in session.run(None, {"x": x.numpy()}))
    assert torch.equal(a, b)
    assert torch.allclose(c, torch.full((3,), 0.5))


@pytest.mark.parametrize("outputs", [{"output_names": ["total", "same"]}, {}])
def test_an_input_that_is_an_output_keeps_its_name(outputs):
    class Passing(nn.Module):
        def forward(self, x, y):
            return x + y, x

    inputs = torch.rand(2, 3), torch.rand(2, 3)
    program = export_onnx_qcdq(Passing(), inputs, input_names=["x", "y"], **outputs)
    graph = program.model_proto.graph
    assert [each.name for each in graph.input] == ["x", "y"]
    names = [each.name for each in graph.output]
    assert names == outputs.get("output_names", ["add", "x.output"])
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {"x": inputs[0].numpy(), "y": inputs[1].numpy()})
    assert torch.equal(torch.tensor(found[1]), inputs[0])
