"""What a model computes, written down while it runs: modules and functions, who feeds whom, and where in the source."""

import dataclasses
import math
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from ...nn.layer import QuantLayer
from ...qcore import TensorQuant
from ...qcore.models import require_model
from ..errors import GraphError
from .examples import calls_of
from .kinds import is_homogeneous, keeps_grid, name_of
from .places import Place, Sources

__all__ = ["Graph", "Node", "record"]


@dataclass(eq=False)
class Node:
    """One operation of a model: a call of a layer or of a function, an input, or an output.

    Attributes:
        index: its place in the graph.
        kind: what it computes: the kind of a function ("add", see `bitwright.graph.recording.kinds`), or its own name
            where no kind is known; the name of a module's class ("Conv2d"); "input" or "output".
        function: the function that was called, or the module's class.
        owner: the path of the module whose code makes the call.
        name: the last part of the path. Functions are sites named by their kind; the second place in the source of the
            owner has "_2". Where the owner has an attribute of such a name, they are "add_site", "add_site_2".
        module: the path of the layer that is called, None for a function.
        place: where the call is written, None if that is not known.
        inputs: the node and its output that each tensor comes from, in the order of arguments; None for a tensor that
            does not depend on the inputs of the model.
        users: the nodes that read an output of this one.
        parameters: the paths of the parameters and buffers that are, or went into, an argument.
        shape: of the first output, in the first example.
        low: the smallest value of the first output, over all examples; NaN where there is none.
        high: the largest.
        keeps_grid: whether every value of the output is one of the first input, or zero.
        homogeneous: whether it carries over positive scales of channels.
        alternatives: lists like ``inputs``, from examples in which the tensors came from elsewhere.
    """

    index: int
    kind: str
    function: Callable[..., Any] | None
    owner: str = ""
    name: str = ""
    module: str | None = None
    place: Place | None = None
    inputs: list["tuple[Node, int] | None"] = field(default_factory=list)
    users: list["Node"] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    low: float = math.nan
    high: float = math.nan
    keeps_grid: bool = False
    homogeneous: bool = False
    alternatives: list[list["tuple[Node, int] | None"]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The path of the layer, or that of the site: "layer1.0.conv1", "layer1.0.add"."""
        if self.module is not None:
            return self.module
        return f"{self.owner}.{self.name}" if self.owner else self.name

    def __repr__(self) -> str:
        read = ", ".join("-" if each is None else _shown(each) for each in self.inputs)
        where = "" if self.place is None or self.module is not None else f"  {self.place}"
        return f"{self.path}: {self.kind}({read}){where}"


def _shown(source: tuple[Node, int]) -> str:
    node, output = source
    return f"{node.path}[{output}]" if output else node.path


@dataclass
class Graph:
    """What a model computed on examples.

    Attributes:
        nodes: all operations, each behind those that it reads.
        called: the paths of all modules that were called, layers and what holds them.
        unreached: functions of a known kind in the source of the methods that ran, which no example reached: the class
            of the owner, the method, the kind, and file and line.
    """

    nodes: list[Node]
    called: frozenset[str] = frozenset()
    unreached: list[tuple[type, str, str, str]] = field(default_factory=list)
    _first_paths: dict[str, str] = field(default_factory=dict, repr=False)

    def functions(self, kinds: Collection[str] | None = None) -> list[Node]:
        """The calls of functions, or those of some kinds only."""
        calls = [each for each in self.nodes if each.module is None and each.function is not None]
        return calls if kinds is None else [each for each in calls if each.kind in kinds]

    def calls(self, module: str) -> list[Node]:
        """The calls of a layer; a layer at several paths goes by any of them."""
        first = self._first_paths.get(module, module)
        return [each for each in self.nodes if each.module == first]

    def node(self, path: str) -> Node:
        """The first node of a path.

        Raises:
            GraphError: there is none.
        """
        first = self._first_paths.get(path, path)
        found = [each for each in self.nodes if each.path == first]
        if not found:
            raise GraphError(f"graph: no node has the path {path!r}. print(graph) shows all {len(self.nodes)} of them.")
        return max(found, key=lambda each: each.function is not None and -each.index)

    def __str__(self) -> str:
        return "\n".join(map(repr, self.nodes))


def record(model: nn.Module, examples: object) -> Graph:
    """Run a model on examples and write down what it computes.

    It runs in evaluation mode and without gradients, and is left exactly as it was: its state, the training flag of
    every module, its hooks and attributes, and the state of random generators.

    Args:
        model: any module.
        examples: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of any of these, one
            for each forward. Several go into one graph: a call that is made from the same place is one node.

    Returns:
        The graph.

    Raises:
        GraphError: not a model, or not examples.

    Example:
        >>> print(record(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2)))
        input: input()
        0: Linear(input)
        1: ReLU(0)
        output: output(1)
    """
    require_model("record", model, GraphError)
    calls = calls_of(examples)
    recorder = _Recorder(model)
    with recorder.undisturbed(calls):
        for args, kwargs in calls:
            recorder.run(args, kwargs)
    return recorder.graph()


_LAYERS = (
    *(QuantLayer, TensorQuant, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd),
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, torch.jit.ScriptModule),
)
_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _is_leaf(module: nn.Module) -> bool:
    if isinstance(module, _LAYERS):
        return True
    if isinstance(module, _HOLDERS) or any(True for _ in module.children()):
        return False
    return any(base.__module__.startswith("torch.nn.") for base in type(module).__mro__ if base is not nn.Module)


Made = tuple["weakref.ref[Tensor]", Node, int]


class _Recorder(TorchFunctionMode):
    """The mode that sees functions, and what the hooks of modules call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.constants = {id(each): [path] for path, each in [*model.named_parameters(), *model.named_buffers()]}
        self.sources = Sources(lambda thing: isinstance(thing, nn.Module) and id(thing) in self.paths)
        self.nodes: list[Node] = []
        self.called: set[str] = set()
        self.owners: dict[str, nn.Module] = {path: module for path, module in model.named_modules()}
        self._start()

    def _start(self) -> None:
        self.thread = threading.get_ident()
        self.new: list[Node] = []
        self.made: dict[int, Made] = {}
        self.derived: dict[int, tuple[weakref.ref[Tensor], list[str]]] = {}
        self.stack: list[tuple[nn.Module, BaseException | None]] = []
        self.leaves = 0
        self.callers: list[tuple[str, Place | None]] = []

    # One forward

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record one forward and merge it with those before."""
        self._start()
        for name, tensor in _named_tensors((args, kwargs), "input"):
            node = Node(0, "input", None, name=name)
            if self._source(tensor) is None:
                self._emit(node, [], [tensor])
        hooks = (
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        )
        try:
            with self:
                out = self.model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        with torch._C.DisableTorchFunction():
            for name, tensor in _named_tensors(out, "output"):
                self._emit(Node(0, "output", None, name=name), [tensor], [])
        self._merge()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.leaves or threading.get_ident() != self.thread:
            return func(*args, **kwargs)
        read = list(_tensors((args, kwargs)))
        versions = [_version(each) for each in read]
        out = func(*args, **kwargs)
        made = list(_tensors(out))
        written = [each for each, version in zip(read, versions, strict=True) if _version(each) != version]
        made += [each for each in written if not _contains(made, each)]
        if not read or not made:
            return out
        if all(self._source(each) is None for each in read):  # computed from constants and parameters alone
            paths = self._parameters(read)
            for each in made:
                if paths and id(each) not in self.constants:
                    self.derived[id(each)] = weakref.ref(each), paths
            return out
        owner, place = self._locate(2)
        node = Node(0, name_of(func), func, owner, place=place)
        node.keeps_grid, node.homogeneous = keeps_grid(func, args, kwargs), is_homogeneous(func, args, kwargs)
        self._emit(node, read, made, written)
        return out

    def _before(self, module: nn.Module, args: object) -> None:
        if threading.get_ident() != self.thread or id(module) not in self.paths:
            return
        self.called.add(self.paths[id(module)])
        if not self.leaves:
            self.callers.append(self._locate(2) if self.stack else ("", None))
        self.stack.append((module, sys.exc_info()[1]))
        if self.leaves or _is_leaf(module):
            self.leaves += 1

    def _after(self, module: nn.Module, args: object, kwargs: object, out: object) -> None:
        if threading.get_ident() != self.thread or id(module) not in self.paths:
            return
        _, before = self.stack.pop()
        if self.leaves > 1:
            self.leaves -= 1
            return
        owner, place = self.callers.pop()
        if not self.leaves:
            return
        self.leaves = 0
        if sys.exc_info()[1] is not before:  # its forward has raised
            return
        with torch._C.DisableTorchFunction():
            kind = parametrize.type_before_parametrizations(module)
            path = self.paths[id(module)]
            node = Node(0, kind.__name__, kind, owner, path.rpartition(".")[2], path, place)
            node.keeps_grid, node.homogeneous = keeps_grid(kind), is_homogeneous(kind)
            self._emit(node, list(_tensors((args, kwargs))), list(_tensors(out)))

    def _locate(self, depth: int) -> tuple[str, Place | None]:
        module, place = self.sources.locate(sys._getframe(depth))
        if module is None:
            module = self.stack[-1][0] if self.stack else self.model
        return self.paths[id(module)], place

    # Who made a tensor

    def _source(self, tensor: Tensor) -> tuple[Node, int] | None:
        found = self.made.get(id(tensor))
        return None if found is None or found[0]() is not tensor else found[1:]

    def _parameters(self, tensors: Iterable[Tensor]) -> list[str]:
        paths: list[str] = []
        for each in tensors:
            derived = self.derived.get(id(each))
            if derived is not None and derived[0]() is each:
                paths += derived[1]
            else:
                paths += self.constants.get(id(each), [])
        return list(dict.fromkeys(paths))

    def _emit(self, node: Node, read: list[Tensor], made: list[Tensor], written: list[Tensor] | None = None) -> None:
        node.inputs = [self._source(each) for each in read]
        node.parameters = self._parameters(read)
        for source in node.inputs:
            if source is not None and node not in source[0].users:
                source[0].users.append(node)
        for number, tensor in enumerate(made):
            self.made[id(tensor)] = weakref.ref(tensor), node, number
        if made:
            node.shape = tuple(made[0].shape)
            node.low, node.high = _range(made[0])
        elif read:
            node.shape = tuple(read[0].shape)
            node.low, node.high = _range(read[0])
        self.new.append(node)

    # All forwards

    def _merge(self) -> None:
        self.nodes = self.new

    def undisturbed(self, calls: object) -> ExitStack:
        """Evaluation without gradients, and everything as it was afterwards."""
        stack = ExitStack()
        modes = [(each, each.training) for each in self.model.modules()]

        def restore() -> None:
            for module, mode in modes:
                module.training = mode

        stack.callback(restore)
        for module, _ in modes:
            module.training = False
        stack.enter_context(torch.no_grad())
        return stack

    def graph(self) -> Graph:
        """The graph of all forwards."""
        self._name_sites()
        for index, node in enumerate(self.nodes):
            node.index = index
        paths = {path: self.paths[id(each)] for path, each in self.model.named_modules(remove_duplicate=False)}
        return Graph(self.nodes, frozenset(self.called), [], paths)

    def _name_sites(self) -> None:
        """Names of functions: by kind, numbered as they are written; one place that runs twice has one name."""
        groups: dict[tuple[str, str], list[Node]] = {}
        for node in self.nodes:
            if node.module is None and node.function is not None:
                groups.setdefault((node.owner, node.kind), []).append(node)
        for (owner, kind), nodes in groups.items():
            places = {node.place.key: node.place for node in nodes if node.place is not None}
            order = sorted(places, key=lambda key: places[key].order)
            names = self._names(self.owners[owner], kind, len(order) + 1)
            for node in nodes:
                node.name = names[len(order) if node.place is None else order.index(node.place.key)]

    def _names(self, owner: nn.Module, kind: str, count: int) -> list[str]:
        base = kind
        while True:
            names = [base, *(f"{base}_{number}" for number in range(2, count + 1))]
            if not any(hasattr(owner, name) for name in names):
                return names
            base += "_site"


def _range(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN if there is none."""
    with torch._C.DisableTorchFunction():
        if not tensor.numel() or tensor.is_complex() or tensor.dtype is torch.bool or tensor.is_meta:
            return math.nan, math.nan
        low, high = torch.aminmax(tensor.detach())
        return float(low), float(high)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _contains(tensors: Iterable[Tensor], tensor: Tensor) -> bool:
    return any(each is tensor for each in tensors)


def _tensors(value: object) -> Iterator[Tensor]:
    for _, tensor in _keyed_tensors(value, None):
        yield tensor


def _named_tensors(value: object, name: str) -> list[tuple[str, Tensor]]:
    """Tensors by the key that leads to them, or by a common name, numbered where it is taken."""
    found: dict[str, Tensor] = {}
    for key, tensor in _keyed_tensors(value, None):
        base = name if key is None else key
        number = 1
        while (unique := base if number == 1 else f"{base}_{number}") in found:
            number += 1
        found[unique] = tensor
    return list(found.items())


def _keyed_tensors(value: object, key: str | None) -> Iterator[tuple[str | None, Tensor]]:
    """The tensors in tuples, lists, dicts and dataclasses, and the last string key on the way."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _keyed_tensors(each, inner if isinstance(inner, str) else key)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _keyed_tensors(each, key)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from _keyed_tensors(getattr(value, each.name, None), each.name)
