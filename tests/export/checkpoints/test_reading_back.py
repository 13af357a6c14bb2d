"""Checkpoints that are read back with the package that defines them: pip install compressed-tensors."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import export_compressed_tensors
from bitwright.graph import quantize
from bitwright.qcore import PerBlock

pytestmark = pytest.mark.slow  # importing the package takes seconds

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    compressed_tensors = pytest.importorskip("compressed_tensors")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")


def of(weight, act=None, **settings):
    given = {f"weight_{name}": each for name, each in settings.items()}
    given["weight_quant"] = getattr(quantizers, weight)
    return given if act is None else {**given, "input_quant": getattr(quantizers, act)}


FORMATS = {
    "pack-quantized": [
        of("Int2WeightPerTensor"),
        of("Int3WeightPerGroup"),
        of("Int4WeightPerGroup"),
        of("Int4WeightPerGroup", narrow_range=False),
        of("Int5WeightPerChannel"),
        of("Int8WeightPerGroup"),
        of("MXInt8Weight"),
        of("ShiftedUint4WeightPerGroup"),
        of("ShiftedUint4WeightPerGroup", bit_width=3),
        of("ShiftedUint8WeightPerTensor"),
        of("Uint4WeightPerChannel"),
        of("Int4WeightPerGroup", "Fp8e4m3DynamicActPerToken"),
    ],
    "int-quantized": [
        of("Int8WeightPerChannel", "Int8DynamicActPerToken"),
        of("Int8WeightPerTensor", "ShiftedUint8DynamicActPerToken"),
        of("Int4WeightPerGroup", "Int8DynamicActPerToken"),
        of("Int8WeightPerChannel", "Int8Act"),
        of("Int8WeightPerChannel", "ShiftedUint8Act"),
    ],
    "float-quantized": [
        of("Fp8e4m3WeightPerChannel", "Fp8e4m3DynamicActPerToken"),
        of("Fp8e4m3WeightPerTensor", "Fp8e4m3DynamicAct"),
        of("Fp8e4m3WeightPerTensor", "Fp8e4m3Act"),
    ],
    "naive-quantized": [
        of("Fp8e4m3WeightPerChannel"),
        of("Fp8e4m3WeightPerTensor", granularity=PerBlock((16, 32))),
    ],
    "mxfp4-pack-quantized": [of("MXFloat4e2m1Weight")],
    "mxfp6-pack-quantized": [of("MXFloat6e2m3Weight")],
    "mxfp8-quantized": [of("MXFloat8e4m3Weight")],
    "nvfp4-pack-quantized": [of("NVFloat4Weight")],
}
CASES = [(name, given) for name, every in FORMATS.items() for given in every]


class Model(nn.Module):
    def __init__(self, kind=nn.Linear, **given):
        super().__init__()
        self.quantized, self.plain = kind(96, 48, **given), nn.Linear(48, 8)

    def forward(self, x):
        return self.plain(self.quantized(x))


@pytest.mark.parametrize(("expected", "given"), CASES, ids=[name for name, _ in CASES])
def test_weights_are_equal(expected, given, tmp_path):
    model = Model(qnn.QuantLinear, **given)
    model.train()(torch.randn(7, 96))
    export_compressed_tensors(model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    config = quantization.QuantizationConfig(**said)
    float_model = Model()
    quantization.apply_quantization_config(float_model, config)
    assert hasattr(float_model.quantized, "quantization_scheme")
    assert not hasattr(float_model.plain, "quantization_scheme")
    scheme = config.config_groups["group_0"]
    assert config.format == scheme.format == expected
    compressor = compressors.BaseCompressor.get_value_from_registry(expected)
    held = load_file(tmp_path / "model.safetensors")
    own = {name.removeprefix("quantized."): each for name, each in held.items() if name.startswith("quantized.")}
    assert set(compressor.compression_param_names(scheme)) <= own.keys()
    found = compressor.decompress(own, scheme)["weight"]
    weight = model.quantized.quant_weight().value.detach()
    if expected == "nvfp4-pack-quantized":  # the package gives bfloat16, which such numbers are not
        torch.testing.assert_close(found.float(), weight, rtol=2**-7, atol=0)
    else:
        assert torch.equal(found.float(), weight)


def test_transformers_computes_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2)
    quantized = quantize(
        transformers.LlamaForCausalLM(config),
        {
            nn.Linear: {"weight_quant": quantizers.Int4WeightPerGroup, "input_quant": None, "bias_quant": None},
            nn.Embedding: None,
            "lm_head": None,
        },
    ).eval()
    export_compressed_tensors(quantized, tmp_path)
    numbers = torch.randint(0, 96, (2, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        with torch.no_grad():
            assert torch.equal(read(numbers).logits, quantized(numbers).logits)
