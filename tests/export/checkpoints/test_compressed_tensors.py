"""What is written for compressed-tensors, by numbers that the package itself gives; see test_reading_back.py."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import ExportError, export_compressed_tensors
from bitwright.export.checkpoints.compressed_tensors.words import in_bytes, in_words
from bitwright.nn.branches.low_rank import LowRank
from bitwright.qcore import E2M1, E2M3, E4M3, PerAxis, PerGroup
from bitwright.quantizers import (
    Int4WeightPerGroup,
    Int8Act,
    Int8DynamicActPerToken,
    Int8WeightPerChannel,
    NVFloat4Weight,
    ShiftedUint4WeightPerGroup,
    ShiftedUint8Act,
)


@pytest.mark.parametrize(
    ("bits", "columns", "words"),
    [
        (2, 5, [[228], [313]]),
        (3, 12, [[-1468477784, 14], [-1930786932, 7]]),
        (4, 9, [[1049950800, 8], [190957357, 5]]),
        (5, 7, [[-1287149408, 7], [2037986563, 0]]),
        (8, 5, [[252314880, 20], [673390105, 45]]),
    ],
)
def test_words(bits, columns, words):
    codes = torch.arange(2 * columns).reshape(2, columns) * 5 % 2**bits - 2 ** (bits - 1)
    assert in_words(codes.to(torch.int8), bits).tolist() == words


def test_small_floats():
    assert in_bytes(E2M1.encode(torch.tensor([[0.5, -6, 3, 0], [1, 1.5, -2, 4]])), 4).tolist() == [[241, 5], [50, 108]]
    assert in_bytes(E2M3.encode(torch.tensor([[0.125, -7.5, 3, 0]])), 6).tolist() == [[193, 79, 1]]
    numbers = torch.tensor([0.0, 1.0, -448.0, 2.0**-9])
    assert torch.equal(E4M3.encode(numbers).view(torch.float8_e4m3fn).float(), numbers)


class Model(nn.Module):
    """Two layers that may be quantized, and one that is not."""

    def __init__(self, **given):
        super().__init__()
        self.up, self.down = qnn.QuantLinear(64, 32, bias=False, **given), qnn.QuantLinear(32, 64, **given)
        self.head, self.norm = nn.Linear(64, 3), nn.LayerNorm(64)

    def forward(self, x):
        return self.head(self.norm(self.down(self.up(x))))


def written(model, folder, **given):
    """The entry of the configuration, and the tensors."""
    export_compressed_tensors(model, folder, **given)
    said = json.loads((folder / "config.json").read_text())
    return said["quantization_config"], load_file(folder / "model.safetensors")


def kinds(tensors, layer):
    start = f"{layer}."
    return {
        name.removeprefix(start): (each.dtype, tuple(each.shape)) for name, each in tensors.items() if start in name
    }


def test_integers_in_groups_with_zero_points(tmp_path):
    model = Model(weight_quant=ShiftedUint4WeightPerGroup)
    said, tensors = written(model, tmp_path / "new" / "folder")
    assert said == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ["head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "dynamic": False,
                    "group_size": 32,
                },
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
    }
    assert kinds(tensors, "up") == {
        "weight_packed": (torch.int32, (32, 8)),
        "weight_scale": (torch.float32, (32, 2)),
        "weight_shape": (torch.int64, (2,)),
        "weight_zero_point": (torch.int32, (4, 2)),
    }
    assert set(tensors) - {name for name in tensors if name.startswith(("up", "down.weight"))} == {
        "down.bias",
        "head.bias",
        "head.weight",
        "norm.bias",
        "norm.weight",
    }
    held = tensors["up.weight_packed"].view(torch.uint8)
    codes = torch.stack([held & 15, held >> 4], -1).reshape(32, 64)  # the package adds 8 to signed codes
    assert torch.equal(codes, model.up.int_weight())
    zeros = tensors["up.weight_zero_point"].t().contiguous().view(torch.uint8)
    zeros = torch.stack([zeros & 15, zeros >> 4], -1).reshape(2, 32).t()
    assert torch.equal(zeros.float(), model.up.quant_weight().grid.zero_point)
    assert torch.equal(tensors["up.weight_scale"], model.up.quant_weight().scale)


def test_inputs_of_eight_bits(tmp_path):
    dynamic = Model(weight_quant=Int8WeightPerChannel, input_quant=Int8DynamicActPerToken)
    said, tensors = written(dynamic, tmp_path)
    group = said["config_groups"]["group_0"]
    assert (group["format"], group["weights"]["strategy"]) == ("int-quantized", "channel")
    expected = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    assert group["input_activations"] == {**expected, "group_size": None}
    assert torch.equal(tensors["up.weight"], dynamic.up.int_weight())
    assert kinds(tensors, "up")["weight_scale"] == (torch.float32, (32, 1))

    static = Model(weight_quant=Int8WeightPerChannel, input_quant=ShiftedUint8Act)
    static.train()(torch.linspace(-1, 1.55, 64).expand(2, 64))
    said, tensors = written(static, tmp_path)
    expected = {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "tensor", "dynamic": False}
    assert said["config_groups"]["group_0"]["input_activations"] == {**expected, "group_size": None}
    torch.testing.assert_close(tensors["up.input_scale"], torch.tensor([0.01]))
    assert tensors["up.input_zero_point"].tolist() == [100 - 128]


def test_two_levels_of_scales(tmp_path):
    model = Model(weight_quant=NVFloat4Weight)
    said, tensors = written(model, tmp_path)
    assert said["config_groups"]["group_0"]["weights"]["strategy"] == "tensor_group"
    scales = model.up.quant_weight().grid.scales
    assert torch.equal(tensors["up.weight_scale"].float() * scales.scale, model.up.quant_weight().scale)
    torch.testing.assert_close(1 / tensors["up.weight_global_scale"], scales.scale.reshape(1), rtol=2**-23, atol=0)


def test_layers_that_are_quantized_in_several_ways(tmp_path):
    model = Model(weight_quant=Int4WeightPerGroup)
    model.down.weight_quant = quantizers.MXFloat8e4m3Weight
    model.config = SimpleNamespace(to_dict=lambda: {"architectures": ["Model"]})
    said, tensors = written(model, tmp_path, scale_dtype=torch.bfloat16)
    assert said["format"] == "mixed-precision"
    groups = said["config_groups"].values()
    assert [(each["targets"], each["format"]) for each in groups] == [
        (["up"], "pack-quantized"),
        (["down"], "mxfp8-quantized"),
    ]
    assert tensors["up.weight_scale"].dtype is torch.bfloat16
    assert tensors["down.weight_scale"].dtype is torch.uint8
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Model"]
    del model.config  # then what the folder has
    written(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Model"]
    said, _ = written(model, tmp_path, config={"other": 1})
    assert json.loads((tmp_path / "config.json").read_text())["other"] == 1


CHOICES = (
    "Choose integers of 2 to 8 bits, Fp8e4m3WeightPerChannel, MXFloat8e4m3Weight, MXFloat6e2m3Weight, "
    "MXFloat4e2m1Weight or NVFloat4Weight"
)
INPUTS = (
    "Choose Int8DynamicActPerToken, ShiftedUint8DynamicActPerToken, Fp8e4m3DynamicActPerToken, Fp8e4m3DynamicAct, or "
    "Int8Act or Fp8e4m3Act"
)
REFUSED = {
    "NF4": (
        {"weight_quant": quantizers.NF4Weight},
        f"compressed-tensors does not hold nf4 with float scales. {CHOICES}",
    ),
    "E3M2": (
        {"weight_quant": quantizers.MXFloat6e3m2Weight},
        f"compressed-tensors does not hold e3m2fn with MX scales. {CHOICES}",
    ),
    "width": (
        {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 10},
        "compressed-tensors holds integers of 2 to 8 bits, not 10",
    ),
    "group": (
        {"weight_quant": Int4WeightPerGroup, "weight_group_size": 24},
        "compressed-tensors has no scales for groups of 24 along axis 1 of a weight of 32 x 64. Choose one scale, one "
        "for each output channel, or groups along the inputs whose size divides their number",
    ),
    "MX group": (
        {"weight_quant": quantizers.MXFloat4e2m1Weight, "weight_group_size": 16},
        "compressed-tensors has groups of 32 for e2m1fn, not of 16",
    ),
    "E4M3 group": (
        {"weight_quant": quantizers.Fp8e4m3WeightPerTensor, "weight_granularity": PerGroup(16)},
        "compressed-tensors has no groups for E4M3 weights with float scales",
    ),
    "columns": (
        {"weight_quant": quantizers.Int8WeightPerTensor, "weight_granularity": PerAxis(1)},
        "compressed-tensors has no scales for axis 1 of a weight of 32 x 64. Choose one scale, one for each output "
        "channel, or groups along the inputs whose size divides their number",
    ),
    "transform": (
        {"weight_quant": quantizers.BinaryWeightPerTensor},
        "its weight has no grid of its own (binary, per tensor, float scale, signs times the mean)",
    ),
    "input": (
        {"weight_quant": Int8WeightPerChannel, "input_quant": quantizers.Int4DynamicActPerToken},
        f"no runtime quantizes inputs this way (int4 narrow, per token, float scale). {INPUTS}",
    ),
    "uncalibrated": (
        {"weight_quant": Int8WeightPerChannel, "input_quant": Int8Act},
        "its input is not calibrated yet. Run some batches first: bitwright.graph.calibrate",
    ),
    "pair": (
        {"weight_quant": ShiftedUint4WeightPerGroup, "input_quant": Int8DynamicActPerToken},
        "no kernel combines weights of int4 group with zero points and int8 token dynamic inputs",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_such_checkpoints_do_not_hold(name, tmp_path):
    given, said = REFUSED[name]
    down = said.replace("32 x 64", "64 x 32")
    with pytest.raises(ExportError) as raised:
        export_compressed_tensors(Model(**given), tmp_path / "folder")
    assert str(raised.value) == (
        f"export_compressed_tensors: this model can't be written:\n  up: {said}.\n  down: {down}."
    )
    assert list(tmp_path.iterdir()) == []


class Doubled(qnn.QuantLinear):
    def forward(self, *inputs):  # type: ignore[override]
        return 2 * super().forward(*inputs)


def test_what_else_a_model_may_hold(tmp_path):
    model = nn.Sequential(
        qnn.QuantEmbedding(9, 64),
        qnn.QuantLinear(64, 64, weight_quant=Int4WeightPerGroup),
        qnn.QuantReLU(),
        qnn.QuantLinear(64, 9, weight_quant=Int4WeightPerGroup),
    )
    model[3].weight = nn.Parameter(model[0].weight.detach())
    model[0].weight = model[3].weight
    with pytest.raises(ExportError) as raised:
        export_compressed_tensors(model, tmp_path)
    only = "these checkpoints describe only the weights and inputs of linear layers"
    assert str(raised.value) == (
        "export_compressed_tensors: this model can't be written:\n"
        "  3: 0.weight is the same weight. Leave both layers in floats.\n"
        f"  0.weight_quant: {only} (int8 narrow, per tensor, float scale). Leave it out: weight_quant=None.\n"
        f"  2.act_quant: {only} (uint8, per tensor, float scale). Leave it out: act_quant=None."
    )
    model = Model(weight_quant=Int4WeightPerGroup)
    model.down = Doubled(32, 64, weight_quant=Int4WeightPerGroup)
    model.up.correction = LowRank(torch.randn(2, 64), torch.randn(32, 2))
    with pytest.raises(ExportError) as raised:
        export_compressed_tensors(model, tmp_path)
    assert str(raised.value) == (
        "export_compressed_tensors: this model can't be written:\n"
        "  down: Doubled has a forward of its own, which runtimes don't run.\n"
        "  up.correction: runtimes don't have LowRank and would leave it out."
    )
    with pytest.raises(ExportError) as raised:
        export_compressed_tensors(nn.Linear(2, 2), tmp_path)
    assert str(raised.value) == (
        "export_compressed_tensors: no linear layer of this model quantizes its weight. Save it as a float model."
    )
    for given, said in (
        ({"config": 5}, "config=5 is not possible. Pass a dict, such as model.config.to_dict(), or leave it out."),
        (
            {"scale_dtype": torch.int8},
            "scale_dtype=torch.int8 is not possible. Write torch.float32, torch.bfloat16 or torch.float16.",
        ),
    ):
        with pytest.raises(ExportError) as raised:
            export_compressed_tensors(Model(), tmp_path, **given)
        assert str(raised.value) == f"export_compressed_tensors: {said}"
    assert list(tmp_path.iterdir()) == []
