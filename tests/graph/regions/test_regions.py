import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bitwright.graph.recording.recorder import record
from bitwright.graph.regions.regions import Regions
from tests.graph.models.named import Net


def found(forward, x=None, *, norms=False, relu6=False, **layers):
    """The free regions of a model: what writes, what reads, how many channels."""
    x = torch.randn(2, 3, 8, 9) if x is None else x
    model = Net(forward, **layers)
    regions = Regions(record(model, x), model, norms=norms, relu6=relu6)
    return [("+".join(each.sources), "+".join(each.sinks), len(each.classes)) for each in regions.free()]


def convs(**shapes):
    return {name: nn.Conv2d(*shape) for name, shape in shapes.items()}


BETWEEN = {
    "nothing": lambda self, x: x,
    "relu": lambda self, x: F.relu(x),
    "in place": lambda self, x: x.relu_(),
    "leaky relu": lambda self, x: F.leaky_relu(x, 0.1),
    "dropout": lambda self, x: F.dropout(x, 0.5, self.training),
    "max pool": lambda self, x: F.max_pool2d(x, 2),
    "average pool": lambda self, x: F.avg_pool2d(x, 3, 1, 1),
    "resize": lambda self, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "padding": lambda self, x: F.pad(x, (1, 1, 2, 2)),
    "constant": lambda self, x: 0.5 * x / 3,
    "tensor": lambda self, x: x * torch.tensor(2.0),
    "mean": lambda self, x: x.mean((2, 3), keepdim=True),
    "there and back": lambda self, x: x.permute(0, 2, 3, 1).transpose(1, 3).transpose(2, 3).contiguous(),
    "flat and back": lambda self, x: x.flatten(2).unflatten(2, x.shape[2:]),
    "slices": lambda self, x: x[:, :, 1:, ::2],
}


@pytest.mark.parametrize("name", BETWEEN)
def test_passes_scales_on(name):
    def forward(self, x):
        return self.b(BETWEEN[name](self, self.a(x)))

    assert found(forward, **convs(a=(3, 4, 1), b=(4, 2, 1))) == [("a", "b", 4)]


PASSING = [
    nn.ReLU(),
    nn.ReLU(True),
    nn.LeakyReLU(),
    nn.PReLU(),
    nn.PReLU(4),
    nn.Dropout(),
    nn.Identity(),
    nn.MaxPool2d(2),
]
PASSING += [
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1),
    nn.Upsample(scale_factor=2),
    nn.ZeroPad2d(1),
    nn.ReflectionPad2d(1),
]


@pytest.mark.parametrize("module", PASSING, ids=repr)
def test_modules_that_pass_scales_on(module):
    assert found(lambda self, x: self.b(self.m(self.a(x))), m=module, **convs(a=(3, 4, 1), b=(4, 2, 1))) == [
        ("a", "b", 4)
    ]


HOLDING = [nn.GELU(), nn.SiLU(), nn.ReLU6(), nn.Sigmoid(), nn.Softmax(1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)]
HOLDING += [nn.ConstantPad2d(1, 1.0), nn.Hardswish()]


@pytest.mark.parametrize("module", HOLDING, ids=repr)
def test_modules_that_hold_scales(module):
    assert found(lambda self, x: self.b(self.m(self.a(x))), m=module, **convs(a=(3, 4, 1), b=(4, 2, 1))) == []


@pytest.mark.parametrize(
    "function",
    [lambda x: x + 1, lambda x: 1 / x, lambda x: x * x, torch.exp, lambda x: F.pad(x, (1, 1), value=2.0), torch.cos],
)
def test_functions_that_hold_scales(function):
    assert found(lambda self, x: self.b(function(self.a(x))), **convs(a=(3, 4, 1), b=(4, 2, 1))) == []


def test_flatten_repeats_channels():
    x = torch.randn(2, 3, 4, 4)
    assert found(lambda self, x: self.b(self.a(x).flatten(1)), x, a=nn.Conv2d(3, 5, 1), b=nn.Linear(5 * 16, 2)) == [
        ("a", "b", 5)
    ]


def test_residual_sum_joins_writers_and_readers():
    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.b(F.relu(self.a(x)))
        y += x
        return self.head(F.relu(y)), self.other(y)

    layers = convs(stem=(3, 4, 1), a=(4, 6, 1), b=(6, 4, 1), head=(4, 2, 1), other=(4, 3, 1))
    assert found(forward, **layers) == [("stem+b", "a+head+other", 4), ("a", "b", 6)]


def test_sum_with_an_input_is_held():
    assert found(lambda self, x: self.b(self.a(x) + x), **convs(a=(3, 3, 1), b=(3, 2, 1))) == []


def test_concatenation_keeps_channels_apart():
    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return self.c(torch.cat([F.relu(a), F.relu(b)], 1)), self.d(b)

    layers = convs(a=(3, 4, 1), b=(3, 2, 1), c=(6, 2, 1), d=(2, 2, 1))
    assert found(forward, **layers) == [("a", "c", 4), ("b", "c+d", 2)]


def test_concatenation_with_an_input_holds_only_its_channels():
    assert found(lambda self, x: self.b(torch.cat([x, self.a(x)], 1)), **convs(a=(3, 4, 1), b=(7, 2, 1))) == [
        ("a", "b", 4)
    ]


def test_layer_called_twice_has_the_same_scales_in_both_calls():
    def forward(self, x):
        a = F.relu(self.a(x))
        return self.c(F.relu(self.b(F.relu(self.b(a)))))

    assert found(forward, **convs(a=(3, 4, 1), b=(4, 4, 1), c=(4, 2, 1))) == [("a+b", "b+c", 4)]


def test_tied_weight_is_held():
    layers = convs(a=(3, 4, 1), b=(4, 4, 1), c=(4, 4, 1))
    layers["c"].weight = layers["b"].weight
    assert found(lambda self, x: self.c(self.b(self.a(x))), **layers) == []


def test_squeeze_and_excitation():
    def forward(self, x):
        x = self.a(x)
        gate = F.relu(self.down(x.mean((2, 3), keepdim=True)))
        return self.b(x * torch.sigmoid(self.up(gate)))

    layers = convs(a=(3, 4, 1), down=(4, 2, 1), up=(2, 4, 1), b=(4, 2, 1))
    assert found(forward, **layers) == [("a", "down+b", 4), ("down", "up", 2)]


def test_relu6_only_if_asked():
    def forward(self, x):
        return self.b(self.act(self.a(x)))

    layers = {"act": nn.ReLU6(), **convs(a=(3, 4, 1), b=(4, 2, 1))}
    assert found(forward, **layers) == []
    assert found(forward, relu6=True, **layers) == [("a", "b", 4)]


def test_functional_relu6_is_held():
    assert found(lambda self, x: self.b(F.relu6(self.a(x))), relu6=True, **convs(a=(3, 4, 1), b=(4, 2, 1))) == []


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def attention(self, x):
    """Two query heads for each head of keys and values."""
    q, k, v = heads(self.q(x), 4), heads(self.k(x), 2), heads(self.v(x), 2)
    k, v = (each.repeat_interleave(2, 1) for each in (k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2), -1)
    return self.o((weights @ v).transpose(1, 2).flatten(2))


def fused_attention(self, x):
    q, k, v = heads(self.q(x), 4), heads(self.k(x), 2), heads(self.v(x), 2)
    return self.o(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("forward", [attention, fused_attention])
def test_grouped_query_attention(forward):
    layers = {name: nn.Linear(12, size) for name, size in {"q": 12, "k": 6, "v": 6, "o": 12}.items()}
    assert found(forward, torch.randn(2, 5, 12), **layers) == [("v", "o", 6)]


def test_gated_mlp():
    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))

    layers = {"gate": nn.Linear(4, 6), "up": nn.Linear(4, 6), "down": nn.Linear(6, 4)}
    assert found(forward, torch.randn(2, 4), **layers) == [("up", "down", 6)]


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4)])
def test_norms_write_only_if_asked(norm):
    layers = {"norm": norm, "q": nn.Linear(4, 2), "k": nn.Linear(4, 2)}

    def forward(self, x):
        x = self.norm(x)
        return self.q(x), self.k(x)

    assert found(forward, torch.randn(2, 5, 4), **layers) == []
    assert found(forward, torch.randn(2, 5, 4), norms=True, **layers) == [("norm", "q+k", 4)]


class OwnNorm(nn.Module):
    """A norm as language models write it."""

    def __init__(self, offset=0.0):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(4)), offset

    def forward(self, x):
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return x * (self.offset + self.weight) if self.offset else self.weight * x


def test_gain_of_a_norm_written_by_hand():
    layers = {"norm": OwnNorm(), "fc": nn.Linear(4, 2)}
    forward = lambda self, x: self.fc(self.norm(x))  # noqa: E731
    assert found(forward, torch.randn(2, 4), norms=True, **layers) == [("norm.weight", "fc", 4)]
    assert found(forward, torch.randn(2, 4), norms=True, norm=OwnNorm(1.0), fc=nn.Linear(4, 2)) == []


def why(forward, x=None, **layers):
    x = torch.randn(2, 3, 8, 9) if x is None else x
    model = Net(forward, **layers)
    return Regions(record(model, x), model).why_held("a")


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.a(x), "the model returns its output"),
        (lambda self, x: self.b(self.act(self.a(x))), "its output reaches act (GELU)"),
        (
            lambda self, x: self.b(self.six(self.a(x))),
            'its output reaches six (ReLU6); pass relu6="replace" to have a ReLU there',
        ),
        (lambda self, x: self.b(F.relu6(self.a(x))), "its output reaches relu6 (relu6)"),
        (
            lambda self, x: self.b(self.bn(self.a(x))),
            "its output reaches bn (BatchNorm2d); call fold_batch_norms first",
        ),
        (lambda self, x: self.b(self.a(x) + x), "its output meets input (input)"),
        (lambda self, x: (self.a(x), self.b(x))[1], "no convolution or linear layer reads its output"),
    ],
)
def test_why_held(forward, reason):
    modules = {"act": nn.GELU(), "six": nn.ReLU6(), "bn": nn.BatchNorm2d(3)}
    assert why(forward, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1), **modules) == reason


def test_layer_that_reads_nothing_in_one_call():
    def forward(self, x):
        a = self.a(x)
        return torch.cat([self.b(a), self.b(a[:0])])

    assert found(forward, torch.randn(2, 3), a=nn.Linear(3, 4), b=nn.Linear(4, 2)) == []


def test_layer_of_half_a_tensor():
    def forward(self, x):
        return self.b(self.a(x).chunk(2, 1)[1])

    model = Net(forward, **convs(a=(3, 4, 1), b=(2, 2, 1)))
    regions = Regions(record(model, torch.randn(1, 3, 4, 4)), model)
    assert regions.free() == []
    assert regions.why_held("a") == "its output reaches b, which reads a part of what another layer writes"
    assert regions.why_held("b") == "it reads a part of what another layer writes"


def test_input_from_elsewhere_in_another_example():
    def forward(self, x, flag):
        return self.c(self.a(x) if flag else self.b(x))

    model = Net(forward, **convs(a=(3, 4, 1), b=(3, 4, 1), c=(4, 2, 1)))
    x = torch.randn(1, 3, 4, 4)
    graph = record(model, [(x, True), (x, False)])
    assert Regions(graph, model).free() == []
