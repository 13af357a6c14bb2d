"""What the file looks like: names, types, sizes, and forms that the runtime's optimizer leaves alone."""

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import export_onnx_qcdq, export_onnx_qdq, verify_onnx
from bitwright.quantizers import Int8Act, Int8BiasOwnScale, Int8WeightPerChannel, Int32Bias, Uint8Act


def operators(program):
    return [node.op_type for node in program.model_proto.graph.node]


def initializers(program):
    return {each.name: each for each in program.model_proto.graph.initializer}


class LeNet(nn.Module):
    def __init__(self, conv, linear):
        super().__init__()
        self.conv1, self.conv2 = conv(3, 6, 5), conv(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = linear(400, 120), linear(120, 84), linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.reshape(x.shape[0], -1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Twice(nn.Module):
    """One layer called twice, on one grid and on another, with a residual addition."""

    def __init__(self):
        super().__init__()
        self.entry = qnn.QuantIdentity(return_quant_tensor=True)
        self.layer = qnn.QuantConv2d(4, 4, 3, padding=1, bias=True, weight_bit_width=4, bias_quant=Int32Bias)
        self.act = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)

    def forward(self, x):
        x = self.entry(x)
        y = self.act(self.layer(x))
        return self.act(self.layer(y) + x)


def test_names_types_and_integers():
    layer = qnn.QuantLinear(
        8,
        4,
        bias=True,
        weight_quant=Int8WeightPerChannel(bit_width=4),
        bias_quant=Int32Bias,
        input_quant=Uint8Act(scale=0.1, bit_width=6),
    ).eval()
    x = torch.rand(2, 8)
    program = export_onnx_qcdq(layer, x)
    held = initializers(program)
    assert {name: (onnx.TensorProto.DataType.Name(each.data_type), list(each.dims)) for name, each in held.items()} == {
        "input_quant.scale": ("FLOAT", []),
        "input_quant.zero_point": ("UINT8", []),
        "input_quant.min_int": ("UINT8", []),
        "input_quant.max_int": ("UINT8", []),
        "weight_quant.codes": ("INT8", [4, 8]),
        "weight_quant.scale": ("FLOAT", [4]),
        "weight_quant.zero_point": ("INT8", [4]),
        "weight_quant.min_int": ("INT8", []),
        "weight_quant.max_int": ("INT8", []),
        "bias_quant.codes": ("INT32", [4]),
        "bias_quant.scale": ("FLOAT", [4]),
    }
    assert [(node.op_type, node.name) for node in program.model_proto.graph.node] == [
        ("QuantizeLinear", "input_quant.quantize"),
        ("Clip", "input_quant.clip"),
        ("DequantizeLinear", "input_quant.dequantize"),
        ("Clip", "weight_quant.clip"),
        ("DequantizeLinear", "weight_quant.dequantize"),
        ("DequantizeLinear", "bias_quant.dequantize"),
        ("Gemm", "node_linear"),
    ]
    layer(x)  # the bias's scale depends on the input's
    numbers = {name: torch.tensor(onnx.numpy_helper.to_array(each)) for name, each in held.items()}
    assert torch.equal(numbers["weight_quant.codes"], layer.int_weight())
    bias = layer.int_bias()
    assert bias is not None
    assert torch.equal(numbers["bias_quant.codes"], bias)
    assert [int(numbers[f"weight_quant.{end}"]) for end in ("min_int", "max_int")] == [-7, 7]
    assert [int(numbers[f"input_quant.{end}"]) for end in ("min_int", "max_int")] == [0, 63]


@pytest.mark.parametrize(
    ("bits", "signed", "qcdq", "qdq", "opsets"),
    [
        (2, True, "INT8", "INT2", (18, 25)),
        (2, False, "UINT8", "UINT2", (18, 25)),
        (3, True, "INT8", "INT4", (18, 21)),
        (4, False, "UINT8", "UINT4", (18, 21)),
        (5, True, "INT8", "INT8", (18, 18)),
        (8, False, "UINT8", "UINT8", (18, 18)),
        (9, True, "INT16", "INT16", (21, 21)),
        (16, False, "UINT16", "UINT16", (21, 21)),
    ],
)
def test_storage(bits, signed, qcdq, qdq, opsets):
    act = (Int8Act if signed else Uint8Act)(bit_width=bits, scale=0.1)
    for export, kind, opset in ((export_onnx_qcdq, qcdq, opsets[0]), (export_onnx_qdq, qdq, opsets[1])):
        program = export(qnn.QuantIdentity(act_quant=act), torch.randn(3, 5))
        zero_point = initializers(program)["act_quant.zero_point"]
        assert onnx.TensorProto.DataType.Name(zero_point.data_type) == kind
        assert program.model_proto.opset_import[0].version == opset
        assert len(program.model_proto.opset_import) == 1
        onnx.checker.check_model(program.model_proto)


def test_clip_only_where_the_type_is_wider():
    plain = ["QuantizeLinear", "DequantizeLinear"]
    x = torch.randn(3, 5)
    assert operators(export_onnx_qcdq(qnn.QuantIdentity(scale=0.1), x)) == plain
    assert operators(export_onnx_qcdq(qnn.QuantIdentity(scale=0.1, bit_width=7), x)) == [plain[0], "Clip", plain[1]]
    assert operators(export_onnx_qcdq(qnn.QuantIdentity(scale=0.1, narrow_range=True), x)) == [
        plain[0],
        "Clip",
        plain[1],
    ]
    assert operators(export_onnx_qdq(qnn.QuantIdentity(scale=0.1, bit_width=4), x)) == plain
    assert operators(export_onnx_qdq(qnn.QuantIdentity(scale=0.1, bit_width=7), x)) == ["Clip", *plain]


def test_no_inputs_but_the_users_and_no_notes():
    program = export_onnx_qcdq(nn.Sequential(qnn.QuantLinear(8, 4), qnn.QuantReLU(scale=0.1)), torch.randn(2, 8))
    graph = program.model_proto.graph
    assert [each.name for each in graph.input] == ["input"]
    for each in (*graph.node, *graph.initializer, *graph.value_info):
        assert not each.metadata_props
        assert not each.doc_string


def test_size_of_lenet(tmp_path):
    floats, quantized = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    x = torch.randn(1, 3, 32, 32)
    torch.onnx.export(
        LeNet(nn.Conv2d, nn.Linear).eval(), (x,), floats, external_data=False, verbose=False, opset_version=18
    )

    def conv(*shape):
        return qnn.QuantConv2d(*shape, bias=True, weight_bit_width=4)

    def linear(*shape):
        return qnn.QuantLinear(*shape, bias=True, weight_bit_width=4)

    export_onnx_qdq(LeNet(conv, linear), x, quantized)
    assert quantized.stat().st_size <= 0.16 * floats.stat().st_size


def test_shared_layer_is_stored_once_and_added_residually(zoo):
    x = torch.randn(2, 4, 6, 6)
    model = zoo.trained(Twice(), x)
    for export in (export_onnx_qcdq, export_onnx_qdq):
        program = export(model, x, dynamic_shapes=({0: "batch"},))
        codes = [name for name in initializers(program) if name.endswith("codes")]
        assert codes == ["layer.weight_quant.codes", "layer.bias_quant.codes", "layer.bias_quant.1.codes"]
        assert verify_onnx(model, program, torch.randn(50, 4, 6, 6)).ok


def optimized(program, path):
    """The operators that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


KINDS = {
    "conv1d": (lambda **k: qnn.QuantConv1d(4, 8, 3, **k), (2, 4, 9)),
    "conv2d": (lambda **k: qnn.QuantConv2d(4, 8, 3, **k), (2, 4, 9, 9)),
    "conv3d": (lambda **k: qnn.QuantConv3d(4, 8, 3, **k), (2, 4, 5, 5, 5)),
    "transpose": (lambda **k: qnn.QuantConvTranspose2d(4, 8, 3, **k), (2, 4, 9, 9)),
    "linear": (lambda **k: qnn.QuantLinear(16, 8, **k), (5, 16)),
    "linear_3d": (lambda **k: qnn.QuantLinear(16, 8, **k), (2, 5, 16)),
}


@pytest.mark.parametrize("bias_quant", [None, Int8BiasOwnScale], ids=["float", "own_scale"])
@pytest.mark.parametrize("kind", KINDS)
def test_bias_is_not_rounded_by_the_optimizer(kind, bias_quant, tmp_path):
    """Its passes would round it to steps of input scale x weight scale: here as large as the bias itself."""
    make, shape = KINDS[kind]
    layer = make(bias=True, bias_quant=bias_quant, weight_bit_width=4, input_quant=Uint8Act(scale=0.5))
    model = nn.Sequential(layer, qnn.QuantReLU(scale=2**-10, bit_width=8))
    program = export_onnx_qcdq(model, torch.rand(shape))
    report = verify_onnx(model, program, torch.rand(shape))
    assert (report.differences, report.tie_flips) == (0, 0)
    assert "Sub" in optimized(program, tmp_path / "optimized.onnx")


@pytest.mark.parametrize("kind", ["conv2d", "linear"])
def test_integer_kernels_are_kept_for_a_bias_on_the_products_scale(kind, tmp_path):
    make, shape = KINDS[kind]
    layer = make(bias=True, bias_quant=Int32Bias, input_quant=Uint8Act(scale=0.5))
    program = export_onnx_qcdq(nn.Sequential(layer, qnn.QuantReLU(scale=0.1)), torch.rand(shape))
    assert {"QLinearConv", "QGemm"} & set(optimized(program, tmp_path / "optimized.onnx"))


def test_float_layer_between_quantizers_stays_float():
    """WeightBiasQuantization would round its weight to 8 bits."""
    model = nn.Sequential(
        qnn.QuantIdentity(scale=0.05),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3),
        qnn.QuantReLU(scale=0.001),
        nn.Flatten(),
        nn.Linear(32, 8),
        qnn.QuantIdentity(scale=0.001),
    ).eval()
    report = verify_onnx(model, export_onnx_qcdq(model, torch.randn(2, 4, 8, 8)), torch.randn(20, 4, 8, 8))
    assert report.ok, report.table()


def test_two_quantizations_in_a_row_are_kept_apart():
    """DoubleQDQPairsRemover would merge them into one on a third grid."""
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Uint8Act(scale=0.1)),
        nn.Flatten(),
        qnn.QuantIdentity(act_quant=Uint8Act(scale=0.17)),
    )
    report = verify_onnx(model, export_onnx_qcdq(model, torch.rand(2, 3, 4)), 10 * torch.rand(20, 3, 4))
    assert (report.differences, report.tie_flips) == (0, 0)


def test_weight_only_linear_on_three_dimensions_is_not_run_in_8_bits():
    """MatMulNBits would round the input."""
    model = qnn.QuantLinear(64, 32, weight_bit_width=4)
    for export in (export_onnx_qcdq, export_onnx_qdq):
        report = verify_onnx(model, export(model, torch.randn(2, 7, 64)), torch.randn(20, 7, 64))
        assert report.ok, report.table()
