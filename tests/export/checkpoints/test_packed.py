import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import bitwright.nn as qnn
from bitwright import quantizers
from bitwright.export import ExportError, load_packed, pack_integers, save_packed
from bitwright.graph import quantize
from bitwright.nn.branches.low_rank import LowRank
from bitwright.quantizers import (
    Int4WeightPerChannel,
    Int8Act,
    Int8WeightPerTensor,
    Int8WeightPerTensorLearned,
    Int32Bias,
)

WEIGHTS = {  # bits for each number of a weight of 16 x 64, scales and zero points included
    "Int3WeightPerChannel": (3.5, "3 bits of int3 narrow", "16 x FLOAT"),
    "Int4WeightPerGroup": (5.0, "4 bits of int4 narrow", "32 x FLOAT"),
    "ShiftedUint4WeightPerGroup": (5.125, "4 bits of uint4", "32 x FLOAT"),
    "ShiftedUint4WeightPerGroupHQO": (6.0, "4 bits of uint4 with a float zero point", "32 x FLOAT"),
    "Int8WeightPerChannelLearned": (8.5, "8 bits of int8 narrow", "16 x FLOAT"),
    "Fp8e4m3WeightPerTensor": (8.03125, "8 bits of e4m3fn", "1 x FLOAT"),
    "NF4Weight": (4.5, "4 bits of nf4", "16 x FLOAT"),
    "MXFloat4e2m1Weight": (4.25, "4 bits of e2m1fn", "32 x FLOAT8E8M0"),
    "NVFloat4Weight": (4.53125, "4 bits of e2m1fn", "64 x bytes under one FLOAT"),
}


def layers(**given):
    return nn.Sequential(qnn.QuantLinear(64, 16, **given), nn.ReLU())


def path_in(folder):
    return folder / "model.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WEIGHTS)
def test_outputs_are_equal_bit_by_bit_and_the_grid_stays(name, dtype, tmp_path):
    saved, loaded = (layers(weight_quant=getattr(quantizers, name)).to(dtype).eval() for _ in range(2))
    x = torch.randn(3, 64, dtype=dtype)
    expected = saved(x)
    before = {key: each.clone() for key, each in saved.state_dict().items()}
    (row,) = save_packed(saved, path_in(tmp_path)).rows
    assert (row.name, row.shape) == ("0.weight_quant", (16, 64))
    assert (row.bits_per_weight, row.stored_as, row.scales) == WEIGHTS[name]
    assert all(torch.equal(each, before[key]) for key, each in saved.state_dict().items())
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(x), expected)
    assert torch.equal(loaded.train()(x), saved.train()(x))
    scale = loaded[0].quant_weight().scale
    assert torch.equal(scale, saved[0].quant_weight().scale)
    with torch.no_grad():
        loaded[0].weight.mul_(0.3)
    assert torch.equal(loaded[0].quant_weight().scale, scale)


class Zoo(nn.Module):
    """Layers that keep weights in shapes of their own, and what is no layer of ours."""

    def __init__(self):
        super().__init__()
        four = {"weight_quant": Int4WeightPerChannel}
        self.table = qnn.QuantEmbedding(11, 8, padding_idx=0, **four)
        self.up = qnn.QuantConvTranspose1d(8, 8, 3, groups=2, **four)
        self.deep = qnn.QuantConv1d(8, 8, 3, groups=8, weight_quant=quantizers.Int3WeightPerGroup)
        self.steps = qnn.QuantLSTM(8, 6, weight_quant=Int8WeightPerTensor, batch_first=True)
        self.heads = qnn.QuantMultiheadAttention(6, 2, batch_first=True, **four)
        self.norm = qnn.QuantBatchNorm1d(6)
        self.out = qnn.QuantLinear(6, 5, input_quant=Int8Act, bias_quant=Int32Bias, **four)
        self.factor = nn.Parameter(torch.randn(6))
        self.register_buffer("once", torch.ones(()), persistent=False)

    def forward(self, numbers):
        x = self.deep(self.up(self.table(numbers).transpose(1, 2))).transpose(1, 2)
        x = self.steps(x)[0]
        x = self.heads(x, x, x)[0] * self.factor
        return self.out(self.norm(x.transpose(1, 2)).transpose(1, 2))


def test_layers_of_every_kind(tmp_path):
    saved, loaded, numbers = Zoo(), Zoo().eval(), torch.randint(0, 11, (3, 9))
    for _ in range(2):
        saved.train()(numbers)
    expected = saved.eval()(numbers)
    report = save_packed(saved, path_in(tmp_path))
    packed = ["table", "up", "deep", "steps.weight_ih_l0", "steps.weight_hh_l0", "heads.in_proj", "heads.out_proj"]
    assert len(report.rows) == len(packed) + 1
    assert all("bits of int" in row.stored_as for row in report.rows)
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(numbers), expected)


def test_what_the_file_holds(tmp_path):
    layer = qnn.QuantLinear(3, 2, weight_quant=Int4WeightPerChannel)  # the model itself is a layer
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.7, -0.3, 0.0], [0.1, 0.2, -1.4]]))
    save_packed(layer, path_in(tmp_path))
    held = load_file(path_in(tmp_path))
    assert list(held) == ["bias", "weight_quant.scale", "weight_quant.codes", "weight_quant.scheme"]
    assert held["weight_quant.codes"].tolist() == [0xD7, 0x00, 0x91]  # 7 -3 | 0 0 | 1 -7
    assert held["weight_quant.codes"].tolist() == pack_integers(layer.int_weight(), 4, signed=True).tolist()
    torch.testing.assert_close(held["weight_quant.scale"], torch.tensor([[0.1], [0.2]]))
    with safe_open(path_in(tmp_path), "pt") as file:
        said = json.loads(file.metadata()["bitwright_packed"])
    assert said == {
        "version": 1,
        "weights": {
            "weight_quant": {
                "key": "weight",
                "shape": [2, 3],
                "number_format": "int4 narrow",
                "bit_width": 4,
                "signed": True,
                "scale": "float32",
                "scale_shape": [2, 1],
                "zero_point": None,
                "fixed": True,
            }
        },
        "twins": {},
        "ties": {},
    }
    load_packed(fresh := qnn.QuantLinear(3, 2, weight_quant=Int4WeightPerChannel), path_in(tmp_path))
    assert torch.equal(fresh.int_weight(), layer.int_weight())


def test_a_float_model_and_rules(tmp_path):
    rules = {nn.Linear: {"weight_quant": Int4WeightPerChannel, "input_quant": Int8Act}}
    made = [nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2)]
    saved, loaded = (quantize(each, rules) for each in made)
    x = torch.randn(4, 8)
    saved.train()(x)
    save_packed(saved, path_in(tmp_path))
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded.eval()(x), saved.eval()(x))


def test_a_low_rank_branch_comes_with_the_file(tmp_path):
    saved, loaded, x = layers(weight_bit_width=3), layers(weight_bit_width=3), torch.randn(2, 64)
    saved[0].correction = LowRank(torch.randn(2, 64), torch.randn(16, 2))
    save_packed(saved, path_in(tmp_path))
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(x), saved(x))


def tied(quant=Int8WeightPerTensor, head=qnn.QuantLinear):
    model = nn.Sequential(qnn.QuantEmbedding(12, 4, weight_quant=quant), head(4, 12, bias=False))
    model[1].weight = model[0].weight
    return model.eval()


def test_a_weight_that_two_layers_share_is_held_once(tmp_path):
    saved, loaded, x = tied(), tied(), torch.arange(12)
    assert [row.name for row in save_packed(saved, path_in(tmp_path)).rows] == ["0.weight_quant"]
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(x), saved(x))
    assert loaded[1].weight is loaded[0].weight
    for model in (saved, loaded):  # and so is a quantizer that serves both
        model[0].weight_quant = Int8WeightPerTensorLearned
        model[1].weight_quant = model[0].weight_quant
        model(x)
    save_packed(saved, path_in(tmp_path))
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(x), saved(x))


def test_a_quantizer_that_serves_two_weights_keeps_its_own_state(tmp_path):
    saved, loaded = (nn.Sequential(*(qnn.QuantLinear(4, 4) for _ in range(2))) for _ in range(2))
    x = torch.randn(2, 4)
    for model in (saved, loaded):
        model[0].weight_quant = Int8WeightPerTensorLearned
        model[1].weight_quant = model[0].weight_quant
        model.train()(x)
    assert all(row.stored_as == "8 bits of int8 narrow" for row in save_packed(saved, path_in(tmp_path)).rows)
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded.eval()(x), saved.eval()(x))
    assert not loaded[0].weight_quant.fixed


def test_a_layer_that_is_used_twice(tmp_path):
    saved, loaded = (qnn.QuantLinear(4, 4, weight_quant=Int4WeightPerChannel) for _ in range(2))
    saved, loaded = (nn.Sequential(each, nn.ReLU(), each) for each in (saved, loaded))
    x = torch.randn(2, 4)
    save_packed(saved, path_in(tmp_path))
    load_packed(loaded, path_in(tmp_path))
    assert torch.equal(loaded(x), saved(x))
    assert loaded[0].weight_quant.fixed


class Halves(nn.Module):
    kind = "halves"

    def forward(self, weight, inputs):
        return weight / 2


def test_what_stays_in_floats(tmp_path):
    floats = tied(head=nn.Linear)
    ways = tied()
    ways[1].weight_quant = Int4WeightPerChannel
    learned = layers(weight_quant=quantizers.Int8WeightPerTensor(rounding="learned"))
    halved = layers(weight_quant=Int8WeightPerTensorLearned(transform=Halves))
    model = nn.ModuleDict({"a": floats, "b": ways, "c": learned, "d": halved, "e": layers()})
    model["f"] = layers(weight_quant=Int4WeightPerChannel, weight_bit_width=8, weight_rounding="floor")
    model["g"] = layers(weight_bit_width=24)
    rows = {row.name: row.stored_as for row in save_packed(model, path_in(tmp_path)).rows}
    assert rows == {
        "a.0.weight_quant": "float32: a.1.weight is the same tensor, and is used in floats",
        "b.0.weight_quant": "float32: b.1.weight_quant quantizes it in another way",
        "c.0.weight_quant": "float32: its rounding is learned (LearnedRounding)",
        "d.0.weight_quant": "float32: Halves transforms it, and would change what the codes stand for",
        "e.0.weight_quant": "8 bits of int8 narrow",
        "f.0.weight_quant": "float32: its rounding (Floor) would change what the codes stand for",
        "g.0.weight_quant": "float32: floats don't tell integers of 24 bits apart",
    }
    held = load_file(path_in(tmp_path))
    assert torch.equal(held["a.0.weight"], floats[0].weight)
    assert "a.1.weight" not in held


# Files that don't fit, and what can't be saved


def refused(model, path):
    """The error of loading, which leaves the model as it was."""
    before = {name: each.clone() for name, each in model.state_dict().items()}
    parts = [type(each) for each in model.modules()]
    with pytest.raises(ExportError) as raised:
        load_packed(model, path)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(each, before[name]) for name, each in after.items())
    assert [type(each) for each in model.modules()] == parts
    return str(raised.value)


def test_another_model(tmp_path):
    path = path_in(tmp_path)
    save_packed(nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=4), nn.Linear(4, 4), qnn.QuantReLU()), path)
    other = nn.Sequential(qnn.QuantLinear(8, 6), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    other[1].input_quant = qnn.QuantIdentity().act_quant
    assert refused(other, path) == (
        f"load_packed('{path}'): the file does not fit this model:\n"
        "  0.bias has the shape (4,) in the file, and (6,) in the model.\n"
        "  1.weight has the shape (4, 4) in the file, and (3, 4) in the model.\n"
        "  3.weight is missing from the file.\n"
        "  1.input_quant is missing from the file: the saved model did not quantize there.\n"
        "  2.act_quant is missing from the model: the saved model quantizes there.\n"
        "  1.bias is not in the model, and the file holds it.\n"
        "  0.weight has the shape (4, 8) in the file, and (6, 8) in the model.\n"
        "  0.weight_quant: the file holds int4 narrow, per tensor, float scale, the model is int8 narrow, per tensor, "
        "float scale. Build the model with the file's quantizers."
    )


def test_files_of_other_kinds(tmp_path):
    path, model = path_in(tmp_path), layers()
    path.write_bytes(b"not this")
    message = refused(model, path)
    assert message.startswith(f"load_packed('{path}'): the file is damaged, or no safetensors file (")
    save_file({"x": torch.ones(2)}, path)
    assert refused(model, path) == (
        f"load_packed('{path}'): the file has no entry 'bitwright_packed'. Load what save_packed wrote."
    )
    save_file({"x": torch.ones(2)}, path, {"bitwright_packed": json.dumps({"version": 2})})
    assert refused(model, path) == (
        f"load_packed('{path}'): the file is of version 2, and this bitwright reads version 1. Load it with the "
        "bitwright that wrote it, or write it again."
    )
    save_packed(model, path)
    held = load_file(path)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    codes = held.pop("0.weight_quant.codes")
    save_file(held, path, said)
    assert refused(model, path) == (
        f"load_packed('{path}'): the file lacks 0.weight_quant.codes: it is damaged. Write it again."
    )
    save_file({**held, "0.weight_quant.codes": codes[1:].clone()}, path, said)
    assert refused(model, path) == (
        f"load_packed('{path}'): the file does not fit this model:\n"
        "  0.weight_quant.codes is damaged: its shape is (1023,), and (1024,) was written."
    )
    with pytest.raises(FileNotFoundError):
        load_packed(model, tmp_path / "nowhere")


def test_a_failed_save_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = path_in(tmp_path)
    path.write_bytes(b"kept")
    floats = nn.Sequential(qnn.QuantLinear(4, 2, weight_quant=None), nn.Linear(2, 2))
    said = "save_packed: this model has no weight that can be packed. Save it with torch.save."
    with pytest.raises(ExportError, match=f"^{re.escape(said)}$"):
        save_packed(floats, path)
    unseen = qnn.QuantLinear(4, 2, input_quant=Int8Act, bias_quant=Int32Bias)
    causes = "its smallest scale depends on the input's, and no input was seen yet: run a batch first"
    with pytest.raises(ExportError, match=f"^{re.escape(said)}\n  weight_quant: {re.escape(causes)}.$"):
        save_packed(unseen, path)
    extra = layers()
    extra.get_extra_state = lambda: "said"
    extra.set_extra_state = lambda state: None
    monkeypatch.setattr(nn.Sequential, "get_extra_state", lambda module: "said")
    said = "save_packed: _extra_state is str, and files hold tensors alone. Keep such state in buffers, or save the "
    with pytest.raises(ExportError, match=f"^{re.escape(said)}model with torch.save.$"):
        save_packed(extra, path)
    monkeypatch.undo()
    said = 'weight is on the meta device and has no numbers. Write model.to_empty(device="cpu") first, and load a state'
    for call in (save_packed, load_packed):
        with pytest.raises(ExportError, match=f"^{call.__name__}: {re.escape(said)} into it.$"):
            call(qnn.QuantLinear(4, 2, device="meta"), path)
    assert path.read_bytes() == b"kept"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
