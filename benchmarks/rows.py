"""The budgets: what a piece of work may cost at most."""

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One budget. Where it has several limits, each is for one workload."""

    number: str
    work: str
    workloads: tuple[str, ...]
    limits: tuple[float, ...]

    def met(self, measured: tuple[float, ...]) -> bool:
        """Whether every number is within its limit, unrounded."""
        return all(number <= limit for number, limit in zip(measured, self.limits, strict=True))


def _row(number: str, work: str, workload: str, limit: float) -> Row:
    return Row(number, work, (workload,), (limit,))


ROWS = (
    _row("1", "LeNet-5 batch 64, training step, W4", "lenet-w4-step", 1.15),
    _row("2", "... W4A4, all scales learned", "lenet-w4a4-step", 1.55),
    _row("2b", "... W4A4, the input quantizer's scale frozen", "lenet-w4a4-frozen-step", 1.25),
    _row("3", "... W4A4 + Int32Bias, QuantTensors, all scales learned", "lenet-w4a4b32-step", 1.65),
    _row("4", "... W4A4 during calibration", "lenet-w4a4-calibrating-step", 1.40),
    Row(
        "5",
        "LeNet-5 batch 64, evaluation, W4A4: plain / inside `qnn.frozen`",
        ("lenet-w4a4-eval", "lenet-w4a4-eval-frozen"),
        (1.45, 1.12),
    ),
    Row(
        "6",
        "... W4A4 + Int32Bias, QuantTensors: plain / frozen",
        ("lenet-w4a4b32-eval", "lenet-w4a4b32-eval-frozen"),
        (1.5, 1.2),
    ),
    _row("7", "ResNet-18, 32x32, batch 16, training step, W4A4, learned scales", "resnet-step", 1.10),
    _row("8", "... peak memory of the step, MB", "resnet-memory", 131),
    Row("9", "... evaluation: plain / frozen", ("resnet-eval", "resnet-eval-frozen"), (1.30, 1.03)),
    _row("10", "Linear 1024x1024, batch 64, training step, W8A8", "linear-step", 1.5),
    _row("11", "MLP 3 x 512, batch 64, training step, W4A4 learned", "mlp-step", 1.6),
    _row("12", "compiled against compiled float: LeNet-5 training, W4A4", "lenet-step-compiled", 1.0),
    _row("13", "... ResNet-18 training, W4A4", "resnet-step-compiled", 1.08),
    _row("14", "graphs compiled over 400 training steps, QuantTensors and statistics", "graphs-quant-tensors", 2),
    _row("15", "construct Conv2d(64, 64, 3) with weight, bias and input quantizers", "construct-conv", 2.5),
    _row("16", "construct an activation layer, ms", "construct-relu", 0.12),
    _row("17", "construct a 12-layer transformer's linears, initialisation skipped", "construct-linears", 5.5),
    _row("17b", "construct the first model of a process, MobileNetV2, ms beyond float", "construct-first", 30),
    Row("18", "modules in a QuantLinear / in an activation layer", ("modules-linear", "modules-relu"), (4, 4)),
    _row("19", "`import bitwright.nn` beyond torch, s", "import", 0.2),
    _row("20", "ONNX file of LeNet-5 W4 against the float file", "onnx-size", 0.14),
    _row("21", "fake-quant of an activation, 1e5 elements, forward + backward, against `clone`", "act-1e5-step", 25),
    Row(
        "22",
        "QuantLSTM training step, W8A8, all learned, against nn.LSTM: 256 / 64 hidden features",
        ("lstm-256-step", "lstm-64-step"),
        (1.8, 3.0),
    ),
    Row("23", "QuantGRU, the same, against nn.GRU", ("gru-256-step", "gru-64-step"), (1.1, 1.1)),
    Row(
        "24",
        "recurrent, weights only: LSTM 256 / 64, GRU 256 / 64",
        ("lstm-256-weights-step", "lstm-64-weights-step", "gru-256-weights-step", "gru-64-weights-step"),
        (1.2, 1.2, 1.2, 1.2),
    ),
    Row(
        "25",
        "QuantMultiheadAttention, all slots, training step: 128 / 256 features",
        ("attention-128-step", "attention-256-step"),
        (1.6, 1.6),
    ),
    _row(
        "26",
        "FP8 E4M3 activation, learned scale, 1e6 elements, forward + backward, against `clone`",
        "act-fp8-1e6-step",
        9,
    ),
    Row(
        "27",
        "MXFP4 weight, 1e6 elements, forward + backward, scale detached / through, against `clone`",
        ("weight-mxfp4-detached", "weight-mxfp4-through"),
        (12, 18),
    ),
    Row(
        "28",
        "int4 weight, groups of 32, 1e6 elements, forward + backward, scale detached / through, against `clone`",
        ("weight-groups-detached", "weight-groups-through"),
        (5.5, 12),
    ),
    _row("29", "ResNet-18, W8A8, training step: converted / by hand", "converted-step", 1.02),
    _row("30", "`quantize(MobileNetV2, rules, examples=...)`, CPU s", "conversion", 0.5),
    _row("31", "`calibrate` MobileNetV2, W8A8 / one float forward on the same data", "calibration", 1.4),
    Row(
        "32",
        "W4 MobileNetV2, 24 photos, CPU s: `correct_biases`; `gptq`; `gpfq`; `qronos`; `autoround`; `adaround`",
        ("correct_biases", "gptq", "gpfq", "qronos", "autoround", "adaround"),
        (5, 8, 8, 8, 12, 25),
    ),
    Row(
        "33",
        "export + verify / torch's export of the float model, CPU s: MobileNetV2; encoder of MiniLM's size",
        ("export-mobilenet", "export-minilm"),
        (1.3, 1.3),
    ),
    Row(
        "34",
        "peak memory of `verify_onnx`, MB: encoder of MiniLM's size; MobileNetV2, 256 photos of 224x224",
        ("verify-memory-minilm", "verify-memory-photos"),
        (200, 1000),
    ),
)
