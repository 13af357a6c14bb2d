import copy
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from bitwright import nn as qnn
from bitwright.graph import last, quantize
from bitwright.quantizers import (
    Int8DynamicActPerToken,
    Int8WeightPerChannel,
    Int8WeightPerGroup,
    MXFloat4e2m1Weight,
    ShiftedUint4DynamicActPerToken,
)
from tests.examples import language_models
from tests.examples.language_models import tiny

MODELS = "tests.examples.language_models"
ROOT = Path(__file__).parents[2]
TINY = ["--model", f"{MODELS}:tiny", "--context", "32", "--calibration-windows", "4", "--test-windows", "2"]
SHORT = [*TINY, "--group", "16", "--sample-tokens", "3"]


@pytest.fixture
def script(example):
    return example("llm_ptq")


@pytest.fixture
def data(example):
    return example("llm_data")


@pytest.fixture
def scheme(example):
    return example("llm_schemes").Scheme


@pytest.fixture
def tokens():
    return torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text("A file of text, long enough for some windows. " * 40, encoding="utf-8")
    return str(tmp_path / "text")


def figures(printed):
    """The perplexities of a table."""
    return [float(each) for each in re.findall(r"  (\d+\.\d{3})  ", printed)]


# Data


def test_a_token_is_a_byte(data):
    assert data.Bytes().encode("añ") == [97, 195, 177]
    assert data.Bytes().decode([97, 195, 177, 255]) == "añ\ufffd"


def test_windows(data):
    tokens = torch.arange(10)
    assert [each.tolist() for each in data.windows(tokens, 3, 5)] == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]]]
    assert len(data.windows(tokens, 3, 2)) == 2
    found = data.windows(tokens, 9, 20, seed=0)
    assert {each.shape for each in found} == {(1, 9)}
    assert {each[0, 0].item() for each in found} == {0, 1}
    with pytest.raises(SystemExit, match=r"^The text has 10 tokens, fewer than --context 11\. Give a longer one\.$"):
        data.windows(tokens, 11, 1)


def test_there_is_a_text(data):
    assert len(data.text_of(None)) > 200_000


def test_perplexity(data, tokens):
    """A model that knows nothing wavers between all tokens; one that always errs, and is sure of it, between more."""

    class Knowing(nn.Module):
        def forward(self, ids):
            return 100 * F.one_hot(ids.roll(-1, 1), 256).float()

    assert data.perplexity(lambda ids: torch.zeros(*ids.shape, 256), [tokens, tokens[:1]]) == pytest.approx(256)
    assert data.perplexity(Knowing(), [tokens]) == pytest.approx(1)
    assert data.perplexity(lambda ids: (Knowing()(ids.flip(1)),), [tokens]) > 1e30


# Schemes


def test_rules_of_a_scheme(scheme):
    assert scheme(None).rules() == {}
    assert str(scheme(None)) == "float"
    grouped = {"weight_quant": Int8WeightPerGroup, "weight_group_size": 64, "weight_bit_width": 3}
    found = scheme("int3", 64, "int8", "uint4", "int8").rules()
    assert found == {
        nn.Linear: {**grouped, "input_quant": Int8DynamicActPerToken},
        last(nn.Linear): {**grouped, "weight_bit_width": 8},
        F.scaled_dot_product_attention: {
            "key_quant": ShiftedUint4DynamicActPerToken,
            "value_quant": ShiftedUint4DynamicActPerToken,
        },
    }
    assert str(scheme("int3", 64, "int8", "uint4", "int8")) == "int3 g64, activations int8, cache uint4, head int8"
    assert scheme("int4", 0).rules() == {
        nn.Linear: {"weight_quant": Int8WeightPerChannel, "weight_bit_width": 4},
        last(nn.Linear): None,
    }
    assert scheme("mxfp4", 64).rules()[nn.Linear] == {"weight_quant": MXFloat4e2m1Weight}
    assert str(scheme("mxfp4", 64)) == "mxfp4 g32"
    with pytest.raises(SystemExit, match=r"^NF4Weight is for groups\. Write --group 64\.$"):
        scheme("nf4", 0).rules()


def test_keys_and_values_are_quantized_as_they_enter_the_cache(scheme, tokens):
    """Token by token through a cache, the model computes what it does at once, and other than the float model."""
    model = tiny().eval()
    quantized = quantize(model, scheme(None, cache="int4").rules(), examples=tokens)
    cache, parts = [], []
    with torch.no_grad():
        whole = quantized(tokens)
        for part in tokens.split([5, 1, 6], 1):
            parts.append(quantized(part, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert (whole - model(tokens)).abs().max() > 1e-3
    levels = [{"input_2_quant", "input_3_quant"}] * 2
    assert [
        set(qnn.quantizers_of(layer.self_attn.attention)) for layer in quantized.get_submodule("layers").children()
    ] == levels


# The script


def test_every_repair_and_a_file(script, text, tmp_path, capsys):
    flags = [*SHORT, "--text", text, "--weights", "int3", "--repair", "rotate", "smooth", "gptq"]
    packed = tmp_path / "model.safetensors"
    assert script.main([*flags, "--save", str(packed), "--report", str(tmp_path / "report.txt")]) == 0
    printed = capsys.readouterr().out
    before, after = figures(printed)
    assert before == pytest.approx(256, rel=0.3)
    assert after != before
    assert "rotate + smooth + gptq + int3 g16" in printed
    assert packed.stat().st_size < 110_000
    said = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert said.startswith("smooth: ")
    assert "\n\ngptq: 14 changed, 0 left\n" in said
    assert script.main([*flags, "--load", str(packed)]) == 0
    assert figures(capsys.readouterr().out) == [before, after]


@pytest.mark.slow
def test_branches_make_up_for_what_was_repaired_before(script, scheme, tokens):
    """lqer after gptq knows the float weights, and brings the outputs nearer to the float model's."""
    model = tiny().eval()
    apart = {}
    for repairs in ([], ["gptq"], ["gptq", "lqer"]):
        settings = {name: {"progress": False} for name in ("gptq", "lqer")}
        settings["lqer"] |= {"rank": 4}
        quantized, reports = script.post_training(
            copy.deepcopy(model), scheme("int2", 16), [tokens[:1], tokens[1:]], repairs, settings
        )
        assert len(reports) == len(repairs)
        apart[len(repairs)] = (quantized(tokens) - model(tokens)).square().mean().item()
    assert apart[2] < apart[1] < apart[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "Qwen/Qwen3-0.6B"],
            "--model Qwen/Qwen3-0.6B needs transformers: pip install transformers. A model of yours needs none: "
            "--model module:function.",
        ),
        ([*TINY, "--weights", "nf4", "--group", "0"], "NF4Weight is for groups. Write --group 64."),
    ],
)
def test_what_is_missing_is_told(script, monkeypatch, arguments, message):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"^{re.escape(message)}$"):
        script.main([*arguments, "--sample-tokens", "1"])


def test_errors_of_the_library_end_the_script(script, text):
    with pytest.raises(SystemExit, match=r"^export_compressed_tensors: this model can't be written:\n"):
        script.main([*SHORT, "--text", text, "--cache", "int8", "--compressed", "folder"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--weights", "int4"],
        ["--weights", "uint3", "--activations", "int8", "--cache", "uint8", "--head", "int8", "--repair", "gptq"],
        ["--model", f"{MODELS}:tied", "--repair", "rotate"],
        ["--weights", "mxfp4", "--activations", "static8", "--repair", "smooth", "lqer", "--rank", "2"],
        ["--weights", "int8", "--group", "0", "--activations", "int8"],
    ],
    ids=["W4", "W3A8", "rotated", "MXFP4", "W8A8"],
)
def test_files_of_onnx_agree(script, text, tmp_path, capsys, flags):
    assert script.main([*SHORT, "--text", text, *flags, "--export", str(tmp_path / "model.onnx")]) == 0
    assert " 0 differences" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_two_processes_do_what_one_does(script, text, tmp_path, capsys):
    """The text divided between them, a window more for one: the same file, but for sums in another order."""
    flags = [*SHORT, "--text", text, "--calibration-windows", "5", "--activations", "static8"]
    flags += ["--repair", "smooth", "rotate", "qronos"]
    assert script.main([*flags, "--save", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    command += [str(ROOT / "examples/llm_ptq.py"), *flags, "--save", str(tmp_path / "two")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, each in one.items():
        if name.endswith(".codes"):
            assert (each == two[name]).float().mean() > 0.9, name
        else:
            torch.testing.assert_close(two[name], each)


@pytest.mark.slow
def test_repairs_are_worth_something(example, script, scheme):
    """A model that has learned a text, at two bits: perplexities."""
    data, own = example("llm_data"), example("llm_model")
    known = torch.tensor(data.Bytes().encode(data.text_of(None)[:200_000]))
    torch.manual_seed(0)
    model = own.LanguageModel(own.Config(width=64, blocks=2, hidden=128))
    own.train(model, known[:180_000], 150, 64)
    test, batches = data.windows(known[180_000:], 64, 100), data.windows(known[:180_000], 64, 64, 0)
    found = {"float": data.perplexity(model, test)}
    for repairs in ([], ["gptq"], ["qronos"], ["lqer"]):
        quantized, _ = script.post_training(copy.deepcopy(model), scheme("int2", 32), batches, repairs)
        found["+".join(repairs)] = data.perplexity(quantized, test)
    lost = {name: math.log(each / found["float"]) for name, each in found.items()}
    assert found["float"] < 15
    assert lost["gptq"] < lost[""] / 2
    assert lost["qronos"] < lost[""] / 2
    assert lost["lqer"] < lost[""]


# Models of transformers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
class TestTransformers:
    """Shapes of models that are published, with random weights."""

    @pytest.fixture(autouse=True)
    def needs_transformers(self):
        pytest.importorskip("transformers")

    def test_the_script(self, script, text, tmp_path, capsys, name):
        flags = ["--model", f"{MODELS}:{name}", "--text", text, "--context", "32", "--calibration-windows", "4"]
        flags += ["--group", "16", "--cache", "int8", "--activations", "int8", "--repair", "rotate", "smooth", "gptq"]
        flags += ["--sample-tokens", "3", "--test-windows", "2"]
        packed = ["--save", str(tmp_path / "packed")]
        assert script.main([*flags, *packed, "--export", str(tmp_path / "model.onnx")]) == 0
        printed = capsys.readouterr().out
        assert " 0 differences" in " ".join(printed.split())
        assert script.main([*flags, "--load", str(tmp_path / "packed")]) == 0
        assert figures(capsys.readouterr().out) == figures(printed)

    def test_generation_through_a_cache(self, scheme, tokens, name):
        """With a cache, token by token, padded on the left, or at once: the same logits."""
        model = getattr(language_models, name)()
        quantized = quantize(model, scheme("int4", 16, cache="uint8").rules(), examples=tokens)
        with torch.no_grad():
            whole = quantized(tokens).logits
            first = quantized(tokens[:, :7], use_cache=True)
            rest = quantized(tokens[:, 7:], past_key_values=first.past_key_values).logits
            torch.testing.assert_close(rest, whole[:, 7:])
            padded = torch.cat([torch.zeros_like(tokens[:, :4]), tokens], 1)
            mask = torch.cat([torch.zeros_like(tokens[:, :4]), torch.ones_like(tokens)], 1)
            torch.testing.assert_close(
                quantized(padded, attention_mask=mask).logits[:, 4:], whole, atol=1e-2, rtol=1e-2
            )
        written = quantized.generate(tokens[:1], attention_mask=mask[:1, 4:], max_new_tokens=4, do_sample=False)
        assert torch.equal(written[:, :12], tokens[:1])
        assert written.shape == (1, 16)

    def test_transformers_reads_what_was_compressed(self, script, scheme, tokens, tmp_path, name):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("compressed_tensors")
        model = getattr(language_models, name)()
        quantized, _ = script.post_training(model, scheme("int4", 16), [tokens], ["gptq"])
        script.export_compressed_tensors(quantized, tmp_path)
        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(read(tokens).logits, quantized(tokens).logits)
