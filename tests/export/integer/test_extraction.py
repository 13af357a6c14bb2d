import pickle
from fractions import Fraction

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.export import (
    ExportError,
    IntegerGrid,
    Integers,
    LayerIntegers,
    QuantizedTensor,
    accumulator_report,
    compare_integers,
    export_onnx_integer,
    export_onnx_qcdq,
    integers,
    run_integers,
)
from bitwright.quantizers import (
    Int8Act,
    Int8WeightPerChannel,
    Int8WeightPerTensor,
    Int16BiasOwnScale,
    Int32Bias,
    ShiftedUint8Act,
    ShiftedUint8WeightPerChannel,
    Uint8Act,
)


class Net(nn.Module):
    """Every width and granularity at once."""

    def __init__(self):
        super().__init__()
        self.inp = qnn.QuantIdentity(act_quant=ShiftedUint8Act, return_quant_tensor=True)
        self.conv = qnn.QuantConv2d(
            2, 4, 3, padding=1, stride=2, weight_quant=Int8WeightPerChannel(bit_width=3), bias_quant=Int32Bias
        )
        self.act = qnn.QuantReLU(act_quant=Uint8Act(bit_width=5), return_quant_tensor=True)
        self.mid = qnn.QuantConv2d(
            4, 4, 3, groups=2, weight_quant=ShiftedUint8WeightPerChannel(bit_width=2), bias_quant=Int16BiasOwnScale
        )
        self.fc = qnn.QuantLinear(16, 3, output_quant=Int8Act, weight_bit_width=4)

    def forward(self, x):
        return self.fc(self.mid(self.act(self.conv(self.inp(x)))).flatten(1))


@pytest.fixture
def net():
    model = Net().train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 2, 8, 8) + 0.3)
    qnn.finish_calibration(model)
    return model.eval()


@pytest.fixture
def example():
    return torch.randn(1, 2, 8, 8)


def test_integers_are_those_of_the_layers(net, example):
    net(example)
    found = integers(net, example)
    assert list(found) == ["inp", "conv", "act", "mid", "fc"]
    for name in ("conv", "mid", "fc"):
        layer, part = getattr(net, name), found[name].weight
        assert torch.equal(part.codes, layer.int_weight())
        assert part.codes.dtype is layer.int_weight().dtype
        assert torch.equal(part.values, layer.quant_weight().value)
    assert torch.equal(found["conv"].bias.codes, net.conv.int_bias())
    assert torch.equal(found["mid"].bias.codes, net.mid.int_bias())
    assert found["fc"].bias is None  # float


def test_grids(net, example):
    found = integers(net, example)
    grids = {name: (layer.input, layer.output) for name, layer in found.items()}
    assert grids["inp"] == (None, found["inp"].quantizers["act"].grid)
    assert grids["conv"][0] == found["inp"].quantizers["act"].grid
    assert grids["conv"][1].axis == 1
    assert torch.equal(
        grids["conv"][1].scale, grids["conv"][0].scale * found["conv"].weight.grid.scale
    )  # of the products
    assert grids["act"] == (grids["conv"][1], found["act"].quantizers["act"].grid)
    assert grids["act"][1].bounds == (0, 31)
    assert grids["mid"][1] is None  # its bias has a scale of its own
    assert grids["fc"][1] == found["fc"].quantizers["output"].grid
    assert found["conv"].settings["stride"] == [2, 2]
    assert found["mid"].settings["groups"] == 2


def test_model_is_left_alone(net, example):
    net.train()
    before = {name: each.clone() for name, each in net.state_dict().items()}
    integers(net, example)
    assert net.training
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert all(quant.intercept is None for quant in (net.conv.weight_quant, net.inp.act_quant))


def test_npz_round_trip(net, example, tmp_path):
    found = integers(net, example)
    found.save_npz(tmp_path / "net.integers")
    assert Integers.load(tmp_path / "net.integers") == found


def test_safetensors_round_trip(net, example, tmp_path):
    pytest.importorskip("safetensors")
    found = integers(net, example)
    found.save_safetensors(tmp_path / "net.safetensors")
    assert Integers.load(tmp_path / "net.safetensors") == found


def test_npz_holds_packed_bits(net, example, tmp_path):
    numpy = pytest.importorskip("numpy")
    integers(net, example).save_npz(tmp_path / "net.npz")
    with numpy.load(tmp_path / "net.npz") as archive:
        assert archive["conv.weight_quant.codes"].dtype == numpy.uint8
        assert archive["conv.weight_quant.codes"].size == 4 * 2 * 9 * 3 // 8  # 3 bits each
        assert archive["mid.weight_quant.codes"].size == 4 * 2 * 9 * 2 // 8
        assert archive["conv.bias_quant.codes"].size == 4 * 4


def test_pickles(net, example):
    found = integers(net, example)
    assert pickle.loads(pickle.dumps(found)) == found


def test_equality_sees_a_single_integer(net, example):
    one, other = integers(net, example), integers(net, example)
    assert one == other
    other["fc"].weight.codes[0, 0] += 1
    assert one != other
    assert one["fc"].weight.grid == other["fc"].weight.grid


def test_a_layer_called_twice(example):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
            self.two = qnn.QuantIdentity(scale=0.25, return_quant_tensor=True)
            self.fc = qnn.QuantLinear(4, 4, bias_quant=Int32Bias)

        def forward(self, x):
            return self.fc(self.one(x)) + self.fc(self.two(x))

    model = Twice().eval()
    found = integers(model, torch.randn(2, 4))
    assert list(found) == ["one", "fc", "two", "fc.1"]
    assert torch.equal(found["fc"].bias.grid.scale, 2 * found["fc.1"].bias.grid.scale)
    assert found["fc"].output.name == "fc"
    assert found["fc.1"].output.name == "fc.1"


def test_a_shared_quantizer_counts_for_each_layer():
    first = qnn.QuantIdentity(scale=0.5, return_quant_tensor=True)
    model = nn.Sequential(first, qnn.QuantReLU(act_quant=first.act_quant)).eval()
    found = integers(model, torch.randn(2, 4))
    assert [layer.quantizers["act"].grid.name for layer in found.layers.values()] == ["0.act_quant", "0.act_quant.1"]


def test_a_single_layer_as_the_model():
    found = integers(qnn.QuantLinear(3, 2, bias=False), torch.randn(2, 3))
    assert list(found) == [""]
    assert found[""].weight.codes.shape == (2, 3)


def test_unknown_layer(net, example):
    with pytest.raises(KeyError) as raised:
        integers(net, example)["conv2"]
    assert raised.value.args[0] == (
        "there is no quantized layer 'conv2' in this model. It has inp, conv, act, mid, fc."
    )


@pytest.mark.parametrize("call", [run_integers, compare_integers, accumulator_report])
def test_scales_that_follow_the_input_are_refused(call):
    class Dynamic(Int8WeightPerTensor):
        quantizes = "activation"
        narrow_range = False

    model = nn.Sequential(qnn.QuantLinear(4, 2, input_quant=Dynamic))
    options = {"program": object()} if call is compare_integers else {}
    with pytest.raises(ExportError) as raised:
        call(model, torch.randn(2, 4), **options)
    assert str(raised.value) == (
        f"{call.__name__}: 1 quantizer of this model can't be given as integers:\n"
        "  0.input_quant: its scale follows the input (StatisticScaling), so there is no grid to give. Write "
        "scaling='calibrated' or scaling='running', and run some batches in training mode."
    )


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 no archive"[:3], b"\xff" * 20])
def test_files_of_another_kind(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ExportError) as raised:
        Integers.load(path)
    assert str(raised.value) == f"Integers.load({str(path)!r}): the file is neither a numpy archive nor safetensors."


def test_an_archive_of_something_else(tmp_path):
    numpy = pytest.importorskip("numpy")
    numpy.savez(tmp_path / "other.npz", x=numpy.ones(3))
    with pytest.raises(ExportError) as raised:
        Integers.load(tmp_path / "other.npz")
    assert str(raised.value) == (
        f"Integers.load({str(tmp_path / 'other.npz')!r}): the file has no entry 'bitwright'. Load what save_npz or "
        "save_safetensors wrote."
    )


# Wide biases


def wide(biases):
    """A layer whose products have a scale of about 0.001, and so biases of many bits."""
    quantizers = {
        "weight_quant": Int8Act(scale=0.0079, quantizes="weight"),
        "input_quant": Int8Act(scale=2**-3),
        "bias_quant": Int32Bias,
    }
    fc = qnn.QuantLinear(2, len(biases), **quantizers).eval()
    with torch.no_grad():
        fc.bias.copy_(torch.tensor(biases))
        fc(torch.ones(1, 2))
    return fc


def exact(fc, scale):
    """round(bias / scale), within int32, from the float32 numbers."""
    quotients = (Fraction(bias) / Fraction(scale.item()) for bias in fc.bias.tolist())
    return [min(max(round(each), -(2**31)), 2**31 - 1) for each in quotients]


BIASES = [1234.5678, -98765.43, 300000.0, 2.1e6, -2.1e6, 1e-3]


def test_biases_are_exact_above_24_bits():
    fc = wide(BIASES)
    bias = integers(nn.Sequential(fc), torch.ones(1, 2))["0"].bias
    assert bias.codes.dtype is torch.int32
    assert bias.codes.tolist() == exact(fc, bias.grid.scale)
    assert sum(abs(each) > 2**24 for each in bias.codes.tolist()) == 4
    assert bias.codes.tolist() == fc.int_bias().tolist()


def test_large_biases_keep_to_half_of_32_bits():
    """The weight's scale makes room for them."""
    fc = wide([1e7, -1e7, 0.0])
    assert integers(nn.Sequential(fc), torch.ones(1, 2))["0"].bias.codes.tolist() == [2**30, -(2**30), 0]
    assert fc.int_bias().tolist() == [2**30, -(2**30), 0]


@pytest.mark.parametrize("ends", [[-(2**31), 2**31 - 1], [2**24 + 1, -(2**30) - 1]])
def test_ends_of_32_bits_survive_files(ends, tmp_path):
    grid = IntegerGrid("fc.bias_quant", torch.tensor(0.5), torch.tensor(0), 32, signed=True)
    part = QuantizedTensor(grid, torch.tensor(ends, dtype=torch.int32))
    found = Integers({"fc": LayerIntegers("fc", "QuantLinear", {"bias": part})})
    found.save_npz(tmp_path / "ends.npz")
    assert Integers.load(tmp_path / "ends.npz")["fc"].bias.codes.tolist() == ends


def test_files_hold_wide_biases_exactly(tmp_path):
    pytest.importorskip("onnxruntime")
    fc = wide(BIASES)
    model, x = nn.Sequential(fc), torch.randn(3, 2)
    found = integers(model, x)
    right = exact(fc, found["0"].bias.grid.scale)
    found.save_npz(tmp_path / "model.npz")
    assert Integers.load(tmp_path / "model.npz")["0"].bias.codes.tolist() == right
    for export in (export_onnx_qcdq, export_onnx_integer):
        program = export(model, x)
        stored = [each.const_value.numpy() for each in program.model.graph.initializers.values()]
        assert any(each.size == len(right) and each.reshape(-1).tolist() == right for each in stored)
    assert compare_integers(model, x).ok
    assert run_integers(model, x).accumulators["0"].shape == (3, 6)
