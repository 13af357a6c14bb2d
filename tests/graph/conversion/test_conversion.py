"""quantize by rules for modules: what becomes of which layer, what stays, and what is refused."""

import copy
import io
import pickle
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import bitwright.nn as qnn
from bitwright.graph.conversion.conversion import quantize
from bitwright.graph.errors import GraphError
from bitwright.graph.rules.ready import W4, W8A8, integer
from bitwright.graph.rules.rules import first, last
from bitwright.quantizers import Int4WeightPerChannel, Int8Act, Int8WeightPerChannel, Int32Bias, Uint4Act


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + x)


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.layer1 = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.layer1(self.stem(x)).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def batch():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def state_of(model):
    """Everything that a pass must not change."""
    return [
        (
            type(each),
            each.training,
            list(vars(each)),
            {
                name: (id(tensor), tensor.requires_grad, tensor._version)
                for name, tensor in each._parameters.items()
                if tensor is not None
            },
            {name: id(inner) for name, inner in each._modules.items()},
            dict(each._forward_hooks),
            dict(each._forward_pre_hooks),
        )
        for each in model.modules()
    ]


def widths(model):
    return {
        path: (each.weight_quant.bit_width, None if each.input_quant is None else each.input_quant.bit_width)
        for path, each in model.named_modules()
        if isinstance(each, qnn.WeightLayer)
    }


# Which layers


def test_only_what_a_rule_names(net):
    q = quantize(net, {nn.Conv2d: W8A8})
    assert widths(q) == dict.fromkeys(
        ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"], (8, 8)
    )
    assert type(q.head) is nn.Linear


def test_later_rules_win_and_settings_merge(net):
    q = quantize(
        net,
        {
            nn.Conv2d: W8A8,
            nn.Linear: W8A8,
            "*": {"weight_bit_width": 4, "input_bit_width": 4},
            first(): {"weight_bit_width": 8, "input_bit_width": 8},
            last(): {"weight_bit_width": 8},
        },
    )
    assert widths(q) == {
        "stem": (8, 8),
        **dict.fromkeys(["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2"], (4, 4)),
        "head": (8, 4),
    }


def test_a_quantizer_starts_its_slot_anew(net):
    q = quantize(net, {"*": {"weight_bit_width": 4}, "stem": W8A8})
    assert q.stem.weight_quant.quantizer == Int8WeightPerChannel
    assert q.head.weight_quant.bit_width == 4


def test_float_again_and_quantized_again(net):
    q = quantize(net, {nn.Conv2d: W4, "layer1.*": None, "layer1.1.*": {"weight_bit_width": 3}})
    assert widths(q) == {"stem": (4, None), "layer1.1.conv1": (3, None), "layer1.1.conv2": (3, None)}
    assert q.layer1[1].conv1.weight_quant.granularity.single  # nothing is left of W4, which was per channel


def test_keywords_alone_are_for_all_layers_with_weights(net):
    assert set(widths(quantize(net, W8A8)).values()) == {(8, 8)}
    assert "head" not in widths(quantize(net, {**W8A8, "head": None}))


def test_predicates_get_path_and_module(net):
    q = quantize(net, [(lambda path, module: path.endswith("conv1") and module.bias is None, W4)])
    assert set(widths(q)) == {"layer1.0.conv1", "layer1.1.conv1"}


def test_ends_count_layers_in_order_of_definition(net):
    q = quantize(net, {first(): W8A8, first(nn.Linear): W4, last(nn.Conv2d): W4})
    assert widths(q) == {"stem": (8, 8), "head": (4, None), "layer1.1.conv2": (4, None)}


def test_a_glob_is_about_layers_with_weights(net):
    q = quantize(net, {"layer1.0.*": W8A8})
    assert type(q.layer1[0].relu) is nn.ReLU


def test_a_glob_with_settings_of_activations_is_about_them(net):
    q = quantize(net, {"layer1.0.*": {"act_quant": Uint4Act}})
    assert q.layer1[0].relu.act_quant.quantizer == Uint4Act
    assert type(q.layer1[1].relu) is nn.ReLU
    assert widths(q) == {}


def test_activations_by_their_type(net):
    q = quantize(net, {nn.ReLU: {"bit_width": 4}})
    assert isinstance(q.layer1[0].relu, qnn.QuantReLU)
    assert q.layer1[0].relu.act_quant.bit_width == 4
    assert quantize(net, {nn.ReLU: {}}).layer1[0].relu.act_quant is not None


@pytest.mark.parametrize("cls", [nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Hardswish, nn.Identity])
def test_each_activation_becomes_what_its_name_says(cls):
    q = quantize(nn.Sequential(cls()), {cls: {"act_quant": Int8Act, "scale": 0.5}})
    assert type(q[0]).__name__.lower() == f"quant{cls.__name__}".lower()
    assert torch.equal(q(torch.tensor([1.3])), q[0].act_quant(cls()(torch.tensor([1.3]))))


def test_state_of_activations_is_where_the_weights_are():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.ReLU())
    q = quantize(model, {nn.ReLU: {}})
    assert {each.dtype for each in q[1].act_quant.parameters() if each.is_floating_point()} == {torch.float64}


def test_a_setting_goes_where_its_slot_is(net):
    q = quantize(net, {"*": {"bias_quant": Int32Bias, "input_quant": Int8Act}})
    assert q.layer1[0].conv1.bias_quant is None
    assert q.layer1[0].conv2.bias_quant.quantizer == Int32Bias


def test_a_setting_of_a_slot_without_quantizer_is_for_other_layers(net):
    q = quantize(net, {nn.Conv2d: W8A8, "*": {"weight_bit_width": 4, "input_bit_width": 4}})
    assert widths(q)["head"] == (4, None)


def test_a_layer_of_ones_own(net):
    class QuantConv(qnn.QuantConv2d):
        def __init__(self, *args, weight_quant=Int4WeightPerChannel, **options):
            super().__init__(*args, weight_quant=weight_quant, **options)

        def forward(self, x, *extra):  # type: ignore[override]
            return super().forward(x, *extra) + 1

    q = quantize(net, [(nn.Conv2d, QuantConv), ("stem", {"weight_bit_width": 3}), (first(), {"input_quant": Int8Act})])
    assert type(q.stem) is QuantConv
    assert widths(q)["stem"] == (3, 8)
    assert widths(q)["layer1.0.conv1"] == (4, None)


def test_a_model_that_is_one_layer():
    linear = nn.Linear(4, 2)
    q = quantize(linear, {nn.Linear: W8A8})
    assert type(q) is qnn.QuantLinear
    assert type(linear) is nn.Linear
    assert q.weight is not linear.weight


# What stays


def test_the_original_is_untouched(net):
    before, values = state_of(net), net(batch())
    q = quantize(net, W8A8)
    with torch.no_grad():
        q.stem.weight.zero_()
    assert state_of(net) == before
    assert torch.equal(net(batch()), values)


def test_a_float_checkpoint_loads_strictly(net):
    q = quantize(net, integer(8, 8))
    other = Net()
    q.load_state_dict(other.state_dict())
    assert torch.equal(q.layer1[1].conv2.weight, other.layer1[1].conv2.weight)
    assert list(net.state_dict()) == [key for key in q.state_dict() if "_quant." not in key]


def test_with_quantizers_off_it_is_the_float_model(net):
    q = quantize(net, {**integer(4, 4), nn.ReLU: {}})
    with qnn.unquantized(q):
        assert torch.equal(q(batch()), net(batch()))
    assert not torch.equal(q.train()(batch()), net(batch()))


def test_modes_and_gradients_stay(net):
    net.layer1.train()
    net.stem.requires_grad_(False)
    q = quantize(net, W8A8)
    assert q.layer1[0].conv1.weight_quant.training
    assert not q.stem.weight_quant.training
    assert not q.head.training
    assert not q.stem.weight.requires_grad
    assert q.head.weight.requires_grad


def test_hooks_stay(net):
    seen = []
    net.stem.register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    quantize(net, W4)(batch())
    assert seen == ["QuantConv2d"]


def test_inplace_keeps_every_object(net):
    parameters = list(net.parameters())
    q = quantize(net, W8A8, inplace=True)
    assert q is net
    kept = {id(each) for each in q.parameters()}
    assert all(id(each) in kept for each in parameters)


def test_inplace_that_fails_leaves_the_model(net):
    handle = net.stem.register_forward_hook(lambda module, args, out: None)
    before, values = state_of(net), net(batch())
    with pytest.raises(GraphError):
        quantize(net, {nn.Conv2d: W8A8, nn.Linear: {"weight_bits": 4}}, inplace=True)
    assert state_of(net) == before
    assert torch.equal(net(batch()), values)
    handle.remove()
    assert not net.stem._forward_hooks


def test_shared_modules_stay_shared():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    q = quantize(model, {"2": W4})
    assert q[0] is q[2]
    assert isinstance(q[0], qnn.QuantLinear)


def test_tied_parameters_stay_tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embedding"].weight
    q = quantize(model, W4)
    assert q["head"].weight is q["embedding"].weight
    assert isinstance(q["head"], qnn.QuantLinear)


def test_parametrized_weights():
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.ReLU())
    q = quantize(model, W8A8)
    assert isinstance(q[0], qnn.QuantLinear)
    assert parametrize.is_parametrized(q[0], "weight")
    x = torch.randn(5, 4)
    with qnn.unquantized(q):
        assert torch.equal(q(x), model(x))
    q(x).sum().backward()
    assert q[0].parametrizations.weight.original0.grad.abs().sum() > 0
    copied = copy.deepcopy(q)
    assert torch.equal(copied.eval()(x), q.eval()(x))
    q.load_state_dict(model.state_dict())
    parametrize.remove_parametrizations(q[0], "weight")
    assert type(q[0]) is qnn.QuantLinear
    with qnn.unquantized(q):
        assert torch.allclose(q(x), model(x), atol=1e-6)


def test_control_flow_and_dicts():
    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, batch):
            layer = self.one if batch["x"].sum() > 0 else self.other
            return {"y": layer(batch["x"]), "twice": [self.one(batch["x"]), self.one(-batch["x"])]}

    model = Flow()
    q = quantize(model, W8A8)
    for sign in (1, -1):
        given = {"x": sign * torch.ones(1, 3)}
        with qnn.unquantized(q):
            assert torch.equal(q(given)["y"], model(given)["y"])
        assert len(q(given)["twice"]) == 2


def test_layers_that_are_quantized_already_stay_as_they_are():
    model = nn.Sequential(qnn.QuantLinear(4, 4, weight_bit_width=2), nn.Linear(4, 4))
    q = quantize(model, W8A8)
    assert widths(q) == {"0": (2, None), "1": (8, 8)}
    again = quantize(q, {"1": None})
    assert widths(again) == {"0": (2, None), "1": (8, 8)}


def test_the_fast_path_of_transformers_does_not_pass_by():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 3, 8)
    q = quantize(model, {nn.Linear: {"weight_bit_width": 2}})
    called = []
    q.layers[0].linear1.register_forward_hook(lambda *_: called.append(1))
    q.layers[0].linear1._forward_hooks.clear()
    with torch.no_grad():
        assert not torch.allclose(q(x), model(x), atol=1e-2)
    assert type(q.layers[0].self_attn.out_proj) is type(model.layers[0].self_attn.out_proj)


# Copies, files, compilers, training


def test_copies_pickles_and_files(net):
    q = quantize(net, {**W8A8, nn.ReLU: {}}).train()
    q(batch())
    q.eval()
    expected = q(batch())
    file = io.BytesIO()
    torch.save(q, file)
    file.seek(0)
    for each in (copy.deepcopy(q), pickle.loads(pickle.dumps(q)), torch.load(file, weights_only=False)):
        assert torch.equal(each(batch()), expected)


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles(net, training):
    q = quantize(net, {**W8A8, nn.ReLU: {}})
    q.train()(batch())
    q.train(training)
    expected = copy.deepcopy(q)(batch())
    assert torch.equal(torch.compile(q, fullgraph=True, backend="eager")(batch()), expected)


def test_trains(net):
    q = quantize(net, integer(4, 4)).train()
    optimizer = torch.optim.SGD(q.parameters(), lr=0.1)
    before = q.stem.weight.detach().clone()
    q(batch()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(q.stem.weight, before)


# Classes that extend torch's


class Padded(nn.Conv2d):
    """Pads for itself."""

    def forward(self, x, factor=1.0, *, shift=0.0):  # type: ignore[override]
        return super().forward(F.pad(x, (1, 1, 1, 1))) * factor + shift


class Standardized(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):  # type: ignore[override]
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Named(nn.Linear):
    """Computes as torch's."""

    def title(self):
        return f"{self.in_features} to {self.out_features}"


@pytest.mark.parametrize("cls", [Padded, Standardized])
def test_own_forwards_stay(cls):
    torch.manual_seed(0)
    model = nn.Sequential(cls(3, 4, 3)).eval()
    q = quantize(model, {nn.Conv2d: integer(8, 8)})
    x = torch.randn(1, 3, 6, 6)
    assert type(q[0]).__name__ == f"Quant{cls.__name__}"
    assert isinstance(q[0], cls)
    with qnn.unquantized(q):
        assert torch.equal(q(x), model(x))
    q.train()(x).sum().backward()
    assert q[0].weight.grad is not None
    q.eval()
    weight, bias = q[0].quant_weight(), q[0].quant_bias()
    stand_in = copy.deepcopy(model)
    with torch.no_grad():
        stand_in[0].weight.copy_(weight.dequantize() if weight.is_quantized else weight + 0)
        stand_in[0].bias.copy_(bias + 0)
    assert torch.equal(q(x), stand_in(q[0].input_quant(x)))
    assert list(model.state_dict()) == [key for key in q.state_dict() if "_quant." not in key]
    for each in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert torch.equal(each(x), q(x))
        assert type(each[0]) is type(q[0])
    for training in (False, True):
        q.train(training)
        expected = copy.deepcopy(q)(x)
        assert torch.equal(torch.compile(q, fullgraph=True, backend="eager")(x), expected)


def test_own_forwards_with_other_arguments():
    layer = Padded(3, 4, 3)
    q = quantize(layer, W4)
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(q(x, 2.0, shift=1.0), q(x) * 2 + 1)
    assert torch.equal(q(x=x), q(x))


def test_a_method_more_is_no_own_forward():
    q = quantize(Named(4, 2), W8A8)
    assert isinstance(q, qnn.QuantLinear)
    assert q.title() == "4 to 2"
    assert pickle.loads(pickle.dumps(q)).title() == "4 to 2"


def test_own_forwards_with_parametrized_weights():
    layer = weight_norm(Padded(3, 4, 3))
    q = quantize(layer, {"weight_bit_width": 2})
    x = torch.randn(1, 3, 6, 6)
    with qnn.unquantized(q):
        assert torch.equal(q(x), layer(x))
    plain = Padded(3, 4, 3)
    with torch.no_grad():
        plain.weight.copy_(q.weight)
        plain.bias.copy_(q.bias)
    assert torch.equal(q(x), quantize(plain, {"weight_bit_width": 2})(x))
    assert not torch.allclose(q(x), layer(x), atol=1e-3)


def test_own_activations():
    class Doubled(nn.ReLU):
        def forward(self, x):  # type: ignore[override]
            return 2 * super().forward(x)

    q = quantize(nn.Sequential(Doubled()), {nn.ReLU: {"scale": 0.5}})
    assert q(torch.tensor([-1.0, 1.2])).tolist() == [0.0, 2.5]


def test_own_forwards_return_no_sums():
    message = (
        "quantize: Padded, by the rule weight_quant=Int8WeightPerChannel, input_quant=Int8Act, bias_quant=Int32Bias, "
        "return_quant_tensor=True: QuantPadded(3, 4, "
        "kernel_size=(3, 3), stride=(1, 1)): return_quant_tensor=True needs outputs that lie on a grid, and what this "
        "layer's own forward returns need not be sums of products. Set output_quant=Int8Act."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Padded(3, 4, 3), {**integer(8, 8), "return_quant_tensor": True})


def test_pickles_load_in_another_process(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Linear):\n    def forward(self, x):\n        return super().forward(x) * "
        "2\n"
    )
    code = "import sys, torch, pickle; sys.path.insert(0, {path!r}); import own; torch.manual_seed(0)\n{rest}"
    write = (
        "from bitwright.graph.conversion.conversion import quantize\n"
        "q = quantize(own.Own(4, 2), dict(weight_bit_width=3))\n"
        "torch.save((q, q(torch.ones(4)).detach()), {file!r})"
    )
    read = (
        "q, out = torch.load({file!r}, weights_only=False)\n"
        "assert torch.equal(q(torch.ones(4)), out); print(type(q).__name__)"
    )
    names = {"path": str(tmp_path), "file": str(tmp_path / "q.pt")}
    for rest in (write, read):
        done = subprocess.run(
            [sys.executable, "-c", code.format(rest=rest.format(**names), **names)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout == "QuantOwn\n"


# What is refused


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"layer1.0.conv3": W8A8},
            'quantize: the rule "layer1.0.conv3" matched nothing. Near it are layer1.0.conv1, layer1.0.conv2, '
            "layer1.1.conv2.",
        ),
        (
            {"decoder": None},
            'quantize: the rule "decoder" matched nothing. This model\'s layers are stem, layer1.0.conv1, layer1.0.bn1 '
            "and 7 more.",
        ),
        (
            {"layer1": None},
            'quantize: the rule "layer1" matches layer1, a Sequential, which holds layers and is none. Write '
            '"layer1.*".',
        ),
        (
            {nn.Conv3d: W8A8},
            "quantize: the rule nn.Conv3d matched nothing. This model's layers are Conv2d (5), BatchNorm2d (2), ReLU "
            "(2), Linear (1).",
        ),
        (
            {first(nn.Conv1d): W8A8},
            "quantize: the rule first(nn.Conv1d) matched nothing. This model's layers are Conv2d (5), BatchNorm2d (2), "
            "ReLU (2), Linear (1).",
        ),
        (
            {torch.add: {"input_quant": Int8Act}},
            "quantize: torch.add is a function, and which functions a model calls is seen by running it. Pass "
            "examples=(x,).",
        ),
        (
            {nn.Conv2d: {"bit_width": 4}},
            "quantize: no layer that the rule nn.Conv2d matches has a slot for bit_width=4. They are Conv2d (5). Did "
            "you mean weight_bit_width?",
        ),
        (
            {nn.ReLU: {"weight_bit_width": 4}},
            "quantize: no layer that the rule nn.ReLU matches has a slot for weight_bit_width=4. They are ReLU (2). "
            "Did you mean input_bit_width?",
        ),
        (
            {"layer1.*.conv1": {"bias_quant": Int32Bias}},
            'quantize: no layer that the rule "layer1.*.conv1" matches has a slot for bias_quant=Int32Bias. They are '
            "Conv2d (2).",
        ),
        (
            {nn.Conv2d: {"input_bit_width": 4}},
            "quantize: input_bit_width=4 of the rule nn.Conv2d changes no quantizer: input_quant is None in stem, "
            "layer1.0.conv1, layer1.0.conv2 and 2 more. Write input_quant=Int8Act too.",
        ),
        (
            {"head": {"weight_bits": 4}},
            'quantize: head, by the rule "head": QuantLinear(in_features=4, out_features=5, bias=True): nothing in '
            "Int8WeightPerTensor uses weight_bits=4. It takes: after, axis, bit_width, clip_first, detach_scale, "
            "granularity, int_range, max_value, min_scale, narrow_range, number_format, pass_clipped, restriction, "
            "rounding, scale, scaling, signed, statistic, transform, zero_point.",
        ),
        (
            {nn.ReLU: qnn.QuantLinear},
            "quantize: layer1.0.relu is ReLU, and can't become QuantLinear, which the rule nn.ReLU says: that is no "
            "quantized ReLU. Write qnn.QuantReLU, or a class that extends it.",
        ),
    ],
)
def test_rules_that_do_nothing(net, rules, message):
    before = state_of(net)
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(net, rules)
    assert state_of(net) == before


def test_layers_that_have_no_quantized_form():
    message = (
        "quantize: the rule nn.Flatten matched only layers that have no quantized form: Flatten (1). Write None for "
        "them, or nothing."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(nn.Linear(4, 4), nn.Flatten()), {nn.Flatten: W8A8})


def test_what_is_a_part_of_attention():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    message = (
        'quantize: the rule "attention.out_proj" matches attention.out_proj, which is a part of attention '
        '(MultiheadAttention) and no layer by itself. Write "attention", with keywords such as '
        "out_proj_weight_bit_width=4."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(model, {"attention.out_proj": W8A8})


def test_lazy_layers():
    message = (
        'quantize: the rule "0" is for 0 (LazyLinear), and its weight has no shape yet; run the model on one batch '
        "first."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(nn.LazyLinear(3)), {"0": W8A8})


def test_models_that_do_not_copy():
    class Single(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("there is but one")

    message = (
        "quantize: Single can't be copied (TypeError: there is but one). Write inplace=True to change the model "
        "itself, or make it something that copy.deepcopy takes."
    )
    model = Single()
    model.layer = nn.Linear(2, 2)
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(model, W4)
    assert isinstance(quantize(model, W4, inplace=True).layer, qnn.QuantLinear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"placement": "input"}, "quantize: placement='input' is not possible: expected 'inputs' or 'outputs'."),
        ({"joins": True}, "quantize: joins=True is not possible: expected 'free' or 'shared'."),
    ],
)
def test_options(net, options, message):
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(net, W8A8, **options)


def test_no_model():
    message = "quantize: Linear is a class, not a model. Pass an instance of it: Linear(...)."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Linear, W8A8)


def test_what_is_quantized_already_stays():
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = nn.Sequential(qnn.QuantLinear(8, 8, weight_bit_width=2, input_quant=Int8Act), nn.ReLU(), nn.Linear(8, 4))
    q = quantize(model.eval(), {nn.Linear: W8A8}, examples=x)
    assert (q[0].weight_quant.bit_width, q[2].weight_quant.bit_width) == (2, 8)
    assert not q[2].input_quant.signed
    again = quantize(quantize(model, {"0": None, "2": W8A8}, examples=x), {nn.ReLU: {"bit_width": 4}}, examples=x)
    assert again[1].act_quant.bit_width == 4


def test_layers_without_a_bias_among_integer_rules():
    q = quantize(nn.Sequential(nn.Linear(8, 8, bias=False)), integer(8, 8), examples=torch.randn(2, 8))
    assert (q[0].bias_quant, q[0].weight_quant.bit_width) == (None, 8)
    message = (
        "quantize: no layer that the rule nn.Linear matches has a slot for bias_quant=Int32Bias. They are Linear (1)."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(nn.Linear(8, 8, bias=False)), {nn.Linear: {"bias_quant": Int32Bias}})


def test_lazy_layers_are_told_by_every_rule():
    message = (
        "quantize: the rule weight_quant=Int8WeightPerChannel, input_quant=Int8Act is for 0 (LazyLinear), and its "
        "weight has no shape yet; run the model on one batch first."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), W8A8)


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        same = y
        y += x
        return self.b(same)


def test_sums_in_place_that_others_see_are_told():
    message = (
        "quantize: with all quantizers off, b (Linear) does not return what it did in the float model, on the same "
        "input. add: a += b became a = self.add(a, b), which other names of the same tensor don't see. Write a = a + b "
        'there, or "add": None.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Added(), {torch.add: {"input_quant": Int8Act}}, examples=torch.randn(2, 4))


def test_wildcards_choose_no_functions():
    message = (
        'quantize: the rule "ad*" matches functions only (add), and a wildcard chooses layers. Write the function, '
        "such as torch.add, or each path."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        quantize(Added(), {"ad*": {"input_quant": Int8Act}}, examples=torch.randn(2, 4))
