"""What `supports` says before there is data is what exports then do."""

import json
import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import (
    TARGETS,
    Accepts,
    ExportError,
    SupportReport,
    SupportRow,
    Target,
    export_onnx_integer,
    export_onnx_qcdq,
    export_onnx_qdq,
    supports,
)
from bitwright.qcore import BitwrightError, Integers, QuantizerError
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8BiasOwnScale,
    Int8WeightPerChannel,
    Int32Bias,
    NF4Weight,
)

EXPORTS = {"onnx-qcdq": export_onnx_qcdq, "onnx-qdq": export_onnx_qdq, "onnx-integer": export_onnx_integer}
SIGNED = Accepts(
    (Integers(8), Integers(4)), exact=True, scales=("tensor",), zero_points=False, scale_rules=("power of two",)
)
CHIP = Target("the chip", SIGNED, SIGNED, Accepts((Integers(16),)), accumulator_bits=16)


def test_a_model_that_was_never_trained():
    model = nn.Sequential(
        qnn.QuantLinear(8, 4, weight_quant=Int8WeightPerChannel(bit_width=20)), qnn.QuantReLU(rounding="stochastic")
    )
    report = supports(model, "onnx-qcdq")
    assert not report.ok
    assert report.blocked == ["0.weight_quant"]
    assert report.checked == 2
    assert str(report) == (
        "QCDQ can't take 1 of 2 quantizers:\n"
        "  0.weight_quant: 20 bits, signed; QCDQ stores 2 to 16 (bit_width: keyword bit_width). Write "
        "weight_bit_width=16 or less."
    )
    with pytest.raises(ExportError, match=f"^{re.escape(str(report))}$"):
        report.require()
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["setting"] == "bit_width"
    assert supports(nn.Sequential(qnn.QuantLinear(8, 4)), "onnx-qcdq").require().ok


def test_layers_and_biases_of_the_integer_dialect():
    model = nn.Sequential(qnn.QuantLinear(4, 4), qnn.QuantLSTM(4, 4), qnn.QuantLinear(4, 4, bias_quant=Int32Bias))
    assert [str(row) for row in supports(model, "onnx-integer").rows] == [
        "0 (QuantLinear): its bias is float. Write bias_quant=Int32Bias.",
        "1 (QuantLSTM): its gates are sigmoids and tanhs of floats, and so are its steps. Use export_onnx_qcdq or "
        "export_onnx_qdq.",
    ]


def test_rules_before_there_is_a_model():
    rules = {
        nn.Conv2d: {"weight_quant": NF4Weight, "input_quant": Int8Act, "input_bit_width": 4},
        "head": None,
        nn.LSTM: {"hidden_quant": Int8Act, "hidden_bit_width": 20},
    }
    assert str(supports(rules, "onnx-qcdq")) == (
        "QCDQ can't take 2 of 3 quantizers:\n"
        f"  Conv2d.weight_quant: its levels are nf4, and QCDQ has integers only (number_format: {origin(NF4Weight)}). "
        "Write export_onnx_qdq, which stores them, or quantize to integers.\n"
        "  LSTM.hidden_quant: 20 bits, signed; QCDQ stores 2 to 16 (bit_width: keyword bit_width). Write "
        "hidden_bit_width=16 or less."
    )
    assert supports(list(rules.items())[:1], "onnx-qdq").ok


def origin(quantizer):
    from bitwright import describe

    return describe(quantizer).find("number_format").set_by


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight_bit_width": 8, "weight_restriction": "power_of_two"}, None),
        (
            {"weight_bit_width": 5, "weight_restriction": "power_of_two"},
            "5 bits, signed; the chip has 4, 8. Write weight_bit_width=8.",
        ),
        (
            {},
            "its scales are of the kind 'float', and the chip takes power of two. Write "
            "weight_restriction='power_of_two'.",
        ),
        (
            {"weight_quant": Int8WeightPerChannel, "weight_restriction": "power_of_two"},
            "its scales are for axis 0; the chip takes one scale per tensor. Write weight_axis=None.",
        ),
        (
            {"weight_quant": Int4WeightPerGroup, "weight_restriction": "power_of_two"},
            "its scales are for groups of 32 along axis 1; the chip takes one scale per tensor. Choose another "
            "quantizer, such as Int8WeightPerTensor.",
        ),
        (
            {"weight_quant": NF4Weight(granularity=None), "weight_restriction": "power_of_two"},
            "its levels are nf4, and the chip has integers only. Quantize to integers.",
        ),
        (
            {
                "weight_quant": quantizers.ShiftedUint8WeightPerTensor,
                "weight_signed": True,
                "weight_restriction": "power_of_two",
            },
            "it has a zero point, and the chip has none. Choose a quantizer without one, such as Int8WeightPerChannel.",
        ),
    ],
    ids=["fits", "width", "scale rule", "axis", "groups", "levels", "zero point"],
)
def test_a_target_of_ones_own(settings, said):
    try:
        layer = qnn.QuantLinear(64, 4, bias=False, **settings)
    except QuantizerError as error:
        pytest.skip(str(error))
    rows = [f"{row.what}. {row.remedy}" for row in supports(layer, CHIP).rows]
    assert (said is None and rows == []) or said in rows


def test_accumulators_with_examples():
    layer = qnn.QuantLinear(64, 4, weight_restriction="power_of_two", bias=False, input_quant=Int8Act(scale=0.5))
    loose = Target("the chip", SIGNED, TARGETS["onnx-qdq"].activations, CHIP.biases, accumulator_bits=8)
    (row,) = supports(layer, loose, torch.randn(2, 64)).rows
    assert re.fullmatch(r"its sums may need \d+ bits, and accumulators have 8", row.what)
    assert supports(layer, loose).ok


def test_examples_show_what_only_data_shows():
    layers = [qnn.QuantIdentity(scale=0.1, return_quant_tensor=True), qnn.QuantLinear(8, 4, bias_quant=Int32Bias)]
    model = nn.Sequential(*layers, nn.BatchNorm1d(4), qnn.QuantReLU(scale=0.1)).eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert supports(model, "onnx-integer").ok
    said = (
        "  2 (BatchNorm1d): batch_norm. Fold it into the convolution before that is quantized: "
        "graph.fold_batch_norms(model, examples)."
    )
    x = torch.randn(16, 8)
    assert str(supports(model, "onnx-integer", x)) == f"the integer dialect can't take:\n{said}"
    with pytest.raises(ExportError) as caught:
        export_onnx_integer(model, x)
    assert str(caught.value) == f"the integer dialect can't express this model:\n{said}"
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("door", ["onnx-qcdq", "onnx-qdq", "onnx-integer", "qonnx", "program"])
def test_examples_show_types_that_are_refused(door):
    model = nn.Sequential(qnn.QuantLinear(8, 4, bias=False, input_quant=Int8Act(scale=0.5))).double()
    assert supports(model, door).ok
    found = supports(model, door, torch.randn(2, 8).double())
    assert found.blocked == ["0.input_quant", "0.weight_quant"]
    assert {row.what.partition(",")[0] for row in found.rows} == {"its input is float64"}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            lambda: Target("chip", None, SIGNED, SIGNED),
            "Target(weights=None): write what chip takes of weights, such as Accepts((Integers(8),), "
            "scales=('tensor',)).",
        ),
        (lambda: Target("", SIGNED, SIGNED, SIGNED), "Target(name=''): a target has a name, such as 'my chip'."),
        (
            lambda: Target("chip", SIGNED, SIGNED, SIGNED, accumulator_bits="24"),
            "Target(accumulator_bits='24'): chip has accumulators of 2 to 64 bits, or None for any sum.",
        ),
        (
            lambda: Target("chip", SIGNED, SIGNED, SIGNED, refused_layers=(nn.LSTM,)),
            "Target(refused_layers=...) has <class 'torch.nn.modules.rnn.LSTM'>. Write a type of layers and what to "
            "write instead: (nn.LSTM, 'it has no loops. Unroll it.').",
        ),
        (
            lambda: Accepts(Integers(8)),
            "Accepts(formats=int8): write a tuple of number formats, such as (Integers(8), E4M3).",
        ),
        (lambda: Accepts(()), "Accepts(formats=()) takes nothing. Write the number formats, such as (Integers(8),)."),
        (
            lambda: Accepts((Integers(8),), scales=("channel",)),
            "Accepts(scales=('channel',)): scales are shared by a 'tensor', an index of an 'axis' or a 'group', or in "
            "a way that is none of these, 'other'.",
        ),
        (
            lambda: Accepts((Integers(8),), scales="tensor"),
            "Accepts(scales='tensor'): write a tuple of names, such as ('tensor',).",
        ),
        (
            lambda: Accepts((Integers(8),), roundings="floor"),
            "Accepts(roundings='floor'): write a tuple of names, such as ('half_even',).",
        ),
    ],
)
def test_records_that_are_none(made, said):
    with pytest.raises(ExportError) as caught:
        made()
    assert str(caught.value) == said


def test_examples_add_to_what_is_known():
    """The same lines as the export has, float biases among them."""
    model = nn.Sequential(qnn.QuantLinear(8, 4, input_quant=Int8Act(scale=0.1)), nn.Tanh(), qnn.QuantReLU(scale=0.1))
    x = torch.randn(4, 8)
    with pytest.raises(ExportError) as caught:
        export_onnx_integer(model.eval(), x)
    lines = str(supports(model, "onnx-integer", x)).splitlines()
    assert lines[1:] == str(caught.value).splitlines()[1:]
    assert [line.partition(":")[0] for line in lines[1:]] == ["  0 (QuantLinear)", "  1 (Tanh)"]


def test_rules_have_no_examples():
    with pytest.raises(ExportError) as caught:
        supports({nn.Linear: {"weight_bit_width": 4}}, "qonnx", torch.zeros(2, 3))
    assert str(caught.value) == ("supports: rules can't be evaluated on examples. Leave these out, or pass a model.")
    with pytest.raises(ExportError, match=r"^supports\(target=\['qonnx'\]\): there is no such target\."):
        supports(nn.Identity(), ["qonnx"])  # type: ignore[arg-type]


def test_mistyped_calls():
    with pytest.raises(ExportError) as caught:
        supports(nn.Identity(), "qonnx", example=torch.ones(1))  # pyright: ignore[reportCallIssue]
    assert str(caught.value) == "supports(example=...) is no keyword. Did you mean examples?"
    with pytest.raises(ExportError) as caught:
        supports(nn.Identity())  # pyright: ignore[reportCallIssue]
    assert str(caught.value) == "supports: target is missing. Write supports(model, target)."


def test_mistakes():
    with pytest.raises(ExportError) as caught:
        supports(nn.Identity(), "onnx-qqd")
    assert str(caught.value) == ("supports(target='onnx-qqd'): there is no such target. Did you mean 'onnx-qdq'?")


def test_rules_that_are_none():
    with pytest.raises(ExportError) as caught:
        supports({nn.Linear: 3}, "qonnx")
    assert str(caught.value) == (
        "supports: the rule for Linear is 3. Write a dict of settings, such as dict(weight_bit_width=4), or None for "
        "what stays float."
    )
    with pytest.raises(BitwrightError, match=r"bitwidth"):
        supports({nn.ReLU: {"bitwidth": 4}}, "qonnx")
    assert supports({nn.ReLU: {"bit_width": 24}}, "qonnx").blocked == ["ReLU.act_quant"]


def test_rules_know_what_is_a_bias():
    """The layer that a rule is tried on lives while its quantizers are looked at."""
    rules = {nn.Linear: {"weight_quant": quantizers.Int8WeightPerTensorPowerOfTwo, "bias_quant": Int8BiasOwnScale}}
    for _ in range(3):
        assert supports(rules, "fpga-hls4ml").ok


def test_a_report_by_hand():
    row = SupportRow("fc", "", "its bias is float", "", "Write bias_quant=Int32Bias.")
    assert str(SupportReport("X", 1, (row,))) == ("X can't take:\n  fc: its bias is float. Write bias_quant=Int32Bias.")
    assert bool(SupportReport("X", 1))
