"""What a model computes, written down while it runs: modules and functions, who feeds whom, and where in the source."""

import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from ...nn.hadamard_transform import HadamardTransform
from ...nn.layer import QuantLayer
from ...qcore import TensorQuant
from ...qcore.models import require_model
from ..errors import GraphError
from .examples import calls_of
from .kinds import is_homogeneous, keeps_grid, name_of
from .merging import merge, name_sites
from .nodes import Graph, Node, Source
from .places import Place, Sources, caller_of, layers_of, methods_of
from .preserving import Preserved, evaluating
from .reached import Function, Ran, unreached, watching
from .tensors import named_tensors, overlap, range_of, storage_of, tensors_in, version_of, without_tensors

__all__ = ["Graph", "Node", "record"]


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
        GraphError: not a model, one with lazy layers that have no shape yet, or not examples.

    Example:
        >>> print(record(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2)))
        input: input()
        0: Linear(input)
        1: ReLU(0)
        output: output(1)
    """
    require_model("record", model, GraphError)
    _refuse_without_values(model)
    calls = calls_of(examples)
    with evaluating(model, tensors_in(calls)) as preserved:
        recorder = _Recorder(model, preserved)
        nodes: list[Node] = []
        for args, kwargs in calls:
            nodes = merge(nodes, recorder.forward(args, kwargs))
    return recorder.graph(nodes)


def _refuse_without_values(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if any(each.is_meta for each in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            raise GraphError(
                f"record: {path or 'the model'} ({type(module).__name__}) is on the meta device and has no values, so "
                "the model can't be run. Load it first, or leave examples out where that is possible."
            )
        if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
            raise GraphError(
                f"record: {path or 'the model'} is a {type(module).__name__} that has not seen data, so it has no "
                "weight. Run the model once before."
            )


_LAYERS = (
    *(QuantLayer, TensorQuant, HadamardTransform),
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.modules.conv._ConvNd),
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU),
    *(nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, torch.jit.ScriptModule, parametrize.ParametrizationList),
)
_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation in a graph: torch's layers, bitwright's, and subclasses of these."""
    if isinstance(module, _LAYERS):
        return True
    if isinstance(module, _HOLDERS) or next(module.children(), None) is not None:
        return False
    return any(base.__module__.startswith("torch.nn.") for base in type(module).__mro__ if base is not nn.Module)


class _Recorder(TorchFunctionMode):
    """What sees functions, as a mode, and modules, by hooks, while a model runs."""

    def __init__(self, model: nn.Module, preserved: Preserved) -> None:
        super().__init__()
        self._model = model
        self._preserved = preserved
        self._modules = dict(model.named_modules())
        self._paths = {id(module): path for path, module in self._modules.items()}
        self._constants = {id(each): [path] for path, each in [*model.named_parameters(), *model.named_buffers()]}
        for module in self._modules.values():  # tensors that are plain attributes
            self._constants |= {id(each): [] for each in vars(module).values() if isinstance(each, Tensor)}
        self._sources = Sources(lambda thing: id(thing) in self._paths)
        self._called: set[str] = set()
        self._ran: Ran = {}
        self._thread = threading.get_ident()
        self._start()

    def _start(self) -> None:
        self._nodes: list[Node] = []
        self._made: dict[int, tuple[weakref.ref[Tensor], Node, int]] = {}
        self._derived: dict[int, tuple[weakref.ref[Tensor], list[str]]] = {}  # from constants and parameters alone
        self._running: list[_Call] = []
        self._in_leaf = 0

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Node]:
        """The nodes of one forward."""
        self._start()
        for name, tensor in named_tensors((args, kwargs), "input"):
            known = self._made.get(id(tensor))
            self._add(Node(0, "input", None, name=name), [], [tensor])
            if known is not None:  # one tensor passed twice comes from the first
                self._made[id(tensor)] = known
        hooks = (
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, with_kwargs=True, always_call=True),
        )
        try:
            with watching(self._ran), self:
                out = self._model(*args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
                _global_forward_hooks_with_kwargs.pop(hook.id, None)  # torch leaves it, and warns when it compiles
        with torch._C.DisableTorchFunction():
            for name, tensor in named_tensors(out, "output"):
                self._add(Node(0, "output", None, name=name), [tensor], [])
        return self._nodes

    def graph(self, nodes: list[Node]) -> Graph:
        """The graph of nodes that have been merged."""
        name_sites(nodes, self._modules)
        for index, node in enumerate(nodes):
            node.index = index
        first = {path: self._paths[id(each)] for path, each in self._model.named_modules(remove_duplicate=False)}
        missing = unreached(self._ran, self._functions(nodes), self._sources)
        return Graph(nodes, frozenset(self._called), missing, first)

    def _functions(self, nodes: Iterable[Node]) -> dict[CodeType, Function]:
        """The methods of modules that were called, and the helper functions that operations were seen in."""
        found: dict[CodeType, Function] = {}
        called = [self._modules[path] for path in sorted(self._called)]
        for owner in dict.fromkeys(type(each) for each in called if not isinstance(each, HadamardTransform)):
            for base, name, attribute in methods_of(owner):
                for function in layers_of(attribute):
                    code = function.__code__
                    bound = isinstance(attribute, FunctionType) and code.co_argcount > 0
                    module = code.co_varnames[0] if bound else None
                    found.setdefault(code, Function(base, name, function.__globals__, module))
        for node in nodes:
            for helper, _ in () if node.place is None else node.place.chain:
                owner = type(self._modules[node.owner])
                for function in layers_of(helper):
                    found.setdefault(function.__code__, Function(owner, function.__name__, function.__globals__))
        return found

    # What torch calls

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            read = tensors_in((args, kwargs))
            if _may_write(func, kwargs):
                self._preserved.before_writing(read)
            versions = [] if self._in_leaf else [version_of(each) for each in read]
        out = func(*args, **kwargs)
        if not self._in_leaf:
            with torch._C.DisableTorchFunctionSubclass():
                written = [each for each, version in zip(read, versions, strict=True) if version_of(each) != version]
                if _may_write(func, kwargs):
                    written += [each for each in read[:1] if each.is_inference()]
                self._see(func, args, kwargs, read, out, written)
        return out

    def _see(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        read: list[Tensor],
        out: object,
        written: list[Tensor],
    ) -> None:
        made = tensors_in(out)
        made += [each for each in written if not any(each is other for other in made)]
        if not made:
            return
        if _is_new(func):
            self._derive(made, [])
            return
        if all(self._constant(each) is not None for each in read):
            self._derive(made, self._parameters(read))
            return
        if getattr(func, "__name__", "") == "__get__" and self._source(made[0]) is not None:  # x._base
            return
        owner, place = self._locate(sys._getframe(2))
        node = Node(0, name_of(func), func, owner, place=place, arguments=without_tensors((args, kwargs)))
        node.keeps_grid, node.homogeneous = keeps_grid(func, args, kwargs), is_homogeneous(func, args, kwargs)
        if node.kind == "to":
            node.keeps_grid = node.homogeneous = made[0].dtype is read[0].dtype
        self._add(node, read, made, written)

    def _before(self, module: nn.Module, args: object) -> None:
        if threading.get_ident() != self._thread or id(module) not in self._paths:
            return
        with torch._C.DisableTorchFunction():
            path = self._paths[id(module)]
            self._called.add(path)
            call = _Call(module, path, sys.exc_info()[1])
            if not self._in_leaf and self._running:
                call.owner, call.place = self._locate(caller_of(module, sys._getframe(1)))
            self._running.append(call)
            if self._in_leaf or is_leaf(module):
                self._in_leaf += 1
                call.versions = [(each, version_of(each)) for each in tensors_in(args)] if self._in_leaf == 1 else []

    def _after(self, module: nn.Module, args: object, *rest: object) -> None:
        """After forward: keyword arguments and the result. torch leaves the former out where forward has raised."""
        if threading.get_ident() != self._thread or id(module) not in self._paths:
            return
        call = self._running.pop()
        self._in_leaf = max(self._in_leaf - 1, 0)
        if self._in_leaf or not call.is_leaf or sys.exc_info()[1] is not call.handled:  # or its forward has raised
            return
        with torch._C.DisableTorchFunction():
            read, made = tensors_in((args, rest[:-1])), tensors_in(rest[-1])
            if isinstance(module, parametrize.ParametrizationList):
                self._derive(made, [f"{call.path}.{name}" for name, _ in module.named_parameters()])
                return
            kind = parametrize.type_before_parametrizations(module)
            node = Node(0, kind.__name__, kind, call.owner, call.path.rpartition(".")[2], call.path, call.place)
            node.keeps_grid, node.homogeneous = _module_traits(module, kind)
            written = [each for each, version in call.versions if version_of(each) != version]
            self._add(node, read, made, written)

    def _locate(self, frame: FrameType | None) -> tuple[str, Place | None]:
        module, place = self._sources.locate(frame)
        if module is None:
            return (self._running[-1].path if self._running else ""), place
        return self._paths[id(module)], place

    # Who made a tensor

    def _source(self, tensor: Tensor) -> Source | None:
        made = self._made.get(id(tensor))
        return None if made is None or made[0]() is not tensor else (made[1], made[2])

    def _derive(self, made: Iterable[Tensor], paths: list[str]) -> None:
        for each in made:
            if id(each) not in self._constants:
                self._derived[id(each)] = weakref.ref(each), paths

    def _constant(self, tensor: Tensor) -> list[str] | None:
        """The parameters that a constant comes from; None for what a node made, and for what came from nowhere."""
        if self._source(tensor) is not None:
            return None
        derived = self._derived.get(id(tensor))
        return derived[1] if derived is not None and derived[0]() is tensor else self._constants.get(id(tensor))

    def _parameters(self, tensors: Iterable[Tensor]) -> list[str]:
        return list(dict.fromkeys(path for each in tensors for path in self._constant(each) or ()))

    def _add(self, node: Node, read: list[Tensor], made: list[Tensor], written: Iterable[Tensor] = ()) -> None:
        node.inputs = [self._source(each) for each in read]
        node.parameters = self._parameters(read)
        for source in node.inputs:
            if source is not None and node not in source[0].users:
                source[0].users.append(node)
        for each in written:
            self._touch(each, node, len(made))
        for number, tensor in reversed(list(enumerate(made))):
            self._made[id(tensor)] = weakref.ref(tensor), node, number
        for tensor in made[:1] or read[:1]:
            node.shape = tuple(tensor.shape)
            node.low, node.high = range_of(tensor)
        self._nodes.append(node)

    def _touch(self, written: Tensor, node: Node, number: int) -> None:
        """Other views of memory that a node has written to come from that node, too."""
        storage = storage_of(written)
        if storage is None:
            return
        for key, (reference, _, _) in list(self._made.items()):
            other = reference()
            if other is None:
                del self._made[key]
            elif other is not written and storage_of(other) == storage and overlap(written, other):
                self._made[key] = reference, node, number


class _Call:
    """A module that is running."""

    def __init__(self, module: nn.Module, path: str, handled: BaseException | None) -> None:
        self.path = path
        self.handled = handled  # the exception that was being handled before
        self.owner = ""
        self.place: Place | None = None
        self.is_leaf = is_leaf(module)
        self.versions: list[tuple[Tensor, int]] = []


def _is_new(func: Callable[..., Any]) -> bool:
    """Whether the result has only the shape or the dtype of an argument, such as that of torch.zeros_like."""
    name = getattr(func, "__name__", "")
    return name.endswith("_like") or (name.startswith("new_") and name != "new_tensor")


def _may_write(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    return (
        (name[-1:] == "_" and name[-2:] != "__")
        or name in _WRITING
        or kwargs.get("out") is not None
        or bool(kwargs.get("inplace"))
    )


_WRITING = frozenset({"__setitem__", "__set__", *(name for name in vars(torch._C.TensorBase) if name[:3] == "__i")})


def _module_traits(module: nn.Module, kind: type[nn.Module]) -> tuple[bool, bool]:
    """Whether a layer keeps the grid of its input, and whether it is homogeneous, with its settings."""
    settings = {name: getattr(module, name) for name in ("mode", "value") if hasattr(module, name)}
    if isinstance(module, nn.modules.dropout._DropoutNd):
        settings["training"] = False
    if isinstance(module, (nn.modules.padding._ReflectionPadNd, nn.modules.padding._ReplicationPadNd)):
        settings["mode"] = "reflect"
    return keeps_grid(kind, (), settings), is_homogeneous(kind, (), settings)
