"""Every way to write an operation: the named expressions call submodules, everything else is as it was."""

import copy
import functools
import inspect
import operator
import pickle
import re
import subprocess
import sys
import textwrap
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import relu as rectified
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.recording.places import Place
from bitwright.graph.recording.recorder import record
from bitwright.graph.rewriting import function_at, interpose
from bitwright.quantizers import Int8Act


class Passing(nn.Module):
    """Calls a function, and counts."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


ARITHMETIC = ("add", "sub", "mul", "div", "matmul", "softmax", "cat", "relu", "gelu")


def sites(model, *args, kinds=ARITHMETIC):
    """The recorded operations of a model by owner, each once."""
    found = {}
    for node in record(model, [args]).functions(kinds):
        found.setdefault(node.owner, {}).setdefault(node.name, node)
    return found


def rewritten(model, *args, kinds=ARITHMETIC, layer=Passing):
    """A copy of a model in which each operation is a call of a module."""
    found = sites(model, *args, kinds=kinds)
    model = copy.deepcopy(model)
    for path, nodes in found.items():
        owner = model.get_submodule(path)
        for name, node in nodes.items():
            owner.add_module(name, layer(function_at(owner, node.place, node)))
        interpose(owner, [(node.place, name, node) for name, node in nodes.items()])
    return model


def source(model, method="forward"):
    return getattr(type(model), method).source


def text(block):
    return textwrap.dedent(block).lstrip("\n")


def calls(model):
    return {path: each.calls for path, each in model.named_modules() if isinstance(each, Passing)}


def attend(q, k, v, *, scale=1.0):
    weights = torch.softmax(q @ k.transpose(-1, -2) * scale, -1)  # (N, T, T)
    return weights @ v


def project(x, weight):
    return attend(x @ weight, x, x)


def loud(function):
    @functools.wraps(function)
    def around(*args, **kwargs):
        return function(*args, **kwargs)

    around.volume = 11
    return around


def plain(function):
    def around(self, x):
        return function(self, x)

    return around


def narrow(function):
    @functools.wraps(function)
    def around(x):
        return function(x)

    return around


@loud
def shifted(x, by=1.0):
    return x + by


@narrow
def doubled(x):
    return x * 2


class Operators(nn.Module):
    def forward(self, x):
        y = x + 1.0  # one more
        z = 2 - y * (x / 3)
        return z + x @ y


class Assignments(nn.Module):
    def forward(self, x):
        out = x * 2
        out += x
        if self.training:
            out -= 1
        out *= x
        return out


class Functions(nn.Module):
    def forward(self, x):
        y = torch.cat([x, rectified(x)], dim=1)
        return F.softmax(input=torch.add(y, y, alpha=2), dim=-1)


class InPlace(nn.Module):
    def forward(self, x):
        y = x.clone()
        same = y
        y.add_(x)
        F.relu(y, inplace=True)
        return same + y


class Helpers(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x):
        first = attend(x, x, x)
        x = attend(q=first, k=x, v=x, scale=0.5)
        return project(x, self.weight) + shifted(x, by=2.0)


class Comprehensions(nn.Module):
    def forward(self, x):
        parts = [each + 1 for each in x.unbind(0)]
        last = max((part * 2 for part in parts), key=lambda part: part.sum().item())
        twice = lambda value: value + value  # noqa: E731

        def inner(value):
            return twice(value) * last

        return torch.stack([inner(part) for part in parts])


class Base(nn.Module):
    def forward(self, x):
        return self._shift(x) * 2

    def _shift(self, x):
        return x + 1


class Super(Base):
    def forward(self, x):
        return super().forward(x) + x

    def _shift(self, x):
        return super(Super, self)._shift(x) - 3  # noqa: UP008


class Explicit(Base):
    def forward(self, x):
        return Base.forward(self, x) - x


class _Private(nn.Module):
    __scale = 3

    def forward(self, x):
        return self.__scaled(x) + self.__static(x, by=self.__scale)

    def __scaled(self, x):
        return x * self.__scale

    @staticmethod
    def __static(x, *, by):
        return x / by


class Decorated(nn.Module):
    @torch.no_grad()
    @loud
    def forward(self, x, bias: float = 0.5) -> Tensor:
        return self.half(x) + bias

    @plain
    def half(self, x):  # type: ignore[override]
        return x / 2


def make_closed(shift):
    class Closed(nn.Module):
        def forward(self, x, *, factor=4):
            return __class__._double(x + shift) * factor

        @staticmethod
        def _double(x):
            return x * two

    two = 2
    return Closed


Closed = make_closed(7)


class OtherNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.activation = F.gelu

    def forward(module, x, /):  # noqa: N805
        import torch.nn.functional as functional

        return functional.relu(module.activation(x)) + 1


class ControlFlow(nn.Module):
    def forward(self, x, gate=None):
        for _ in range(3):
            x = x + 1
        if x.sum().item() < 0:
            return x + 2
        if self.training:
            x = x + torch.zeros(())
        return x * 2 if gate is None else x * gate


# fmt: off
class Methods(nn.Module):
    def forward(self, x):
        y = x.add(1) \
             .relu()
        return (
            y.mul(x)  # left out
            .softmax(-1)
            .add(
                x,  # the input
                alpha=2,
            )
        )
# fmt: on


class Chosen(nn.Module):
    def __init__(self, compute=attend):
        super().__init__()
        self.compute = {"first": compute, "second": project}

    def forward(self, x, which="first"):
        compute = self.compute[which]
        if which == "second":
            return compute(x, x)
        return compute(x, x, x)


class Walrus(nn.Module):
    def forward(self, x):
        if (y := x + 1).sum() != (y * 2).sum():
            return (z := y) - x + z
        return x


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = Operators(), Helpers()

    def forward(self, x):
        return {"sum": self.one(x) + self.two(x)}


MODELS = (
    *(Operators, Assignments, Functions, Methods, InPlace, Helpers, Comprehensions, Super, Explicit, _Private),
    *(Decorated, Closed, OtherNames, ControlFlow, Walrus, Nested, Chosen),
)


def value(out):
    return out["sum"] if isinstance(out, dict) else out


@pytest.fixture
def x():
    return torch.rand(4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cls", MODELS)
def test_results_are_the_same_to_the_bit(cls, x):
    model = cls()
    before = {name: id(each) for name, each in vars(cls).items()}
    quantized = rewritten(model, x)
    assert type(model) is cls
    assert before == {name: id(each) for name, each in vars(cls).items()}
    for training in (True, False):
        outs, grads = [], []
        for each in (model.train(training), quantized.train(training)):
            leaf = x.clone().requires_grad_()
            out = value(each(leaf * 1.0))
            outs.append(out)
            grads.append(torch.autograd.grad(out.sum(), leaf)[0] if out.requires_grad else torch.zeros(()))
        assert torch.equal(*outs)
        assert torch.equal(*grads)
    found = sites(model, x)
    assert {f"{path}.{name}".lstrip(".") for path in found for name in found[path]} == set(calls(quantized))
    assert all(calls(quantized).values())


@pytest.mark.parametrize("cls", MODELS)
def test_the_class_is_like_the_original(cls, x):
    quantized = rewritten(cls(), x)
    made = type(quantized)
    assert isinstance(quantized, cls)
    assert made is not cls
    assert (made.__name__, made.__qualname__, made.__module__) == (cls.__name__, cls.__qualname__, cls.__module__)
    for name, method in vars(made).items():
        if name in vars(cls) and callable(method):
            original = vars(cls)[name]
            assert method.__qualname__ == original.__qualname__
            assert inspect.signature(method) == inspect.signature(original)
            assert method.__doc__ == original.__doc__
            assert method.function is original  # type: ignore[attr-defined]


@pytest.mark.parametrize("cls", MODELS)
def test_copies_have_the_same_class_and_their_own_submodules(cls, x):
    quantized = rewritten(cls(), x)
    twin = copy.deepcopy(quantized)
    assert type(twin) is type(quantized)
    before = calls(twin)
    assert torch.equal(value(twin(x.clone())), value(quantized(x.clone())))
    assert all(calls(twin)[name] > before[name] for name in before)
    assert type(rewritten(cls(), x)) is type(quantized)  # the same places: no class of its own


SOURCES = {
    (Operators, "forward"): """
        def forward(self, x):
            y = self.add(x, 1.0)  # one more
            z = self.sub(2, self.mul(y, self.div(x, 3)))
            return self.add_2(z, self.matmul(x, y))
    """,
    (Assignments, "forward"): """
        def forward(self, x):
            out = self.mul(x, 2)
            out = self.add(out, x)
            if self.training:
                out -= 1
            out = self.mul_2(out, x)
            return out
    """,
    (Functions, "forward"): """
        def forward(self, x):
            y = self.cat([x, self.relu(x)], dim=1)
            return self.softmax(input=self.add(y, y, alpha=2), dim=-1)
    """,
    (Methods, "forward"): """
        def forward(self, x):
            y = self.relu(self.add(x, 1))
            return (
                self.add_2(self.softmax(self.mul(y, x), -1),
                    x,  # the input
                    alpha=2,
                )
            )
    """,
    (InPlace, "forward"): """
        def forward(self, x):
            y = x.clone()
            same = y
            self.add(y, x)
            self.relu(y, inplace=True)
            return self.add_2(same, y)
    """,
    (Helpers, "forward"): """
        def forward(self, x):
            first = self._attend(x, x, x)
            x = self._attend_2(q=first, k=x, v=x, scale=0.5)
            return self.add_2(self._project(x, self.weight), self._shifted(x, by=2.0))
    """,
    (Helpers, "_attend_2"): """
        def attend(self, q, k, v, *, scale=1.0):
            weights = self.softmax_2(self.mul_2(self.matmul_3(q, k.transpose(-1, -2)), scale), -1)  # (N, T, T)
            return self.matmul_4(weights, v)
    """,
    (Helpers, "_project"): """
        def project(self, x, weight):
            return self._attend_3(self.matmul_5(x, weight), x, x)
    """,
    (Helpers, "_shifted"): """
        @loud
        def shifted(self, x, by=1.0):
            return self.add(x, by)
    """,
    (Comprehensions, "forward"): """
        def forward(self, x):
            parts = [self.add(each, 1) for each in x.unbind(0)]
            last = max((self.mul(part, 2) for part in parts), key=lambda part: part.sum().item())
            twice = lambda value: self.add_2(value, value)  # noqa: E731

            def inner(value):
                return self.mul_2(twice(value), last)

            return torch.stack([inner(part) for part in parts])
    """,
    (Super, "forward"): """
        def forward(self, x):
            return self.add(self._forward(x), x)
    """,
    (Super, "_forward"): """
        def forward(self, x):
            return self.mul(self._shift(x), 2)
    """,
    (Super, "_shift"): """
        def _shift(self, x):
            return self.sub(self._shift_2(x), 3)  # noqa: UP008
    """,
    (Explicit, "_forward"): """
        def forward(owner, self, x):
            return owner.mul(self._shift(x), 2)
    """,
    (_Private, "forward"): """
        def forward(self, x):
            return self.add(self.__scaled(x), self._static(x, by=self.__scale))
    """,
    (_Private, "_Private__scaled"): """
        def __scaled(self, x):
            return self.mul(x, self.__scale)
    """,
    (_Private, "_static"): """
        # @staticmethod
        def __static(self, x, *, by):
            return self.div(x, by)
    """,
    (Decorated, "forward"): """
        @torch.no_grad()
        @loud
        def forward(self, x, bias: float = 0.5) -> Tensor:
            return self.add(self.half(x), bias)
    """,
    (Closed, "forward"): """
        def forward(self, x, *, factor=4):
            return self.mul_2(self._double_2(self.add(x, shift)), factor)
    """,
    (OtherNames, "forward"): """
        def forward(module, x, /):  # noqa: N805
            import torch.nn.functional as functional

            return module.add(module.relu(module.gelu(x)), 1)
    """,
    (ControlFlow, "forward"): """
        def forward(self, x, gate=None):
            for _ in range(3):
                x = self.add(x, 1)
            if x.sum().item() < 0:
                return x + 2
            if self.training:
                x = x + torch.zeros(())
            return self.mul(x, 2) if gate is None else x * gate
    """,
    (Walrus, "forward"): """
        def forward(self, x):
            if (y := self.add(x, 1)).sum() != (self.mul(y, 2)).sum():
                return self.add_2(self.sub((z := y), x), z)
            return x
    """,
    (Chosen, "forward"): """
        def forward(self, x, which="first"):
            compute = self.compute[which]
            if which == "second":
                return compute(x, x)
            return (self._attend if compute is self._attend.function else compute)(x, x, x)
    """,
}


@pytest.mark.parametrize(("cls", "method"), SOURCES)
def test_the_source_is_what_was_written_but_for_the_operations(cls, method, x):
    assert source(rewritten(cls(), x), method) == text(SOURCES[cls, method])


def test_only_the_operations_that_are_asked_for_change(x):
    quantized = rewritten(Operators(), x, kinds=["mul"])
    assert source(quantized) == text("""
        def forward(self, x):
            y = x + 1.0  # one more
            z = 2 - self.mul(y, x / 3)
            return z + x @ y
    """)


def test_a_branch_that_was_not_recorded_stays_as_it_is(x):
    quantized, model = rewritten(ControlFlow(), x), ControlFlow()
    assert torch.equal(quantized(-x - 9), model(-x - 9))
    assert torch.equal(quantized(x, gate=x), model(x, gate=x))
    assert calls(quantized) == {"add": 6, "mul": 0}


def test_a_variable_that_holds_another_function_calls_that(x):
    quantized, model = rewritten(Chosen(), x), Chosen()
    before = calls(quantized)
    assert torch.equal(quantized(x, "second"), model(x, "second"))
    assert calls(quantized) == before


def test_the_line_of_an_error_is_that_of_the_file(x):
    quantized = rewritten(Operators(), x)
    with pytest.raises(TypeError) as caught:
        quantized(None)
    frame = [each for each in caught.traceback if "<rewritten" in str(each.frame.code.raw.co_filename)][-1]
    assert frame.lineno + 1 == Operators.forward.__code__.co_firstlineno + 1
    assert str(frame.statement).strip() == "y = self.add(x, 1.0)  # one more"
    assert textwrap.dedent(inspect.getsource(type(quantized).forward)) == source(quantized)


def test_decorators_are_kept_and_not_called_again(x):
    quantized = rewritten(Decorated(), x)
    assert type(quantized).forward.volume == 11  # type: ignore[attr-defined]
    assert type(quantized).forward.__wrapped__.__wrapped__.__code__ is not Decorated.forward.__wrapped__.__wrapped__  # type: ignore[attr-defined]
    assert not quantized(x.requires_grad_()).requires_grad
    assert quantized(x, bias=2).equal(Decorated()(x, bias=2))


def test_bases_are_not_told_of_the_class(x):
    quantized = rewritten(Registered(), x)
    assert type(quantized) is not Registered
    assert Registered.known == ["Registered"]


class Registry(nn.Module):
    known = []  # noqa: RUF012

    def __init_subclass__(cls, *, name):
        cls.known.append(name)


class Registered(Registry, name="Registered"):
    def forward(self, x):
        return x + 1


class Metaclass(type(nn.Module)):
    pass


class WithMetaclass(nn.Module, metaclass=Metaclass):
    def forward(self, x):
        return x + 1


def test_a_metaclass_stays(x):
    assert type(type(rewritten(WithMetaclass(), x))) is Metaclass


# Interposing again


def test_what_was_rewritten_can_be_rewritten_again(x):
    model = Helpers()
    once = rewritten(model, x, kinds=["softmax", "add"])
    twice = rewritten(once, x, kinds=["matmul"])
    assert torch.equal(twice(x), model(x))
    assert source(twice, "_attend_2") == text("""
        def attend(self, q, k, v, *, scale=1.0):
            weights = self.softmax_2(self.matmul_2(q, k.transpose(-1, -2)) * scale, -1)  # (N, T, T)
            return self.matmul_5(weights, v)
    """)
    restored = pickle.loads(pickle.dumps(twice))
    assert type(restored) is type(twice)
    assert torch.equal(restored(x), model(x))
    assert isinstance(twice, type(once))


# Calls of modules


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.relu(x) - 1)


def test_a_call_of_a_module_becomes_one_of_another(x):
    model = Reused()
    second = record(model, [(x,)]).calls("relu")[1]
    model.relu_2 = nn.ReLU6()
    assert function_at(model, second.place, second) is model.relu
    interpose(model, [(second.place, "relu_2", second)])
    assert source(model) == text("""
        def forward(self, x):
            return self.relu_2(self.relu(x) - 1)
    """)


# With quantizers


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, x):
        y = F.scaled_dot_product_attention(self.project(x), x, x)
        y += x
        return torch.cat([y, x * 2], -1)


def quantizing(function):
    return qnn.QuantFunction(function, input_quant=Int8Act, operands=3 if "attention" in str(function) else 2)


def test_quantized_functions_in_the_places(x):
    model, x = Attention(), x.reshape(1, 4, 4)
    quantized = rewritten(model, x, kinds=["attention", "add", "cat"], layer=quantizing)
    with qnn.unquantized(quantized):
        assert torch.equal(quantized(x), model(x))
    with qnn.calibrating(quantized):
        quantized(x)
    assert list(qnn.quantizers_of(quantized)) == [
        *(f"attention.input_{i}_quant" for i in (1, 2, 3)),
        *(f"add.input_{i}_quant" for i in (1, 2)),
        *(f"cat.input_{i}_quant" for i in (1, 2)),
    ]
    out = quantized.eval()(x)
    assert 0 < (out - model(x)).abs().max() < 0.05
    compiled = torch.compile(quantized, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.equal(compiled(x), out)
    torch.compiler.reset()


@pytest.mark.parametrize("cls", [Helpers, Super, Methods, OtherNames, Chosen])
def test_compilers_see_one_graph(cls, x):
    quantized = rewritten(cls(), x, layer=qnn.QuantFunction)
    out = quantized(x)
    torch.compiler.reset()
    assert torch.equal(torch.compile(quantized, fullgraph=True, backend="eager")(x), out)
    torch.compiler.reset()


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_wrappers_take_it(x):
    wanted = Nested()(x)["sum"]
    assert torch.equal(DistributedDataParallel(rewritten(Nested(), x))(x)["sum"], wanted)
    quantized = rewritten(Nested(), x)
    cls = type(quantized.one)
    fully_shard(quantized, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    assert isinstance(quantized.one, cls)
    assert torch.equal(quantized(x)["sum"], wanted)


# Files


MODULE = """
import torch
from torch import nn


def attend(q, k):
    return torch.softmax(q @ k, -1)


class Block(nn.Module):
    def forward(self, x):
        return attend(x, x) + x
"""


@pytest.fixture
def blocks(tmp_path, monkeypatch):
    """A function that makes a module of a text, and imports it."""

    def imported(text, name="blocks_of_a_user"):
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
        return __import__(name)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield imported
    sys.modules.pop("blocks_of_a_user", None)


def test_pickles_are_read_in_another_process(x, blocks, tmp_path):
    quantized = rewritten(blocks(MODULE).Block(), x, layer=qnn.QuantFunction)
    torch.save((quantized, x, quantized(x)), tmp_path / "model.pt")
    code = (
        "import torch\n"
        f"model, x, out = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
        "assert torch.equal(model(x), out)\n"
        "print(type(model).forward.source)\n"
        "print(type(model)._attend.source)\n"
    )
    path = [str(tmp_path), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == source(quantized) + "\n" + source(quantized, "_attend") + "\n"
    assert "self.add(self._attend(x, x), x)" in done.stdout


@pytest.mark.parametrize(
    ("before", "after", "name"),
    [("x, x) + x", "x, x) - x", "Block.forward"), ("q @ k, -1", "q @ k, 0", "attend")],
)
def test_a_source_that_was_edited_is_refused(x, blocks, before, after, name):
    saved = pickle.dumps(rewritten(blocks(MODULE).Block(), x, layer=qnn.QuantFunction))
    blocks("# A line more.\n" + MODULE)
    assert torch.equal(pickle.loads(saved)(x), torch.softmax(x @ x, -1) + x)
    blocks(MODULE.replace(before, after))
    with pytest.raises(
        GraphError,
        match=re.escape(
            f"{name} was edited since this model was saved. Build it again with quantize and load its state dict."
        ),
    ):
        pickle.loads(saved)


LAYOUT = """
from torch import nn
class Block(nn.Module):
\tdef forward(self, x):
\t\té = "é", x + 1; return (é[1]  # not the first
\t\t                        *  x
\t\t                        )  # the end
"""


def test_any_layout_of_a_file_is_understood(x, blocks):
    quantized = rewritten(blocks(LAYOUT).Block(), x)
    assert source(quantized) == (
        'def forward(self, x):\n\té = "é", self.add(x, 1); return (self.mul(é[1], x)\n'
        "\t                        )  # the end\n"
    )
    assert torch.equal(quantized(x), (x + 1) * x)


def test_an_import_of_future_annotations_holds_for_what_is_rewritten(x, blocks):
    module = blocks("from __future__ import annotations\n" + MODULE.replace("(self, x)", "(self, x: Unknown)"))
    quantized = rewritten(module.Block(), x)
    assert torch.equal(quantized(x), module.Block()(x))
    assert type(quantized).forward.__annotations__ == {"x": "Unknown"}


# What can't be rewritten


class Refused(nn.Module):
    def __init__(self):
        super().__init__()
        self.functions = [torch.add, attend]
        self.state = torch.zeros(4, 4)

    def forward(self, x, case):
        return getattr(self, case)(x)

    def summed(self, x):
        return sum([x, x])

    def reduced(self, x):
        return functools.reduce(torch.mul, [x, x])

    def subscript(self, x):
        y = x.clone()
        y[:, 0] += x[:, 1]
        return y

    def attribute(self, x):
        self.state += x
        return self.state

    def stored(self, x):
        return self.functions[0](x, x)

    def helper(self, x):
        return self.functions[1](x, x, x)

    def partial(self, x):
        return functools.partial(torch.softmax, dim=-1)(x)

    def narrow(self, x):
        return doubled(x)

    def renamed(self, x):
        self = {"owner": self}
        return x + 1

    def unnamed(*arguments):
        return arguments[1] + 1

    def shadowed(self, x):
        return (lambda self: self + 1)(x)


HERE = "test_interposing.py"
ADD = "Write a + b there, or self.add = qnn.QuantFunction(torch.add, ...) in the block, or"
MUL = "Write a * b there, or self.mul = qnn.QuantFunction(torch.mul, ...) in the block, or"
SOFTMAX = "Write torch.softmax(...) there, or self.softmax = qnn.QuantFunction(torch.softmax, ...) in the block, or"
NOT = "not by an operator or a call written there."


def line(method):
    return getattr(Refused, method).__code__.co_firstlineno


REFUSED = {
    "summed": ("add", f"add is computed by sum(...) at {HERE}:{line('summed') + 1} in Refused.summed, {NOT} {ADD} "),
    "reduced": (
        "mul",
        f"mul is computed by functools.reduce(...) at {HERE}:{line('reduced') + 1} in Refused.reduced, {NOT} {MUL} ",
    ),
    "subscript": (
        "add",
        f"add is computed by y[:, 0] += ... at {HERE}:{line('subscript') + 2} in Refused.subscript, {NOT} {ADD} ",
    ),
    "attribute": (
        "add",
        f"add is computed by self.state += ... at {HERE}:{line('attribute') + 1} in Refused.attribute, {NOT} {ADD} ",
    ),
    "stored": (
        "add",
        f"add is computed by self.functions[0](...) at {HERE}:{line('stored') + 1} in Refused.stored, {NOT} {ADD} ",
    ),
    "helper": (
        "softmax",
        f"softmax is computed by attend, which Refused.helper calls at {HERE}:{line('helper') + 1} as "
        f"self.functions[1](...), a name that may stand for another function, too. {SOFTMAX} ",
    ),
    "partial": (
        "softmax",
        "softmax is computed by functools.partial(torch.softmax, dim=-1)(...) at "
        f"{HERE}:{line('partial') + 1} in Refused.partial, {NOT} {SOFTMAX} ",
    ),
    "narrow": (
        "mul",
        "mul is computed in doubled, whose decorator takes fixed arguments, so it can't become a method. Let the "
        "decorator's function take *args and **kwargs, or write ",
    ),
    "shadowed": (
        "add",
        f"add is computed by Refused.shadowed at {HERE}:{line('shadowed') + 1}, where self is something else than the "
        f"module. {ADD} ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_written_there_is_refused(case, x):
    kind, message = REFUSED[case]
    model = Refused()
    graph = record(model, [(x, case)])
    node = next(each for each in graph.functions([kind]))
    with pytest.raises(GraphError, match=f"^{re.escape(message)}{re.escape(chr(34) + kind + chr(34))}: None.$"):
        interpose(model, [(node.place, kind, node)])
    assert type(model) is Refused


@pytest.mark.parametrize(
    ("method", "written", "reason"),
    [
        ("renamed", "x + 1", "Refused.renamed at {}, where self is something else than the module"),
        ("unnamed", "arguments[1] + 1", "Refused.unnamed, which names no argument for the module itself"),
    ],
)
def test_a_method_that_does_not_name_its_module_is_refused(method, written, reason, x):
    model, code = Refused(), getattr(Refused, method).__code__
    node = record(model, [(x, "narrow")]).functions(["mul"])[0]
    lines, first = inspect.getsourcelines(code)
    number, column = next((n, each.index(written)) for n, each in enumerate(lines) if written in each)
    position = (first + number, first + number, column, column + len(written))
    node.kind, node.name, node.function = "add", "add", Tensor.add
    message = f'add is computed by {reason.format(f"{HERE}:{first + number}")}. {ADD} "add": None.'
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        function_at(model, Place(method, code.co_filename, ((None, position),)), node)


class OfTheClass(nn.Module):
    @classmethod
    def scaled(cls, x, y):
        return x * y

    def forward(self, x):
        return self.scaled(x, x)


def test_class_methods_are_refused(x):
    model = OfTheClass()
    node = record(model, [(x,)]).functions(["mul"])[0]
    line = inspect.getsourcelines(OfTheClass.scaled)[1] + 2
    message = (
        f"mul is computed by OfTheClass.scaled at {HERE}:{line}, a class method, which has no module at hand. Write "
        'a * b there, or self.mul = qnn.QuantFunction(torch.mul, ...) in the block, or "mul": None.'
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        interpose(model, [(node.place, "mul", node)])


def test_code_without_a_source_is_refused(x):
    names = {"nn": nn, "torch": torch, "__name__": "nowhere"}
    exec("class Net(nn.Module):\n    def forward(self, x):\n        return torch.softmax(x, -1)\n", names)
    model = names["Net"]()
    node = record(model, [(x,)]).functions(["softmax"])[0]
    with pytest.raises(
        GraphError,
        match=re.escape(
            "Net.forward has no source (defined in <string>), so softmax can't be given a quantizer. Define the class "
            "in a file, or write None for it."
        ),
    ):
        function_at(model, node.place, node)


def test_a_file_that_was_edited_since_it_was_imported_is_refused(x, blocks):
    module = blocks(MODULE)
    node = record(module.Block(), [(x,)]).functions(["add"])[0]
    with open(module.__file__, "w") as file:
        file.write("# A line more.\n" + MODULE)
    with pytest.raises(
        GraphError,
        match=re.escape(
            f"Block.forward has no source (no def at {module.__file__}:11, which may have been edited since it was "
            "imported), so add can't be given a quantizer. Define the class in a file, or write None for it."
        ),
    ):
        function_at(module.Block(), node.place, node)


def test_a_method_of_one_module_alone_is_refused(x):
    model = Operators()
    node = record(model, [(x,)]).functions(["add"])[0]
    model.forward = types.MethodType(Operators.forward, model)
    with pytest.raises(
        GraphError,
        match=re.escape(
            "add is computed in Operators.forward, and this module has a forward of its own, which hides that of its "
            'class. Write it in a subclass, or "add": None.'
        ),
    ):
        function_at(model, node.place, node)


def test_a_refusal_leaves_the_module_as_it_was(x):
    model = Operators()
    nodes = record(model, [(x,)]).functions(["add", "mul"])
    odd = copy.copy(nodes[1])
    odd.kind = "conv"
    with pytest.raises(GraphError):
        interpose(model, [(nodes[0].place, "add", nodes[0]), (odd.place, "mul", odd)])
    assert type(model) is Operators


def test_functions_at_the_places_are_those_that_are_written(x):
    found = {}
    for cls in (Operators, Functions, Methods, InPlace, OtherNames, Assignments):
        for name, node in sites(cls(), x)[""].items():
            found[cls.__name__, name] = function_at(cls(), node.place, node)
    assert found["Operators", "add"] is operator.add
    assert found["Operators", "sub"] is operator.sub
    assert found["Assignments", "add"] is operator.add  # a new tensor for the name
    assert found["Functions", "relu"] is F.relu
    assert found["Functions", "cat"] is torch.cat
    assert found["Methods", "softmax"] is Tensor.softmax
    assert found["InPlace", "add"] is Tensor.add_
    assert found["OtherNames", "gelu"] is F.gelu
