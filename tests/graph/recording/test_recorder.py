"""Recording: nodes, edges, ranges, names."""

import math
import re
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright import nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.recording.recorder import record


def lines(model, examples):
    """The graph as it prints, without places."""
    return [line.partition("  ")[0] for line in str(record(model, examples)).splitlines()]


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.layer1(F.relu(self.stem(x), inplace=True))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(torch.flatten(x, 1))


def test_residual_blocks():
    assert lines(ResNet(), torch.randn(2, 3, 8, 8)) == [
        "input: input()",
        "stem: Conv2d(input)",
        "relu: relu(stem)",
        "layer1.0.conv1: Conv2d(relu)",
        "layer1.0.bn1: BatchNorm2d(layer1.0.conv1)",
        "layer1.0.relu: ReLU(layer1.0.bn1)",
        "layer1.0.conv2: Conv2d(layer1.0.relu)",
        "layer1.0.bn2: BatchNorm2d(layer1.0.conv2)",
        "layer1.0.add: add(layer1.0.bn2, relu)",
        "layer1.0.relu: ReLU(layer1.0.add)",
        "layer1.1.conv1: Conv2d(layer1.0.relu)",
        "layer1.1.bn1: BatchNorm2d(layer1.1.conv1)",
        "layer1.1.relu: ReLU(layer1.1.bn1)",
        "layer1.1.conv2: Conv2d(layer1.1.relu)",
        "layer1.1.bn2: BatchNorm2d(layer1.1.conv2)",
        "layer1.1.add: add(layer1.1.bn2, layer1.0.relu)",
        "layer1.1.relu: ReLU(layer1.1.add)",
        "avg_pool: avg_pool(layer1.1.relu)",
        "reshape: reshape(avg_pool)",
        "fc: Linear(reshape)",
        "output: output(fc)",
    ]


def test_users_ranges_and_shapes():
    model = nn.Sequential(nn.ReLU(), nn.Flatten())
    graph = record(model, torch.tensor([[[-1.0, 2.5], [0.5, -3.0]]]))
    relu = graph.node("0")
    assert (relu.low, relu.high, relu.shape) == (0.0, 2.5, (1, 2, 2))
    assert (relu.kind, relu.function, relu.name, relu.owner, relu.module) == ("ReLU", nn.ReLU, "0", "", "0")
    assert relu.users == [graph.node("1")]
    assert relu.inputs == [(graph.node("input"), 0)]
    assert graph.node("1").shape == (1, 4)
    assert [each.index for each in graph.nodes] == [0, 1, 2, 3]
    assert [(each.homogeneous, each.keeps_grid) for each in graph.nodes[1:3]] == [(True, False), (True, True)]


def test_ranges_of_what_has_none():
    class Net(nn.Module):
        def forward(self, x):
            return x > 0, x[:0], x * math.nan, x.to(torch.complex64)

    graph = record(Net(), torch.ones(2))
    for name in ("gt", "getitem", "mul", "to_site"):
        assert math.isnan(graph.node(name).low), name
        assert math.isnan(graph.node(name).high), name


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return attend(self.q(x), self.k(x), x)


def attend(q, k, v):
    return torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v


def test_functions_in_a_helper_belong_to_the_module_that_calls_it():
    assert lines(Attention(), torch.randn(1, 3, 4)) == [
        "input: input()",
        "q: Linear(input)",
        "k: Linear(input)",
        "permute: permute(k)",
        "matmul: matmul(q, permute)",
        "div: div(matmul)",
        "softmax: softmax(div)",
        "matmul_2: matmul(softmax, input)",
        "output: output(matmul_2)",
    ]


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.act = nn.ReLU()
        self.again = self.act

    def forward(self, image, mask=None, extra=None):
        hidden = self.act(self.fc(image))
        again = self.again(self.fc(hidden))
        return {"result": Result(again.masked_fill(mask, 0), (hidden, again)), "none": None}


def test_inputs_by_keyword_several_outputs_and_a_layer_called_twice():
    graph = record(Several(), {"image": torch.randn(3, 2), "mask": torch.tensor([True, False])})
    assert [repr(each).partition("  ")[0] for each in graph.nodes] == [
        "image: input()",
        "mask: input()",
        "fc: Linear(image)",
        "act: ReLU(fc)",
        "fc: Linear(act)",
        "act: ReLU(fc)",
        "masked_fill: masked_fill(act, mask)",
        "logits: output(masked_fill)",
        "hidden: output(act)",
        "hidden_2: output(act)",
    ]
    assert len(graph.calls("fc")) == 2
    assert graph.calls("again") == graph.calls("act") == [graph.nodes[3], graph.nodes[5]]
    assert graph.called == {"", "fc", "act"}
    assert graph.nodes[6].inputs[0] == (graph.nodes[5], 0)


def test_inputs_by_position():
    class Net(nn.Module):
        def forward(self, x, more, flag, *, y):
            return x + more["a"] + more["b"][0] + y

    one = torch.ones(1)
    graph = record(Net(), {"x": one, "more": {"a": one * 2, "b": [one * 3]}, "flag": 1, "y": one * 4})
    assert [each.name for each in graph.nodes if each.kind == "input"] == ["x", "a", "b", "y"]

    class Pair(nn.Module):
        def forward(self, x, y):
            return x[0] + y

    graph = record(Pair(), ([torch.ones(1)], torch.ones(1)))
    assert [each.name for each in graph.nodes if each.kind == "input"] == ["input", "input_2"]


class InPlace(nn.Module):
    def forward(self, x):
        y = x + 1
        left, right = y.chunk(2)
        left.relu_()  # y, too, but not right
        z = y * 2
        torch.sub(z, 1, out=y)
        right[0] = 5.0
        return right, y


def test_writes_are_seen_in_every_view_of_the_memory():
    graph = record(InPlace(), torch.randn(4))
    assert [repr(each).partition("  ")[0] for each in graph.nodes] == [
        "input: input()",
        "add: add(input)",
        "chunk: chunk(add)",
        "relu: relu(chunk)",
        "mul: mul(relu[1])",
        "sub: sub(mul, relu[1])",
        "setitem: setitem(sub[1])",
        "output: output(setitem)",
        "output_2: output(setitem[1])",
    ]


def test_a_write_is_not_seen_in_views_beside_it():
    class Net(nn.Module):
        def forward(self, x):
            y = x.exp()
            left, right = y.chunk(2, dim=1)  # rows in turn
            left.relu_()
            return right * 2, left[0]._base / 2

    assert lines(Net(), torch.randn(2, 4)) == [
        "input: input()",
        "exp: exp(input)",
        "chunk: chunk(exp)",
        "relu: relu(chunk)",
        "mul: mul(chunk[1])",
        "getitem: getitem(relu)",
        "div: div(relu[1])",
        "output: output(mul)",
        "output_2: output(div)",
    ]


def test_a_module_that_works_in_place_writes_to_its_input():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            y = x + 1
            view = y.view(-1)
            self.act(y)
            return view * 2 + y

    assert lines(Net(), torch.randn(1, 2)) == [
        "input: input()",
        "add: add(input)",
        "reshape: reshape(add)",
        "act: ReLU(add)",
        "mul: mul(act[1])",
        "add_2: add(mul, act)",
        "output: output(add_2)",
    ]


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.ones(2))
        self.position = nn.Embedding(4, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

    def forward(self, x):
        x = x * self.scale + self.shift.exp() * self.scale
        x = x + self.position(torch.arange(x.shape[0]))
        return F.linear(self.normed(x), self.normed.weight.t())


def test_parameters_among_the_arguments():
    graph = record(Constants(), torch.randn(3, 2))
    assert lines(Constants(), torch.randn(3, 2)) == [
        "input: input()",
        "mul: mul(input, -)",
        "add: add(mul, -)",
        "position: Embedding(-)",
        "add_2: add(add, position)",
        "normed: Linear(add_2)",
        "linear: linear(normed, -)",
        "output: output(linear)",
    ]
    assert graph.node("mul").parameters == ["scale"]
    assert graph.node("add").parameters == ["shift", "scale"]
    assert graph.node("linear").parameters == [
        "normed.parametrizations.weight.original0",
        "normed.parametrizations.weight.original1",
    ]
    assert graph.node("normed").function is nn.Linear


def test_conversions_keep_a_grid_if_they_keep_the_dtype():
    class Net(nn.Module):
        def forward(self, x):
            return x.float().half().to("cpu")

    traits = [(each.keeps_grid, each.homogeneous) for each in record(Net(), torch.ones(1)).functions()]
    assert traits == [(True, True), (False, False), (True, True)]


class Hidden(nn.Module):
    """Tensors from elsewhere: constants, and what torch doesn't show."""

    def __init__(self):
        super().__init__()
        self.table = torch.ones(2)

    def forward(self, x):
        y = x + self.table * 2 + torch.arange(2) + torch.zeros_like(x) + x.new_ones(2).exp()
        state = x.new_zeros(2)
        state[0] = y[0, 0]
        z = torch.from_numpy(y.numpy() * 2)
        return z.relu() + torch.vmap(lambda row: row * 2)(y), state


def test_constants_and_tensors_from_nowhere():
    assert lines(Hidden(), torch.randn(3, 2)) == [
        "input: input()",
        "add: add(input, -)",
        "add_2: add(add, -)",
        "add_3: add(add_2, -)",
        "add_4: add(add_3, -)",
        "getitem: getitem(add_4)",
        "setitem: setitem(-, getitem)",
        "relu: relu(-)",
        "mul: mul(-)",
        "add_5: add(relu, -)",
        "output: output(add_5)",
        "output_2: output(setitem)",
    ]


def test_one_tensor_passed_twice_comes_from_the_first_input():
    class Net(nn.Module):
        def forward(self, x, y):
            return x + y

    x = torch.ones(1)
    assert lines(Net(), (x, x)) == [
        "input: input()",
        "input_2: input()",
        "add: add(input, input)",
        "output: output(add)",
    ]


class PadConv(nn.Conv2d):
    def forward(self, input):  # noqa: A002
        return super().forward(F.pad(input, (1, 1, 1, 1)))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = PadConv(1, 2, 3)
        self.lstm = nn.LSTM(2, 4, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2)
        self.shortcut = nn.Sequential()

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        out, (hidden, _) = self.lstm(x)
        return self.shortcut(self.attention(out, out, out)[0]), hidden


def test_layers_are_single_nodes():
    graph = record(Layers(), torch.randn(3, 1, 4, 4))
    assert [repr(each).partition("  ")[0] for each in graph.nodes] == [
        "input: input()",
        "conv: PadConv(input)",
        "mean: mean(conv)",
        "lstm: LSTM(mean)",
        "attention: MultiheadAttention(lstm, lstm, lstm)",
        "output: output(attention)",
        "output_2: output(lstm[1])",
    ]
    assert graph.node("mean").homogeneous
    assert not graph.node("mean").keeps_grid


def test_layers_inside_a_transformer_are_seen():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    assert lines(layer, x) == [
        "input: input()",
        "self_attn: MultiheadAttention(input, input, input)",
        "dropout1: Dropout(self_attn)",
        "add: add(input, dropout1)",
        "norm1: LayerNorm(add)",
        "linear1: Linear(norm1)",
        "relu: relu(linear1)",
        "dropout: Dropout(relu)",
        "linear2: Linear(dropout)",
        "dropout2: Dropout(linear2)",
        "add_2: add(norm1, dropout2)",
        "norm2: LayerNorm(add_2)",
        "output: output(norm2)",
    ]
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_of_bitwright_is_one_node():
    model = nn.Sequential(qnn.QuantLinear(2, 3), qnn.QuantReLU(), nn.Linear(3, 1))
    model(torch.randn(4, 2))
    assert lines(model.eval(), torch.randn(4, 2)) == [
        "input: input()",
        "0: QuantLinear(input)",
        "1: QuantReLU(0)",
        "2: Linear(1)",
        "output: output(2)",
    ]


def test_the_model_itself_may_be_a_layer():
    assert lines(nn.Linear(2, 2), torch.ones(1, 2)) == ["input: input()", "(model): Linear(input)", "output: output()"]


def test_an_error_that_the_model_handles():
    class Picky(nn.ReLU):
        def forward(self, input):  # noqa: A002
            raise ValueError("no")

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Picky()

        def forward(self, x):
            x = x + 1
            return self.inner(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.outer, self.last = Outer(), nn.ReLU()

        def forward(self, x):
            try:
                x = self.outer(x)
            except ValueError:
                x = x * 2
                x = self.last(x)
            return x - 1

    assert lines(Net(), torch.ones(1)) == [
        "input: input()",
        "outer.add: add(input)",
        "mul: mul(input)",
        "last: ReLU(mul)",
        "sub: sub(last)",
        "output: output(sub)",
    ]


def test_names_that_the_owner_has_are_left_to_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = nn.ReLU()
            self.mul_2 = nn.ReLU()

        def forward(self, x):
            x = self.add(x + x) + 1
            return (x * x) & 3

    graph = record(Net(), torch.ones(1, dtype=torch.int32))
    assert [each.path for each in graph.functions()] == ["add_site", "add_site_2", "mul", "and_site"]
    assert graph.node("add").kind == "ReLU"


def test_sites_are_numbered_as_they_are_written():
    class Net(nn.Module):
        def forward(self, x):
            for step in (1, 0):
                x = (x + 1) + 2 if step == 0 else x + 3
            return x**x**x

    graph = record(Net(), torch.ones(1))
    assert [each.path for each in graph.functions()] == ["add_3", "add", "add_2", "pow", "pow_2"]


def test_several_examples_share_their_nodes():
    class Control(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.ReLU(), nn.ReLU()

        def forward(self, x, times=1):
            x = x + 1 if x.sum() > 0 else self.a(x) - 1
            for _ in range(times):
                x = self.b(x)
            return x

    one, two = torch.tensor([2.0]), torch.tensor([[-4.0, -3.0]])
    graph = record(Control(), [one, (two, 2), one * 2])
    assert [repr(each).partition("  ")[0] for each in graph.nodes] == [
        "input: input()",
        "sum: sum(input)",
        "gt: gt(sum)",
        "a: ReLU(input)",
        "sub: sub(a)",
        "add: add(input)",
        "b: ReLU(add | sub)",
        "b: ReLU(b)",
        "output: output(b | b)",
    ]
    start = graph.node("input")
    assert (start.low, start.high, start.shape) == (-4.0, 4.0, (1,))
    assert [each.path for each in start.users] == ["sum", "add", "a"]
    first, second = graph.calls("b")
    assert first.sources == [(graph.node("add"), 0), (graph.node("sub"), 0)]
    assert first.users == [graph.node("output"), second]
    assert graph.node("output").sources == [(first, 0), (second, 0)]
    assert [each.index for each in graph.nodes] == list(range(9))


def test_what_holds_for_some_examples_only():
    class Net(nn.Module):
        def forward(self, x, mode):
            return F.interpolate(x, scale_factor=2, mode=mode)

    x = torch.tensor([[[[1.0, 2.0]]]])
    nearest, bilinear, cubic = (x, "nearest"), (x * 3, "bilinear"), (x, "bicubic")
    expected = {
        (nearest,): (True, True),
        (nearest, bilinear): (False, True),
        (bilinear, nearest, cubic): (False, False),
    }
    for examples, traits in expected.items():
        node = record(Net(), list(examples)).node("interpolate")
        assert (node.keeps_grid, node.homogeneous) == traits
    node = record(Net(), [nearest, bilinear]).node("interpolate")
    assert (node.low, node.high) == (1, 6)
    for values in ([1.0, math.nan], [math.nan, 1.0]):
        node = record(nn.ReLU(), [torch.tensor([each]) for each in values]).node("input")
        assert [math.isnan(node.low), math.isnan(node.high)] == [True, True]


def test_functions_by_kind():
    graph = record(ResNet(), torch.randn(1, 3, 8, 8))
    assert [each.path for each in graph.functions()] == ["relu", "layer1.0.add", "layer1.1.add", "avg_pool", "reshape"]
    assert [each.path for each in graph.functions({"add"})] == ["layer1.0.add", "layer1.1.add"]


def test_an_unknown_path():
    graph = record(ResNet(), torch.randn(1, 3, 8, 8))
    message = "graph.node: no call, input or output has the path 'layer1.0.ad'. Near it are layer1.0.add, layer1.1.add."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        graph.node("layer1.0.ad")
    message = "graph.node: no call, input or output has the path 'zzzz'. print(graph) shows all nodes."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        graph.node("zzzz")


def test_what_is_not_a_model_or_has_no_weights():
    message = "record: Linear is a class, not a model. Pass an instance of it: Linear(...)."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        record(nn.Linear, torch.ones(1))
    message = "record: 1 is a LazyLinear that has not seen data, so it has no weight. Run the model once before."
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        record(nn.Sequential(nn.ReLU(), nn.LazyLinear(2)), torch.ones(1, 2))


class Inverted(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        hidden = inputs * 2
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            *(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x):
        return x + self.conv(x)


def test_the_layers_of_a_mobile_network_chain():
    graph = record(nn.Sequential(*(Inverted(4, 4) for _ in range(17))), torch.randn(1, 4, 4, 4))
    assert len(graph.nodes) == 17 * 9 + 2
    for node in graph.nodes[1:]:
        assert all(source is not None and source[0].index < node.index for source in node.inputs), node


def test_models_without_values_are_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2))
    message = (
        "record: 0 (Linear) is on the meta device and has no values, so the model can't be run. Load it first, or "
        "leave examples out where that is possible."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        record(model, torch.ones(1, 2))
