import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, adaround, calibrate, quantize, reconstruct_blocks
from bitwright.quantizers import Int8Act, Int8WeightPerChannelMSE, MXFloat4e2m1Weight, ShiftedUint4WeightPerChannel

QUICK = {"iterations": 40, "drop": 0.0, "progress": False}


class Attention(nn.Module):
    """A layer of a transformer."""

    def __init__(self, width=16):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, attention_mask=None):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        seen = None if attention_mask is None else (attention_mask != 0)[:, None, :]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, seen))
        return x + self.down(F.gelu(self.up(x)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.head = nn.Linear(16, 8)

    def forward(self, x, attention_mask=None):
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.head(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.two(F.relu(self.one(x))))


def transformer():
    torch.manual_seed(0)
    return Transformer().eval(), torch.randn(96, 6, 5) @ torch.randn(5, 16)  # inputs that depend on each other


def convolutions():
    torch.manual_seed(0)
    x = (torch.randn(32, 6, 6, 3) @ torch.randn(3, 8)).movedim(-1, 1)
    return nn.Sequential(Residual(), Residual()).eval(), x


def quantized(model, x, bits=2, activations=0):
    rule = {"weight_quant": Int8WeightPerChannelMSE, "weight_bit_width": bits}
    if activations:
        rule |= {"input_quant": Int8Act, "input_bit_width": activations}
    kinds = {type(each) for each in model.modules()} & {nn.Linear, nn.Conv2d}
    q = quantize(model, dict.fromkeys(kinds, rule)).eval()
    if activations:
        calibrate(q, [x])
    return q


@torch.no_grad()
def error(model, q, x):
    wanted = model(x)
    return float((q(x) - wanted).square().sum() / wanted.square().sum())


def test_a_block_comes_nearer_than_by_adaround():
    model, x = transformer()
    model.head = nn.Identity()
    learning, held_out = x[::2], x[1::2]
    one, other = (quantized(model, learning) for _ in range(2))
    adaround(one, learning, progress=False)
    reconstruct_blocks(other, learning, **QUICK | {"iterations": 160})
    assert error(model, other, held_out) < 0.9 * error(model, one, held_out)


def test_report_grid_and_codes():
    model, x = transformer()
    q = quantized(model, x)
    layers = {path: each for path, each in q.named_modules() if isinstance(each, qnn.QuantLinear)}
    grids = {path: each.quant_weight().grid for path, each in layers.items()}
    nearest = {path: each.int_weight() for path, each in layers.items()}
    report = reconstruct_blocks(q.train(), x, **QUICK)
    assert [entry.path for entry in report] == [
        *("layers.0", "layers.0.qkv", "layers.0.out", "layers.0.up", "layers.0.down"),
        *("layers.1", "layers.1.qkv", "layers.1.out", "layers.1.up", "layers.1.down"),
        *("after layers.1", "head"),
    ]
    assert list(report["layers.0"].figures) == ["before", "after", "seconds"]
    assert report["layers.0.qkv"].reason == "with layers.0"
    assert all(each.training for each in q.modules())
    assert all(each.grad is None for each in q.parameters())
    for path, layer in layers.items():
        weight = layer.eval().quant_weight()
        assert layer.weight_quant.fixed
        assert torch.equal(weight.grid.scale, grids[path].scale)
        assert torch.equal(weight.value, layer.weight)  # what is stored lies on the grid
        moved = layer.int_weight() != nearest[path]
        assert (layer.int_weight() - nearest[path]).abs().max() == 1  # up instead of down, or the other way
        assert report[path].figures["moved"] >= float(moved.float().mean()) > 0


def test_the_result_depends_on_the_samples_only(tmp_path):
    model, x = convolutions()
    x, found = x[:20], []
    for data, wait_on in ((x, "device"), (list(x.split(6)), tmp_path), (x[:16], "cpu")):
        q = quantized(model, x, activations=8)
        state = torch.get_rng_state()
        options = {"iterations": 12, "batch_size": 8, "drop": 0.5, "activation_scales": True, "wait_on": wait_on}
        reconstruct_blocks(q, data, **options, learning_rate=0.5)
        assert torch.equal(state, torch.get_rng_state())
        found.append(torch.cat([each.detach().flatten() for each in q.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not list(tmp_path.iterdir())


def test_ranges_of_activations():
    model, x = convolutions()
    plain, q = (quantized(model, x, 8, 3) for _ in range(2))
    scales = [each.scale() for each in quantizers(q)]
    parameters = [id(each) for quant in quantizers(q) for each in quant.parameters()]
    reconstruct_blocks(plain, x, **QUICK)
    reconstruct_blocks(q, x, **QUICK, activation_scales=True, scale_learning_rate=0.01)
    assert [id(each) for quant in quantizers(q) for each in quant.parameters()] == parameters
    assert error(model, q, x) < 0.9 * error(model, plain, x)
    for one, other, scale in zip(quantizers(plain), quantizers(q), scales, strict=True):
        assert torch.equal(one.scale(), scale)
        assert not torch.equal(other.scale(), scale)
        assert not other.calibrating


def quantizers(model):
    return [each for path, each in qnn.quantizers_of(model).items() if path.endswith("input_quant")]


def state_of(model):
    return {key: each.clone() for key, each in model.state_dict().items()}


def test_an_exception_changes_nothing():
    model, x = transformer()
    q = quantized(model, x, activations=8).train()
    before, kinds = state_of(q), [type(each) for each in q.modules()]
    calls = []

    def fails(module, args, kwargs):
        calls.append(module)
        if torch.is_grad_enabled() and sum(each is module for each in calls) > 12:
            raise RuntimeError("in the second block")

    handle = q.layers[1].register_forward_pre_hook(fails, with_kwargs=True)
    with pytest.raises(RuntimeError, match="in the second block"):
        reconstruct_blocks(q, x, iterations=20, activation_scales=True)
    handle.remove()
    assert [type(each) for each in q.modules()] == kinds
    after = q.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(each, after[key]) for key, each in before.items())
    assert all("intercept" not in vars(each) for each in qnn.quantizers_of(q).values())
    assert all(each.training for each in q.modules())
    assert all(each.requires_grad and each.grad is None for each in q.parameters())


def test_a_checkpoint_goes_on_after_the_first_block(tmp_path):
    model, x = convolutions()
    options = {"iterations": 8, "activation_scales": True, "scale_learning_rate": 0.01, "learning_rate": 1.0}
    whole, q = (quantized(model, x, activations=4) for _ in range(2))
    expected = reconstruct_blocks(whole, x, **options)
    path = tmp_path / "walk.pt"

    def fails(module, args):
        if torch.is_grad_enabled():
            raise RuntimeError("stopped")

    handle = q[1].register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="stopped"):
        reconstruct_blocks(q, x, **options, checkpoint=path)
    handle.remove()
    handle = q[0].register_forward_pre_hook(fails)  # it is not learned anew
    report = reconstruct_blocks(q, x, **options, checkpoint=path)
    handle.remove()
    assert [entry.path for entry in report] == [entry.path for entry in expected]
    assert report["0"].figures["after"] == expected["0"].figures["after"]
    for one, other in zip(whole[0].parameters(), q[0].parameters(), strict=True):
        assert torch.equal(one, other)
    assert error(model, q, x) == pytest.approx(error(model, whole, x), rel=0.3)  # other activations were dropped


def test_padding_does_not_count():
    model, x = transformer()
    x, found = x[:32], []
    mask = torch.ones(32, 6)
    mask[:, 4:] = 0
    for padding in (0.0, 100.0):
        padded = torch.where(mask[..., None] != 0, x, padding)
        q = quantized(model, x)
        reconstruct_blocks(q, {"x": padded, "attention_mask": mask}, **QUICK | {"iterations": 4})
        found.append(torch.cat([each.detach().flatten() for each in q.parameters()]))
    assert torch.equal(*found)


class Whole(nn.Module):
    """No chain of blocks: one block."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        found = self.first(x)
        return torch.tanh(found[0] if isinstance(found, tuple) else found)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: qnn.QuantLinear(8, 8, weight_quant=ShiftedUint4WeightPerChannel), (64, 8)),
        (lambda: qnn.QuantLinear(32, 8, weight_quant=MXFloat4e2m1Weight), (64, 32)),
        (lambda: qnn.QuantConvTranspose2d(8, 6, 2, stride=2, groups=2, weight_bit_width=2), (16, 4, 4, 8)),
        (lambda: qnn.QuantLSTM(8, 4, weight_bit_width=2), (5, 16, 8)),
    ],
    ids=["zero points", "MX", "transposed", "recurrent"],
)
def test_other_weights(layer, shape):
    torch.manual_seed(0)
    model = Whole(layer()).eval()
    x = torch.randn(*shape[:-1], 3) @ torch.randn(3, shape[-1])  # inputs that depend on each other
    x = x.movedim(-1, 1) if x.ndim == 4 else x
    if not all(each.calibrated for each in qnn.quantizers_of(model).values()):
        calibrate(model, [x])
    report = reconstruct_blocks(model, x, **QUICK)
    assert report[""].figures["after"] < 0.9 * report[""].figures["before"]
    assert all(each.fixed for path, each in qnn.quantizers_of(model).items() if "weight" in path)


def test_what_is_no_better_stays():
    torch.manual_seed(0)
    q = nn.Sequential(qnn.QuantLinear(4, 4, weight_bit_width=3, bias=False)).eval()
    before = state_of(q)
    report = reconstruct_blocks(q, torch.eye(4), **QUICK)  # no weight can make up for another
    assert report[""].reason == "reconstruct_blocks is not better than what was there"
    assert report[""].figures["after"] == report[""].figures["before"] > 0
    assert all(torch.equal(each, q.state_dict()[key]) for key, each in before.items())
    with torch.no_grad():
        q[0].weight.copy_(q[0].quant_weight().value)
    report = reconstruct_blocks(q, torch.eye(4), **QUICK)
    assert report[""].reason == "its output is that of the float model"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iterations": -1}, "iterations=-1 is not a whole number, 0 or more."),
        ({"batch_size": 0}, "batch_size=0 is not a whole number, 1 or more."),
        ({"drop": 1.5}, "drop=1.5 is not a number, from 0 to 1; 0 is usual."),
        ({"beta": (20,)}, "beta=(20,) is not two exponents, 1 or more; (20, 2) is usual."),
        ({"activation_scales": 1}, "activation_scales=1 is neither True nor False."),
        (
            {"rows": 8},
            "rows=8 has no meaning here: whole outputs are compared. Leave it out; batch_size and iterations say how "
            "much is computed.",
        ),
    ],
)
def test_what_it_refuses(options, said):
    q = nn.Sequential(qnn.QuantLinear(4, 4)).eval()
    with pytest.raises(GraphError, match=f"^{re.escape('reconstruct_blocks: ' + said)}$"):
        reconstruct_blocks(q, torch.ones(2, 4), **options)


def test_inputs_that_are_not_finite_teach_nothing():
    model = nn.Sequential(qnn.QuantLinear(2, 2, weight_bit_width=3)).eval()
    report = reconstruct_blocks(model, torch.full((4, 2), float("nan")), iterations=2, progress=False)
    assert not report.changed
