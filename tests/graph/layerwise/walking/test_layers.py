"""What a walk finds in the layers: the error that a problem tells is that of the layer's output."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, gptq, walk_blocks
from bitwright.quantizers import (
    CodebookWeight,
    Fp8e4m3WeightPerChannel,
    Int4WeightPerChannelLSQ,
    Int4WeightPerGroup,
    Int4WeightPerGroupQuantizedScale,
    Int8Act,
    Int8DynamicActPerToken,
    Int8WeightPerChannelNorm,
    MXFloat4e2m1Weight,
    MXInt8Weight,
    NVFloat4Weight,
    OddInt2WeightPerTensorSAWB,
    Pot4WeightPerChannel,
    ShiftedUint4WeightPerChannel,
    ShiftedUint4WeightPerGroupHQO,
)

LAYERS = {
    "linear": (qnn.QuantLinear(6, 4), (6,)),
    "linear of tokens": (qnn.QuantLinear(6, 4), (3, 2, 6)),
    "conv1d": (qnn.QuantConv1d(4, 6, 3, groups=2, padding=1, stride=2), (4, 9)),
    "conv2d": (qnn.QuantConv2d(2, 4, (3, 2), padding=(1, 2), dilation=(2, 1)), (2, 7, 6)),
    "conv2d same": (qnn.QuantConv2d(2, 4, (3, 2), padding="same", dilation=2), (2, 5, 6)),
    "conv2d reflect": (qnn.QuantConv2d(2, 4, 3, padding=1, padding_mode="reflect"), (2, 5, 6)),
    "conv2d circular": (qnn.QuantConv2d(2, 4, 3, padding=(2, 1), padding_mode="circular"), (2, 5, 6)),
    "depthwise": (qnn.QuantConv2d(4, 8, 3, groups=4), (4, 5, 5)),
    "conv3d": (qnn.QuantConv3d(2, 4, 2, stride=2), (2, 4, 4, 4)),
    "transposed 1d": (qnn.QuantConvTranspose1d(4, 2, 3, dilation=2), (4, 5)),
    "transposed 2d": (
        qnn.QuantConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (4, 4, 3),
    ),
    "transposed 3d": (qnn.QuantConvTranspose3d(2, 2, 2, stride=(1, 2, 2)), (2, 2, 3, 2)),
}


def error_of(layer, x, weight):
    """The squared error of the output with another weight, summed up."""
    with torch.no_grad(), qnn.unquantized(layer):
        before = layer(x)
        own = layer.weight.clone()
        layer.weight.copy_(weight)
        after = layer(x)
        layer.weight.copy_(own)
    return float((after - before).double().square().sum())


@pytest.mark.parametrize("single", [True, False], ids=["one batch", "batches"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_error_of_a_problem_is_that_of_the_output(name, single):
    layer, shape = LAYERS[name]
    layer.eval()
    torch.manual_seed(0)
    x = torch.randn(6, *shape)
    other = torch.randn_like(layer.weight)
    seen = []
    was = layer.weight.detach().clone()

    def solve(path, problem):
        seen.append(problem)

    report = walk_blocks(layer, x if single else list(x.split([1, 3, 2])), solve)
    (problem,) = seen
    assert report[""].reason == "the algorithm leaves it"
    assert torch.equal(layer.weight, was)
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        turned = other.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2).flatten(2)
    else:
        turned = other.unflatten(0, (groups, -1)).flatten(2)
    loss = problem.loss(turned)
    assert loss.shape == problem.weight.shape[:2]
    assert float(loss.sum()) * problem.rows == pytest.approx(error_of(layer, x, other), rel=1e-4)
    assert torch.allclose(problem.cross, problem.gram)  # nothing before it is quantized


class Taken(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args):
        return self.layer(*args)[0]


class Itself(Taken):
    """Attention of tokens to one another."""

    def forward(self, x):  # type: ignore[override]
        return self.layer(x, x, x)[0]


def tokens(*sizes):
    torch.manual_seed(0)
    return tuple(torch.randn(24, 5, size) for size in sizes)


def problems_of(model, data, **options):
    found = {}

    def solve(path, problem):
        found[path] = problem

    walk_blocks(model, data, solve, **options)
    return found


def gram(x):
    rows = x.flatten(0, -2)
    return rows.T @ rows / len(rows)


def test_packed_projections_have_the_inputs_of_query_key_and_value():
    torch.manual_seed(0)
    model = Taken(qnn.QuantMultiheadAttention(8, 2, batch_first=True)).eval()
    query, key = tokens(8, 8)
    calibrated(model, query, key, key)
    apart = problems_of(model, [(query[:5], key[:5], key[:5]), (query[5:], key[5:], key[5:])])["layer.in_proj_weight"]
    assert apart.weight.shape == (3, 8, 8)
    assert torch.equal(apart.weight.flatten(0, 1), model.layer.in_proj_weight.detach())
    assert torch.allclose(apart.gram, torch.stack([gram(query), gram(key), gram(key)]), atol=0.02)
    assert torch.allclose(apart.cross, apart.gram, atol=0.02)
    together = problems_of(model, (query, query, query))["layer.in_proj_weight"]
    assert torch.allclose(together.gram, gram(query).expand(3, -1, -1), atol=0.02)
    inside = problems_of(Itself(model.layer), query)["layer.in_proj_weight"]
    assert inside.weight.shape == (1, 24, 8)
    assert torch.allclose(inside.gram[0], gram(query), atol=0.02)


def test_separate_projections():
    torch.manual_seed(0)
    model = Taken(qnn.QuantMultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4)).eval()
    query, key, value = tokens(8, 6, 4)
    calibrated(model, query, key, value)
    found = problems_of(model, (query, key, value))
    assert list(found) == ["layer.q_proj_weight", "layer.k_proj_weight", "layer.v_proj_weight", "layer.out_proj"]
    for path, x in zip(found, (query, key, value), strict=False):
        assert torch.allclose(found[path].gram[0], gram(x), atol=0.02)


RECURRENT = {
    "lstm": lambda: Taken(qnn.QuantLSTM(4, 3, batch_first=True, hidden_quant=None)),
    "lstm, states quantized": lambda: Taken(qnn.QuantLSTM(4, 3, batch_first=True, hidden_scale=2**-7)),
    "lstm, all": lambda: Taken(qnn.QuantLSTM(4, 3, 2, batch_first=True, proj_size=2, bidirectional=True)),
    "gru": lambda: Taken(qnn.QuantGRU(4, 3, batch_first=True, bidirectional=True, hidden_quant=None)),
    "rnn": lambda: Taken(qnn.QuantRNN(4, 3, 2, batch_first=True, hidden_quant=None)),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_show_every_step(name):
    torch.manual_seed(0)
    model = RECURRENT[name]().eval()
    x = tokens(4)[0][:6, :4]
    calibrated(model, x)
    found = problems_of(model, [x[:2], x[2:, :3], x[2:, 3:]])
    assert set(found) == {f"layer.{slot.name}" for slot in model.layer.slots if slot.role == "weight"}
    assert {each.rows for each in found.values()} == {6 * 4}
    assert torch.allclose(found["layer.weight_ih_l0"].gram[0], gram(x), atol=1e-5)


def calibrated(model, *args):
    if any(not each.calibrated for each in qnn.quantizers_of(model).values()):
        with torch.no_grad(), qnn.calibrating(model):
            model(*args)
    return model


def test_the_states_that_meet_a_recurrent_weight():
    torch.manual_seed(0)
    model = Taken(qnn.QuantRNN(4, 3, batch_first=True, hidden_quant=None, weight_bit_width=8)).eval()
    (x,) = tokens(4)
    with torch.no_grad():
        states = model(x)
    before = torch.cat([torch.zeros(24, 1, 3), states[:, :-1]], 1)
    problem = problems_of(model, x)["layer.weight_hh_l0"]
    assert torch.allclose(problem.gram[0], gram(before), atol=1e-5)


class Unrolled(nn.Module):
    """A cell in a loop of the user's own."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step) if state is None else self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize("cell", [qnn.QuantLSTMCell, qnn.QuantGRUCell, qnn.QuantRNNCell])
@pytest.mark.parametrize("hidden_quant", [None, "given"])
def test_cells_in_a_loop(cell, hidden_quant):
    torch.manual_seed(0)
    settings = {"hidden_quant": None} if hidden_quant is None else {"hidden_scale": 2**-7}
    model = Unrolled(cell(4, 3, **settings)).eval()
    (x,) = tokens(4)
    found = problems_of(model, [x[:5], x[5:]])
    assert {path: each.rows for path, each in found.items()} == {"cell.weight_ih": 120, "cell.weight_hh": 120}
    assert torch.allclose(found["cell.weight_ih"].gram[0], gram(x), atol=1e-5)


def test_a_recurrent_layer_is_repaired():
    torch.manual_seed(0)
    model = Taken(qnn.QuantLSTM(8, 6, batch_first=True, hidden_quant=None, weight_bit_width=3)).eval()
    x = torch.randn(40, 6, 3) @ torch.randn(3, 8)
    with torch.no_grad(), qnn.unquantized(model):
        wanted = model(x)
    errors = []
    for repair in (None, gptq):
        if repair is not None:
            repair(model, x, progress=False)
        with torch.no_grad():
            errors.append(float((model(x) - wanted).square().mean()))
    assert errors[1] < 0.6 * errors[0]


class Several(nn.Module):
    """Layers that a walk leaves, each for its own reason."""

    def __init__(self):
        super().__init__()
        self.table = qnn.QuantEmbedding(10, 4)
        self.used = qnn.QuantLinear(4, 4, weight_bit_width=3)
        self.unused = qnn.QuantLinear(4, 4)
        self.turned = qnn.QuantLinear(4, 4)
        self.product = qnn.QuantLinear(4, 4)
        self.some = qnn.QuantLinear(4, 4)
        self.added = qnn.QuantLinear(4, 4)
        self.normed = nn.utils.parametrizations.weight_norm(qnn.QuantLinear(4, 4))
        self.learned = qnn.QuantLinear(4, 4, weight_rounding="learned")
        self.floored = qnn.QuantLinear(4, 4, weight_rounding="floor")
        self.random = qnn.QuantLinear(4, 4, weight_rounding="stochastic", weight_deterministic_evaluation=False)
        self.tied = qnn.QuantLinear(4, 4)
        self.partner = nn.Linear(4, 4)
        self.partner.weight = self.tied.weight
        self.shared = qnn.QuantLinear(4, 4)
        self.sharing = qnn.QuantLinear(4, 4, weight_quant=self.shared.weight_quant)
        self.corrected = qnn.QuantLinear(4, 4)
        self.corrected.correction = qnn.LowRank(torch.ones(1, 4), torch.ones(4, 1))
        self.transformed = qnn.QuantLinear(4, 4, weight_quant=Int8WeightPerChannelNorm)
        self.learning = qnn.QuantLinear(4, 4, weight_quant=CodebookWeight(levels=[-1.0, 0.0, 1.0], learned_levels=True))
        self.unquantized = qnn.QuantLinear(4, 4, weight_quant=None)

    def forward(self, x):
        x = self.used(self.table(x))
        x = nn.functional.linear(x, self.turned.take("weight")[0].t())
        x = x @ self.product.take("weight")[0].t()
        x = x + nn.functional.linear(x, self.some.take("weight")[0][:1])
        x = x + self.added.take("weight")[0][0]
        for layer in (self.normed, self.learned, self.floored, self.random, self.tied, self.partner, self.shared):
            x = layer(x)
        for layer in (self.sharing, self.corrected, self.transformed, self.learning):
            x = layer(x)
        return self.unquantized(x)


def test_what_an_algorithm_cannot_do_it_refuses_by_name():
    torch.manual_seed(0)
    model = Several().eval()
    report = gptq(model, torch.randint(10, (16, 5)), progress=False)
    assert {entry.path: entry.reason for entry in report.left} == {
        "table": "it selects rows of it, for which round-to-nearest is best",
        "unused": "no data reaches it",
        "turned": "its layer multiplies parts of it",
        "product": "its layer uses it in matmul, which is neither a linear layer nor a convolution",
        "some": "its layer uses only some of its rows",
        "added": "its layer uses it in add, which is neither a linear layer nor a convolution",
        "normed": "its weight is parametrized",
        "learned": "its quantizer rounds in a way of its own (learned), not to nearest",
        "floored": "its quantizer rounds in a way of its own (floor), not to nearest",
        "random": "its quantizer rounds in a way of its own (stochastic), not to nearest",
        "tied": "its weight is one parameter of tied.weight and partner.weight",
        "shared": "it shares its quantizer with other weights",
        "sharing": "it shares its quantizer with other weights",
        "corrected": "it has a correction, which fits its weight as it is; remove it first, del layer.correction",
        "learning": "its levels change in training",
        "transformed": "its quantizer transforms the weight (WeightNorm)",
    }
    assert [entry.path for entry in report.changed] == ["used"]


def test_nothing_that_can_be_done_is_an_error():
    model = nn.Sequential(qnn.QuantEmbedding(10, 4), nn.Linear(4, 4)).eval()
    with pytest.raises(GraphError) as caught:
        gptq(model, torch.randint(10, (16, 5)))
    assert str(caught.value) == ("gptq: nothing to do. 0: it selects rows of it, for which round-to-nearest is best.")


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = qnn.QuantLinear(4, 4, weight_bit_width=3)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


@pytest.mark.parametrize("batches", [1, 2])
def test_a_layer_that_is_called_twice_counts_all_its_inputs(batches):
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(32, 4)
    with torch.no_grad():
        quantized = torch.relu(model.layer(x))
        with qnn.unquantized(model):
            floats = torch.relu(model.layer(x))
    problem = problems_of(model, list(x.chunk(batches)))["layer"]
    assert problem.rows == 64
    assert torch.allclose(problem.gram[0], gram(torch.cat([x, quantized])), atol=1e-5)
    assert torch.allclose(problem.cross[0], torch.cat([x, floats]).T @ torch.cat([x, quantized]) / 64, atol=1e-5)


class Experts(nn.Module):
    """Samples go to one of two experts, the first to the second; then both to a head."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleDict({name: qnn.QuantLinear(4, 4, weight_bit_width=3) for name in "ab"})
        self.head = qnn.QuantLinear(4, 2, weight_bit_width=3)

    def forward(self, x):
        to = torch.sign(x[:, 0]) if len(x) > 1 else -torch.ones(1)
        out = torch.zeros_like(x)
        for sign, name in ((1, "a"), (-1, "b")):
            chosen = to == sign
            if chosen.any():
                out[chosen] = self.experts[name](x[chosen])
        return self.head(out)


def test_experts_that_the_first_sample_does_not_reach_come_in_their_place():
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(64, 4)
    found = problems_of(model, [x[:32], x[32:]])
    assert set(list(found)[:2]) == {"experts.a", "experts.b"}
    assert list(found)[2] == "head"
    assert found["experts.a"].rows == int((x[:, 0] > 0).sum())
    assert found["experts.a"].rows + found["experts.b"].rows == found["head"].rows == 64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("quantizer", [None, Int4WeightPerGroup(group_size=4), ShiftedUint4WeightPerChannel], ids=str)
def test_models_of_other_precisions(dtype, quantizer):
    torch.manual_seed(0)
    settings = {"weight_bit_width": 3} if quantizer is None else {"weight_quant": quantizer}
    model = nn.Sequential(qnn.QuantLinear(8, 8, **settings), nn.ReLU(), qnn.QuantLinear(8, 4, **settings)).eval()
    model.to(dtype)
    x = (torch.randn(128, 3) @ torch.randn(3, 8)).to(dtype)
    grids = [layer.take("weight")[1] for layer in (model[0], model[2])]
    report = gptq(model, x, progress=False)
    assert report.changed
    for layer, grid in zip((model[0], model[2]), grids, strict=True):
        assert layer.weight.dtype == dtype
        values, after = layer.take("weight")
        assert torch.equal(after.scale, grid.scale)
        if layer.weight_quant.fixed:
            assert torch.equal(values, layer.weight)


def test_outputs_that_carry_grids_and_inputs_with_scales_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(
        qnn.QuantIdentity(scale=2**-5, return_quant_tensor=True),
        qnn.QuantLinear(8, 8, weight_bit_width=3, output_quant=Int8Act, output_scale=2**-4, return_quant_tensor=True),
        qnn.QuantLinear(8, 4, weight_bit_width=3, input_quant=Int8DynamicActPerToken),
    ).eval()
    x = torch.randn(128, 3) @ torch.randn(3, 8)
    report = gptq(model, [x[:50], x[50:]], progress=False)
    assert [entry.path for entry in report.changed] == ["1", "2"]


class Loose(nn.Module):
    """The float model sends samples to the layer that the quantized one sends elsewhere."""

    def __init__(self):
        super().__init__()
        self.stem = qnn.QuantLinear(4, 4, weight_bit_width=2)
        self.layer = qnn.QuantLinear(4, 4, weight_bit_width=3)

    def forward(self, x):
        x = self.stem(x)
        return self.layer(x[x[:, 0] > 0.1])


@pytest.mark.parametrize("batches", [1, 2])
def test_inputs_without_partners_in_the_float_model_aim_at_what_the_layer_gives_them(batches):
    torch.manual_seed(0)
    model, found = Loose().eval(), {}
    report = walk_blocks(model, list(torch.randn(64, 4).chunk(batches)), found.__setitem__, progress=False)
    assert report["layer"].reason == (
        "it got other inputs than in the float model, and aims at its own output; the algorithm leaves it"
    )
    assert report["stem"].reason == "the algorithm leaves it"
    assert torch.isfinite(found["layer"].cross).all()


def test_transformer_layers_of_torch():
    torch.manual_seed(0)
    layers = nn.ModuleList(qnn.QuantTransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0) for _ in range(2))
    model = nn.Sequential(*layers).eval()
    (x,) = tokens(8)
    calibrated(model, x)
    report = gptq(model, list(x.split(8)), progress=False)
    inside = ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    assert {entry.path for entry in report} == {f"{number}.{name}" for number in (0, 1) for name in inside}
    assert len(report.changed) >= 6


class Functional(nn.Module):
    """A layer whose weight a function of the user's own model multiplies."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = qnn.QuantLinear(6, 4, weight_bit_width=3), how

    def forward(self, x):
        return nn.functional.linear(x, weight=self.how(self.layer))


@pytest.mark.parametrize(
    "how",
    [
        lambda layer: layer.take("weight")[0],
        lambda layer: layer.quant_weight(),
        lambda layer: layer.weight_quant(layer.weight),
        lambda layer: layer.take("weight")[0].clone().contiguous(),
    ],
)
@pytest.mark.parametrize("batches", [1, 2])
def test_weights_that_a_model_multiplies_itself(how, batches):
    torch.manual_seed(0)
    model, x = Functional(how).eval(), torch.randn(64, 2) @ torch.randn(2, 6)
    layer = nn.Sequential(qnn.QuantLinear(6, 4, weight_bit_width=3)).eval()
    layer.load_state_dict({name.replace("layer", "0"): each for name, each in model.state_dict().items()})
    gptq(model, list(x.chunk(batches)), progress=False)
    gptq(layer, x, progress=False)
    assert model.layer.weight_quant.fixed
    assert torch.equal(model.layer.weight, layer[0].weight)


FORMATS = [
    NVFloat4Weight,
    MXFloat4e2m1Weight,
    MXInt8Weight,
    Fp8e4m3WeightPerChannel,
    Int4WeightPerGroupQuantizedScale,
    Pot4WeightPerChannel,
    Int4WeightPerChannelLSQ,
    ShiftedUint4WeightPerGroupHQO,
    OddInt2WeightPerTensorSAWB,
    CodebookWeight(levels=[-1.0, -0.3, 0.0, 0.3, 1.0]),
]


@pytest.mark.parametrize("quantizer", FORMATS, ids=str)
def test_every_number_format_and_granularity(quantizer):
    torch.manual_seed(0)
    model = nn.Sequential(qnn.QuantLinear(64, 8, weight_quant=quantizer)).eval()
    grid = model[0].take("weight")[1]
    entry = gptq(model, torch.randn(300, 20) @ torch.randn(20, 64), progress=False)["0"]
    assert entry.figures["after"] < 0.6 * entry.figures["before"]
    values, after = model[0].take("weight")
    assert torch.equal(after.scale, grid.scale)
    assert torch.equal(values, model[0].weight)
    fresh = nn.Sequential(qnn.QuantLinear(64, 8, weight_quant=quantizer)).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh[0].take("weight")[0], values)
