"""LeNet-5 and a residual network: with integers, in torch, as QCDQ, and in the integer dialect."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    accumulator_report,
    compare_integers,
    export_onnx_integer,
    export_onnx_qcdq,
    integers,
    run_integers,
)
from bitwright.export.onnx import exporter
from bitwright.qcore import QuantTensor
from bitwright.quantizers import (
    Int8Act,
    Int8ActPerChannel,
    Int8WeightPerChannel,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerTensor,
    Uint4Act,
)

pytest.importorskip("onnxruntime")


class LeNet(nn.Module):
    """Weights and activations of 4 bits."""

    def __init__(self, bias=Int32Bias):
        super().__init__()
        four = {"weight_bit_width": 4, "bias_quant": bias}
        act = {"bit_width": 4, "return_quant_tensor": True}
        self.quant_inp = qnn.QuantIdentity(**act)
        self.conv1 = qnn.QuantConv2d(1, 6, 5, **four)
        self.relu1 = qnn.QuantReLU(**act)
        self.conv2 = qnn.QuantConv2d(6, 16, 5, **four)
        self.relu2 = qnn.QuantReLU(**act)
        self.fc1 = qnn.QuantLinear(16 * 5 * 5, 120, **four)
        self.relu3 = qnn.QuantReLU(**act)
        self.fc2 = qnn.QuantLinear(120, 84, **four)
        self.relu4 = qnn.QuantReLU(**act)
        self.fc3 = qnn.QuantLinear(84, 10, **four)

    def forward(self, x):
        x = F.max_pool2d(self.relu1(self.conv1(self.quant_inp(x))), 2)
        x = F.max_pool2d(self.relu2(self.conv2(x)), 2).flatten(1)
        return self.fc3(self.relu4(self.fc2(self.relu3(self.fc1(x)))))


class Block(nn.Module):
    """Residual: both branches on one grid, or the sums of products added to the skipped tensor."""

    def __init__(self, ins, outs, stride=1, shared=True):
        super().__init__()
        options = {"weight_quant": Int8WeightPerChannel(bit_width=4), "bias_quant": Int32Bias}
        self.conv1 = qnn.QuantConv2d(ins, outs, 3, stride, 1, **options)
        self.act1 = qnn.QuantReLU(return_quant_tensor=True)
        self.conv2 = qnn.QuantConv2d(outs, outs, 3, 1, 1, **options)
        self.skip = qnn.QuantConv2d(ins, outs, 1, stride, **options) if ins != outs else None
        self.common = qnn.QuantIdentity(return_quant_tensor=True) if shared else nn.Identity()
        self.act2 = qnn.QuantReLU(return_quant_tensor=True)

    def forward(self, x):
        y = self.common(self.conv2(self.act1(self.conv1(x))))
        skipped = x if self.skip is None else self.common(self.skip(x))
        return self.act2(y + skipped)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)
        self.stem = qnn.QuantConv2d(3, 8, 3, 1, 1, weight_quant=ShiftedUint8WeightPerTensor, bias_quant=Int32Bias)
        self.act = qnn.QuantReLU(return_quant_tensor=True)
        self.blocks = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16, shared=False))
        self.pool = qnn.QuantIdentity(return_quant_tensor=True)
        self.fc = qnn.QuantLinear(16, 10, bias_quant=Int32Bias)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.stem(self.inp(x))), 3, 2, 1)
        return self.fc(self.pool(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)))


def trained(model, *shape):
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(*shape))
    qnn.finish_calibration(model)
    return model.eval()


MODELS = {"lenet": (LeNet, (1, 32, 32)), "resnet": (ResNet, (3, 16, 16))}


@pytest.fixture(params=MODELS)
def case(request):
    kind, shape = MODELS[request.param]
    return trained(kind(), 16, *shape), torch.randn(16, *shape)


@pytest.mark.parametrize("requantize", ["scale", "multiplier"])
def test_integers_torch_and_runtime_agree(case, requantize):
    model, x = case
    comparison = compare_integers(model, x, requantize=requantize)
    assert comparison.ok, comparison.table()
    assert comparison.run.integer_only
    assert comparison.differences == 0
    assert comparison.tie_flips <= 1e-6 * comparison.report.compared + 1
    assert comparison.first_difference is None
    assert {row.optimizations for row in comparison.report.rows} == {"torch", "off", "on", "plain"}


def test_integer_dialect_has_equal_bits(case):
    """Exporting raises unless every bit agrees; here on other inputs, and without the library's own comparison."""
    model, x = case
    program = export_onnx_integer(model, x)
    fresh = torch.randn_like(x)
    found = torch.as_tensor(run_program(program, fresh))
    assert torch.equal(found, run_integers(model, fresh).outputs)
    assert torch.equal(found, torch.as_tensor(run_program(program, fresh, optimize=False)))
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert not {"Conv", "Gemm", "MatMul", "AveragePool", "ReduceMean", "GlobalAveragePool"} & set(kinds)
    layers = sum(isinstance(module, (qnn.QuantConv2d, qnn.QuantLinear)) for module in model.modules())
    assert kinds.count("ConvInteger") + kinds.count("MatMulInteger") == layers


def test_integer_dialect_has_the_bits_of_integer_valued_floats():
    """LeNet once more, written out: torch's float32 convolutions of whole numbers."""
    model, x = trained(LeNet(), 16, 1, 32, 32), torch.randn(8, 1, 32, 32)
    found = integers(model, x)

    def quantized(values, grid):
        return torch.clamp(torch.round(values / grid.scale), *grid.bounds)

    def layer(codes, name, operation):
        part = found[name]
        sums = operation(codes, part.weight.codes.float(), part.bias.codes.float())
        return sums * part.output.scale

    def act(name):
        return found[name].quantizers["act"].grid

    codes = quantized(x, act("quant_inp"))
    for number in (1, 2):
        codes = quantized(layer(codes, f"conv{number}", F.conv2d).relu(), act(f"relu{number}"))
        codes = F.max_pool2d(codes, 2)
    codes = codes.flatten(1)
    for number in (1, 2):
        codes = quantized(layer(codes, f"fc{number}", F.linear).relu(), act(f"relu{number + 2}"))
    expected = layer(codes, "fc3", F.linear)
    assert torch.equal(run_integers(model, x).outputs, expected)
    assert torch.equal(torch.as_tensor(run_program(export_onnx_integer(model, x), x)), expected)


def run_program(program, x, optimize=True):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    content = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(content, options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_accumulators_of_lenet_are_certified():
    model = trained(LeNet(), 16, 1, 32, 32)
    report = accumulator_report(model, torch.randn(4, 1, 32, 32))
    assert [row.name for row in report.rows] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert all(row.actual_bits <= row.worst_bits <= 16 for row in report.rows)
    assert report.certify(16).fits(16)


def test_a_pass_that_changes_numbers_is_named(monkeypatch):
    """The graph as it would be without fences: the runtime rounds float biases to integers."""
    model, x = trained(LeNet(bias=None), 16, 1, 32, 32), torch.randn(16, 1, 32, 32)
    monkeypatch.setattr(exporter, "protect", lambda graph: None)
    comparison = compare_integers(model, x, program=export_onnx_qcdq(model, x, verify=False))
    assert not comparison.ok
    assert comparison.first_difference.name == "relu1.act_quant"
    assert comparison.first_difference.optimizations == "on"
    assert comparison.passes == ("WeightBiasQuantization",)
    assert str(comparison).endswith(
        "first difference: relu1.act_quant, in onnxruntime with optimizations on, caused by its pass "
        "WeightBiasQuantization"
    )


def test_a_file_of_other_weights_differs_in_the_first_layer():
    model, x = trained(LeNet(), 16, 1, 32, 32), torch.randn(8, 1, 32, 32)
    program = export_onnx_qcdq(model, x)
    found = integers(model, x)
    with torch.no_grad():
        model.conv2.bias.add_(0.5)
    comparison = compare_integers(model, x, program=program)
    assert comparison.first_difference.name == "relu2.act_quant"
    assert comparison.first_difference.optimizations == "off"
    assert comparison.passes == ()
    stored = compare_integers(model, x, integers=found, program=program)
    assert stored.first_difference.name == "conv2.bias_quant"
    assert stored.first_difference.optimizations == "torch"


def test_ties_are_counted_and_explain_outputs():
    """Every odd sum lies halfway between two integers of the next grid, and the runtime fuses the file as it is."""
    entry, weight, head = 0.0303, 0.0417, {"bias": False, "return_quant_tensor": True}
    model = nn.Sequential(
        qnn.QuantIdentity(scale=entry, return_quant_tensor=True),
        qnn.QuantConv2d(1, 6, 5, weight_quant=Int8Act(scale=weight, quantizes="weight"), **head),
        qnn.QuantReLU(scale=2 * entry * weight, bit_width=8, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(600, 10, bias=False),
    ).eval()
    comparison = compare_integers(model, torch.randn(16, 1, 14, 14))
    assert comparison.differences == 0, comparison.table()
    assert comparison.tie_flips > 100


def test_coarse_multipliers_differ():
    from bitwright.export import ByMultiplier

    model, x = trained(LeNet(), 16, 1, 32, 32), torch.randn(8, 1, 32, 32)
    comparison = compare_integers(model, x, requantize=ByMultiplier(bits=4))
    assert comparison.first_difference.name == "relu1.act_quant"
    assert comparison.first_difference.optimizations == "torch"


# The integer dialect: what it takes, and what it refuses


class Many(nn.Module):
    """Layers of other shapes: grouped, strided, dilated, one-dimensional, without bias, on a batch of matrices."""

    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(return_quant_tensor=True)
        self.positive = qnn.QuantIdentity(act_quant=Uint4Act, return_quant_tensor=True)
        self.depthwise = qnn.QuantConv2d(4, 8, 3, groups=4, dilation=2, bias=False)
        self.line = qnn.QuantConv1d(4, 6, 3, stride=2, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel)
        self.volume = qnn.QuantConv3d(4, 2, (1, 3, 3), bias=False, weight_bit_width=2)
        self.rows = qnn.QuantLinear(8, 5, weight_quant=Int8WeightPerChannel, bias_quant=Int32Bias)
        self.unbiased = qnn.QuantLinear(8, 5, bias=False, output_quant=Int8Act)

    def forward(self, x):
        x = self.inp(x)
        padded = F.pad(x, (1, 0, 0, 2))
        return (
            self.depthwise(padded),
            self.line(x.flatten(2)),
            self.volume(x.unsqueeze(2)),
            self.rows(F.relu(x)),
            self.unbiased(x.transpose(2, 3)),
            self.positive(F.avg_pool2d(x, 2) + F.avg_pool2d(x, 2)),
            self.positive(x.mean((2, 3))),
        )


def test_layers_of_every_shape():
    model = trained(Many(), 4, 4, 8, 8)
    program = export_onnx_integer(model, torch.randn(3, 4, 8, 8))
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert not {"Conv", "Gemm", "MatMul", "AveragePool", "ReduceMean"} & set(kinds)
    assert run_integers(model, torch.randn(3, 4, 8, 8)).integer_only


def test_dynamic_batch():
    model, x = trained(LeNet(), 16, 1, 32, 32), torch.randn(4, 1, 32, 32)
    program = export_onnx_integer(model, x, dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}})
    fresh = torch.randn(9, 1, 32, 32)
    assert torch.equal(torch.as_tensor(run_program(program, fresh)), run_integers(model, fresh).outputs)


def test_file_is_written(tmp_path):
    onnx = pytest.importorskip("onnx")
    model, x = trained(LeNet(), 16, 1, 32, 32), torch.randn(4, 1, 32, 32)
    export_onnx_integer(model, x, tmp_path / "lenet.onnx")
    onnx.checker.check_model(str(tmp_path / "lenet.onnx"), full_check=True)
    comparison = compare_integers(model, x, program=tmp_path / "lenet.onnx")
    assert comparison.ok, comparison.table()


def refusal(model, *shape):
    with pytest.raises(ExportError) as raised:
        export_onnx_integer(model, torch.randn(*shape))
    return str(raised.value)


def test_batch_norm_is_refused(tmp_path):
    model = nn.Sequential(
        qnn.QuantIdentity(return_quant_tensor=True),
        qnn.QuantConv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        qnn.QuantReLU(bit_width=4),
    )
    trained(model, 8, 1, 9, 9)
    with pytest.raises(ExportError) as raised:
        export_onnx_integer(model, torch.randn(2, 1, 9, 9), tmp_path / "model.onnx")
    assert str(raised.value) == (
        "the integer dialect can't express this model:\n"
        "  2 (BatchNorm2d): batch_norm. Fold it into the convolution before that is quantized: "
        "graph.fold_batch_norms(model, examples)."
    )
    assert list(tmp_path.iterdir()) == []


def test_folded_batch_norm_is_exported():
    conv, bn = qnn.QuantConv2d(1, 4, 3, bias_quant=Int32Bias), nn.BatchNorm2d(4)
    bn(torch.randn(8, 4, 9, 9) * 2 + 1)
    folded = torch.nn.utils.fuse_conv_bn_eval(conv.eval(), bn.eval())
    model = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), folded, qnn.QuantReLU(bit_width=4))
    program = export_onnx_integer(trained(model, 8, 1, 9, 9), torch.randn(2, 1, 9, 9))
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert kinds[:6] == ["QuantizeLinear", "ConvInteger", "Add", "Cast", "Mul", "Relu"]


class Scaled(nn.Module):
    def forward(self, x):
        return x.sin()


def test_every_float_is_refused_in_one_error():
    """Before the first quantizer, between two, behind the last; functions, modules, layers of ours."""
    act = {"return_quant_tensor": True, "scale": 0.1}
    model = nn.Sequential(
        nn.Linear(6, 6),
        qnn.QuantIdentity(**act),
        nn.LayerNorm(6),
        qnn.QuantIdentity(**act),
        nn.Sequential(Scaled(), nn.Softmax(1)),
        qnn.QuantLinear(6, 6, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.01)),
        qnn.QuantSigmoid(**act),
        qnn.QuantLinear(6, 6),
        nn.Tanh(),
    ).eval()
    other = "There is no integer arithmetic for it: replace it, or use export_onnx_qcdq, which keeps it float."
    assert refusal(model, 2, 6) == (
        "the integer dialect can't express this model:\n"
        "  7 (QuantLinear): its bias is float. Write bias_quant=Int32Bias.\n"
        "  0 (Linear): addmm. Write qnn.QuantLinear with bias_quant=Int32Bias, and quantize its input.\n"
        f"  2 (LayerNorm): layer_norm. {other}\n"
        f"  4.0 (Scaled): sin. {other}\n"
        f"  4.1 (Softmax): softmax. {other}\n"
        f"  6 (QuantSigmoid): sigmoid. {other}\n"
        "  8 (Tanh): tanh. There is no integer arithmetic for it: apply it to the outputs, outside of the model."
    )


def test_what_the_operators_do_not_take_is_refused():
    """Integers in `run_integers`, but not in the graph: windows of integers wider than 8 bits."""

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = qnn.QuantIdentity(return_quant_tensor=True, scale=0.1)
            self.pool = nn.AvgPool2d(2)
            self.out = qnn.QuantIdentity(scale=0.1)

        def forward(self, x):
            x = self.inp(x)
            return self.out(self.pool(x + x))

    model = Pooled().eval()
    assert run_integers(model, torch.randn(2, 3, 4, 4)).integer_only
    assert refusal(model, 2, 3, 4, 4) == (
        "the integer dialect can't express this model:\n"
        "  pool (AvgPool2d): AveragePool. It takes integers of more than 8 bits or of several scales, and integer "
        "operators take 8 bits and one scale. Put a QuantIdentity in front of it."
    )


def test_a_divisor_that_the_exporter_drops_is_refused():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inp = qnn.QuantIdentity(return_quant_tensor=True, scale=0.1)

        def forward(self, x):
            return F.avg_pool2d(self.inp(x), 2, divisor_override=3)

    assert refusal(Pooled().eval(), 2, 3, 4, 4).startswith(
        "torch.onnx.export would write 1 operation of this model as something else:\n"
        "  the model (Pooled): average pooling with divisor_override=3, which it drops."
    )


def test_an_input_may_be_normalized():
    class Normalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.3, 0.4, 0.5]).reshape(3, 1, 1))
            self.net = nn.Sequential(qnn.QuantIdentity(return_quant_tensor=True), qnn.QuantConv2d(3, 4, 3, bias=False))

        def forward(self, x):
            return self.net((x - self.mean) / 0.22)

    model = trained(Normalized(), 4, 3, 8, 8)
    program = export_onnx_integer(model, torch.randn(2, 3, 8, 8))
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert kinds == ["Sub", "Div", "QuantizeLinear", "ConvInteger", "Cast", "Mul"]


class Shared(nn.Module):
    """Residual sums of tensors on one scale, of 4 bits or 8, and what follows them."""

    def __init__(self, bits, act):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=act, bit_width=bits, return_quant_tensor=True)
        options = {"padding": 1, "bias_quant": Int32Bias, "return_quant_tensor": True}
        self.conv = qnn.QuantConv2d(3, 3, 3, output_quant=self.inp.act_quant, **options)
        self.on_sums = qnn.QuantConv2d(3, 2, 1, bias_quant=Int32Bias) if bits == 4 else nn.Identity()
        self.last = nn.ModuleList(qnn.QuantIdentity() for _ in range(5))

    def forward(self, x):
        x = self.inp(x)
        y = self.conv(x)
        total, less = x + y, x - y
        return (
            self.last[0](F.max_pool2d(total, 2)),
            self.last[1](F.pad(F.relu(less), (1, 0, 0, 1)).flatten(1)[:, ::3]),
            self.last[2](F.max_pool2d(total, 3, 2, 1) + F.max_pool2d(less, 3, 2, 1)),
            self.last[3](less.permute(0, 2, 3, 1).mean((1, 2))),
            self.last[4](self.on_sums(F.max_pool2d(total, 2))),
        )


@pytest.mark.parametrize(("bits", "act"), [(4, ShiftedUint8Act), (8, Int8Act)])
def test_residual_sums_on_one_scale_are_sums_of_integers(bits, act):
    model, x = trained(Shared(bits, act), 8, 3, 8, 8), torch.randn(4, 3, 8, 8)
    run = run_integers(model, x)
    assert run.integer_only
    program = export_onnx_integer(model, x)  # equal bits, or an error
    kinds = [node.op_type for node in program.model_proto.graph.node]
    assert kinds.count("ConvInteger") == (2 if bits == 4 else 1)
    assert "ReduceMean" not in kinds
    comparison = compare_integers(model, x, program=program)
    assert comparison.ok, comparison.table()


def test_refusals_are_listed():
    model = nn.ModuleDict(
        {
            "no_input": qnn.QuantLinear(4, 4, bias=False),
            "float_bias": qnn.QuantLinear(4, 4, input_quant=Int8Act(scale=0.1)),
        }
    ).eval()

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            for layer in self.layers.values():
                x = layer(x)
            return x

    with pytest.raises(ExportError) as raised:
        export_onnx_integer(All(), torch.randn(2, 4))
    assert str(raised.value) == (
        "the integer dialect can't express this model:\n"
        "  layers.float_bias (QuantLinear): its bias is float. Write bias_quant=Int32Bias.\n"
        "  layers.no_input (QuantLinear): its input is not quantized. Write input_quant=Int8Act, or put a "
        "QuantIdentity in front of it."
    )


def test_inputs_of_several_scales_are_refused():
    layer = qnn.QuantConv1d(4, 4, 1, bias=False, input_quant=Int8ActPerChannel(scale=[0.1] * 4))
    with pytest.raises(ExportError) as raised:
        export_onnx_integer(layer.eval(), torch.randn(2, 4, 3))
    assert str(raised.value) == (
        "the integer dialect can't express 1 quantizer of this model:\n"
        "  input_quant: its scales are for axis 1; the integer dialect takes one scale per tensor. Write "
        "input_axis=None."
    )


def test_more_than_eight_bits_are_refused():
    model = nn.Sequential(
        qnn.QuantLinear(4, 4, bias=False, weight_bit_width=12, input_quant=Int8Act(scale=0.1, bit_width=9))
    ).eval()
    with pytest.raises(ExportError) as raised:
        export_onnx_integer(model, torch.randn(2, 4))
    assert str(raised.value) == (
        "the integer dialect can't express 2 quantizers of this model:\n"
        "  0.input_quant: 9 bits, signed; the integer dialect stores 2 to 8. Write input_bit_width=8 or less.\n"
        "  0.weight_quant: 12 bits, signed; the integer dialect stores 2 to 8. Write weight_bit_width=8 or less."
    )


def test_sums_as_an_input_are_refused():
    model = nn.Sequential(
        qnn.QuantLinear(4, 4, bias=False, input_quant=Int8Act(scale=0.1), return_quant_tensor=True),
        qnn.QuantLinear(4, 4, bias=False),
    ).eval()
    with pytest.raises(ExportError) as raised:
        export_onnx_integer(model, torch.randn(2, 4))
    assert str(raised.value) == (
        "the integer dialect can't express this model:\n"
        "  1 (QuantLinear): its input has 17 bits, and integer operators take 8. Put a QuantIdentity in front of it."
    )


class AsksForQuantTensors(nn.Module):
    def forward(self, x):
        if not isinstance(x, QuantTensor):
            raise TypeError("add among QuantTensors")
        return x + x


class ReadsTheScale(nn.Module):
    def forward(self, x):
        return x.value / x.scale


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (AsksForQuantTensors, "TypeError: add among QuantTensors"),
        (ReadsTheScale, "AttributeError: 'IntegerTensor' object has no attribute 'scale'"),
    ],
)
def test_a_module_that_asks_for_a_quant_tensor_is_named(module, said):
    model = nn.Sequential(qnn.QuantIdentity(max_value=1.0, return_quant_tensor=True), module()).eval()
    with pytest.raises(ExportError) as error:
        integers(model, torch.rand(2, 4))
    assert str(error.value) == (
        f"1 ({module.__name__}): its forward failed on the integers that stand for its input: {said}. In a run on "
        "integers no tensor is a QuantTensor, and none has a scale. Compute with the tensor itself, and leave scales "
        "to a quantizer: QuantIdentity(return_quant_tensor=True) behind the module."
    )
