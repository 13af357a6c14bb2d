"""Regions of a model in which the scale of a channel is free: what equalization and smoothing may choose.

Where one layer writes a tensor and another reads it, a channel may be divided by any positive number on one side and
multiplied by it on the other, if all that lies between passes the scale on. Residual sums and concatenations join the
channels of several writers and readers: a region is what a channel's scale reaches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..recording.kinds import kind_of
from ..recording.nodes import Graph, Node
from .ownership import Ownership, channel_axis
from .scales import Classes, Scales, distinct, moved

__all__ = ["Region", "Regions"]

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _BatchNorm)
NORM_FORWARDS = {norm.forward for norm in NORMS}


@dataclass(frozen=True)
class Region:
    """Channels that the same layers write and the same layers read.

    Attributes:
        sources: paths of the layers, norms and gains that write them.
        sinks: paths of the layers that read them.
        classes: the numbers of their scales.
    """

    sources: tuple[str, ...]
    sinks: tuple[str, ...]
    classes: Tensor


class Regions:
    """The free scales of a recorded model.

    Args:
        graph: the recording.
        model: the recorded model.
        relu6: scales pass through modules of type ``nn.ReLU6``; the caller replaces them by ReLUs.
        norms: norms, and functions that multiply by a parameter, write tensors too.

    Attributes:
        sources: for the path of each layer that writes channels the numbers of their scales, one a channel. The
            path of a gain is the parameter's.
        sinks: the same for the layers that read channels.
        layers: the layers of ``sinks``, by path.
        relu6: the calls of ReLU6 that scales pass through, with the numbers of the scales there.

    Example:
        >>> from bitwright.graph.recording.recorder import record
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> regions = Regions(record(model, torch.randn(1, 3, 8, 8)), model)
        >>> [(region.sources, region.sinks, len(region.classes)) for region in regions.free()]
        [(('0',), ('2',), 4)]
        >>> regions.why_held("2")
        'the model returns its output'
    """

    def __init__(self, graph: Graph, model: nn.Module, *, relu6: bool = False, norms: bool = False) -> None:
        self.graph = graph
        self.modules = dict(model.named_modules())
        self.parameters = dict(model.named_parameters())
        self.ownership = Ownership(graph, model)
        self._through_relu6, self._norms = relu6, norms
        self._scales = Scales()
        self._ids: dict[Node, Tensor] = {}  # of first outputs
        self._written: dict[str, Tensor] = {}
        self._read: dict[str, Tensor] = {}
        self._relu6: list[tuple[Node, Tensor]] = []
        self._fixed: dict[str, str] = {}  # layers whose scales are held, and why
        self._held: list[tuple[Node, str]] = []  # nodes whose output has no scales, and why
        for node in graph.nodes:
            self._ids[node] = self._visit(node)
        self._hold()
        self.classes: Classes = self._scales.classes()
        self.sources = {path: self.classes.of(ids) for path, ids in self._written.items()}
        self.sinks = {path: self.classes.of(ids) for path, ids in self._read.items()}
        self.layers = {
            path: layer for path in self.sinks if isinstance(layer := self.modules[path], (nn.Linear, _ConvNd))
        }
        self.relu6 = [(node, self.classes.of(distinct(ids))) for node, ids in self._relu6]

    def free(self) -> list[Region]:
        """The regions with sources and sinks, in the order of their first sources."""
        members: dict[int, tuple[list[str], list[str]]] = {}
        for number, held in enumerate((self.sources, self.sinks)):
            for path, classes in held.items():
                for each in classes.unique().tolist():
                    members.setdefault(each, ([], []))[number].append(path)
        groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
        for each, (sources, sinks) in members.items():
            if sources and sinks and self.classes.why_held(each) is None:
                groups.setdefault((tuple(sources), tuple(sinks)), []).append(each)
        return [Region(*paths, torch.tensor(sorted(numbers))) for paths, numbers in groups.items()]

    def why_held(self, path: str) -> str | None:
        """Why the scales of what a layer writes are held, those of some channel at least; None if they are not."""
        for each in self.sources[path].unique().tolist():
            why = self.classes.why_held(each)
            if why is not None:
                return why
        if not set(self.sources[path].tolist()) & {each for read in self.sinks.values() for each in read.tolist()}:
            return "no convolution or linear layer reads its output"
        return None

    def within(self, region: Region) -> list[Node]:
        """What passes the scales of a region on: all operations with these scales but the layers that write them."""
        return self.nodes_with(region.classes)

    def nodes_with(self, classes: Tensor) -> list[Node]:
        """All operations with some scales but the layers that write them."""
        nodes = [node for node in self.graph.nodes if node.module not in self.layers]
        return [node for node in nodes if bool(torch.isin(self._classes_at[node], classes).any())]

    @cached_property
    def _classes_at(self) -> dict[Node, Tensor]:
        """The scales that the first output of each node has."""
        return {node: self.classes.of(distinct(ids)) for node, ids in self._ids.items()}

    # The rules, by what a node computes

    def _visit(self, node: Node) -> Tensor:
        module = self.modules.get(node.module) if node.module is not None else None
        if node.alternatives or 0 in node.shape:  # read from elsewhere in other examples, or nothing to follow
            ids = None
        elif isinstance(module, (nn.Linear, _ConvNd)):
            ids = self._layer(node, module)
        elif isinstance(module, NORMS) and self._norms:
            ids = self._norm(node, module)
        else:
            rule = RULES.get(kind_of(node.function) or node.kind)
            ids = None if rule is None else rule(self, node)
        return self._unknown(node) if ids is None else ids

    def of(self, node: Node, number: int = 0) -> Tensor | None:
        """The ids of an input of a node; None if it is a constant, or not the first output of its node."""
        edge = node.inputs[number] if number < len(node.inputs) else None
        if edge is None or edge[1] != 0:
            return None
        ids = self._ids[edge[0]]
        return ids if ids.ndim or not edge[0].shape else None

    def _unknown(self, node: Node) -> Tensor:
        """What does not pass scales on: its inputs have none, nor has its result."""
        if isinstance(self.modules.get(node.module or ""), (nn.Linear, _ConvNd)):
            self._fixed.setdefault(node.path, "examples differ in what it reads")
        return self._held_at(node, self._reaches(node))

    def _held_at(self, node: Node, why: str) -> Tensor:
        self._held += [(source, why) for source, _ in node.sources]
        return self._scales.fixed(node.shape, f"its output meets {node.path} ({node.kind})")

    def _hold(self) -> None:
        """Hold what was found to have no scales, once all ids are known."""
        for node, why in self._held:
            self._scales.hold(self._ids[node], why)
        for path, why in self._fixed.items():
            for noted in (self._written, self._read):
                if path in noted:
                    self._scales.hold(noted[path], why)
            if path not in self._written:
                self._written[path] = self._scales.fixed((1,), why)

    def _reaches(self, node: Node) -> str:
        if node.kind == "output":
            return "the model returns its output"
        hint = ""
        if kind_of(node.function) == "relu6":
            hint = '; pass relu6="replace" to have a ReLU there' if node.module is not None else ""
        if kind_of(node.function) == "batch_norm" and any(each.module in self._read for each, _ in node.sources):
            hint = "; call fold_batch_norms first"
        return f"its output reaches {node.path} ({node.kind}){hint}"

    def _layer(self, node: Node, layer: nn.Linear | _ConvNd) -> Tensor:
        path = node.module
        assert path is not None
        why_not, read = self.ownership.why_not(path), self.of(node)
        if why_not is not None or read is None or not node.shape:
            why_not = why_not or "reads a part of what another layer writes"
            self._fixed.setdefault(path, f"it {why_not}")
            return self._held_at(node, f"its output reaches {path}, which {why_not}")
        axis = channel_axis(layer, read.ndim)
        self._note(self._read, path, self._channels(read, axis))
        axis = channel_axis(layer, len(node.shape))
        written = self._scales.channels(node.shape, axis)
        self._note(self._written, path, self._channels(written, axis))
        return written

    def _norm(self, node: Node, module: nn.Module) -> Tensor | None:
        path = node.module
        assert path is not None
        read = self.of(node)
        if read is not None:
            self._scales.hold(read, self._reaches(node))
        weight = module._parameters.get("weight")
        last = isinstance(module, (nn.LayerNorm, nn.RMSNorm))
        owned = weight is not None and weight.ndim == 1 and self.ownership.owns(path)
        if not owned or type(module).forward not in NORM_FORWARDS or not node.shape:
            return self._unknown(node)
        axis = len(node.shape) - 1 if last else 1
        written = self._scales.channels(node.shape, axis)
        self._note(self._written, path, self._channels(written, axis))
        return written

    def _channels(self, ids: Tensor, axis: int) -> Tensor:
        """The ids of a tensor's channels, which are the same all along the other dimensions."""
        return self._scales.link_along(ids, tuple(dim for dim in range(ids.ndim) if dim != axis)).flatten()

    def _note(self, held: dict[str, Tensor], path: str, ids: Tensor) -> None:
        """What a layer writes or reads; the same scales at each of its calls."""
        if path in held:
            self._scales.link(held[path], ids)
        held.setdefault(path, ids)

    # What passes scales on

    def _same(self, node: Node) -> Tensor | None:
        ids = self.of(node)
        return ids if ids is not None and ids.shape == node.shape and len(node.inputs) == 1 else None

    def _prelu(self, node: Node) -> Tensor | None:
        ids = self.of(node)
        return ids if ids is not None and ids.shape == node.shape else None

    def _relu6_call(self, node: Node) -> Tensor | None:
        ids = self._same(node)
        if ids is None or not self._through_relu6 or type(self.modules.get(node.module or "")) is not nn.ReLU6:
            return None
        self._relu6.append((node, ids))
        return ids

    def _spatial(self, node: Node) -> Tensor | None:
        """Pooling, resizing and padding: channels are dimension 1, and what lies behind is mixed."""
        ids = self.of(node)
        if ids is None or ids.ndim < 3 or ids.ndim != len(node.shape) or ids.shape[:2] != node.shape[:2]:
            return None
        return self._scales.link_along(ids, tuple(range(2, ids.ndim))).expand(node.shape)

    def _pad(self, node: Node) -> Tensor | None:
        zero = node.homogeneous if node.module is None else not getattr(self.modules[node.module], "value", 0)
        return self._spatial(node) if zero else None

    def _reduction(self, node: Node) -> Tensor | None:
        ids = self.of(node)
        if ids is None or len(node.inputs) != 1:
            return None
        readings: list[tuple[int, ...]] = []
        for size in range(1, ids.ndim + 1):
            for dims in combinations(range(ids.ndim), size):
                dropped = tuple(each for dim, each in enumerate(ids.shape) if dim not in dims)
                kept = tuple(1 if dim in dims else each for dim, each in enumerate(ids.shape))
                if node.shape in (dropped, kept):
                    readings.append(dims)
        if len(readings) != 1:
            return self._scales.link_all(ids, node.shape)
        return self._scales.link_along(ids, readings[0]).reshape(node.shape)

    def _reshape(self, node: Node) -> Tensor | None:
        ids = self.of(node)
        if ids is None or ids.numel() != prod(node.shape):
            return None
        if ids.ndim and node.shape and ids.shape[0] == node.shape[0] and not ids.stride(0):  # a batch is only repeated
            return ids[:1].reshape(1, *node.shape[1:]).expand(node.shape)
        return ids.reshape(node.shape)

    def _permute(self, node: Node) -> Tensor | None:
        """Which permutation it was is read off the shapes; where several fit, the whole tensor has one scale."""
        ids = self.of(node)
        if ids is None or ids.ndim != len(node.shape):
            return None
        orders = [order for order in permutations(range(ids.ndim)) if ids.permute(order).shape == node.shape]
        if _name(node) not in ("permute", "movedim", "moveaxis"):  # two dimensions change places
            orders = [order for order in orders if sum(at != dim for at, dim in enumerate(order)) in (0, 2)]
        moved = [order for order in orders if order != tuple(range(ids.ndim))] or orders
        results = [ids.permute(order) for order in moved]
        if not results:
            return None
        if all(torch.equal(results[0], other) for other in results[1:]):
            return results[0]
        return self._scales.link_all(ids, node.shape)

    def _getitem(self, node: Node) -> Tensor | None:
        """Parts along dimensions that scales are the same along; of others, the whole tensor has one scale."""
        ids = self.of(node)
        if ids is None or len(node.inputs) != 1:
            return None
        if ids.ndim == len(node.shape):
            differ = [dim for dim in range(ids.ndim) if ids.shape[dim] != node.shape[dim]]
            if any(ids.stride(dim) and ids.shape[dim] > 1 for dim in differ):
                return self._scales.link_all(ids, node.shape)
            return self._scales.link_along(ids, tuple(differ)).expand(node.shape)
        return self._reduction(node) if len(node.shape) < ids.ndim else self._reshape(node)

    def _mixed(self, node: Node) -> Tensor | None:
        """Values that are moved about in ways that shapes don't tell: the whole tensor has one scale."""
        ids = self.of(node)
        return self._scales.link_all(ids, node.shape) if ids is not None and len(node.inputs) == 1 else None

    def _expand(self, node: Node) -> Tensor | None:
        ids, name = self.of(node), _name(node)
        if ids is None or len(node.shape) < ids.ndim:
            return None
        if name in ("expand", "expand_as", "broadcast_to"):
            return ids.expand(node.shape)
        ids = ids.reshape((1,) * (len(node.shape) - ids.ndim) + tuple(ids.shape))
        times = [after // before for before, after in zip(ids.shape, node.shape, strict=True)]
        if [before * time for before, time in zip(ids.shape, times, strict=True)] != list(node.shape):
            return None
        dims = tuple(dim for dim, time in enumerate(times) if time != 1)
        if name in ("repeat", "tile"):
            return moved(ids, lambda part: part.repeat(times), dims, node.shape)
        if len(dims) != 1:
            return None
        return moved(ids, lambda part: part.repeat_interleave(times[dims[0]], dims[0]), dims, node.shape)

    def _cat(self, node: Node) -> Tensor | None:
        parts = [self.of(node, number) for number in range(len(node.inputs))]
        known = [part for part in parts if part is not None]
        if not known or len(known) != len(parts) or any(part.ndim != len(node.shape) for part in known):
            return None
        for axis in range(len(node.shape)):
            shapes = {(*part.shape[:axis], *part.shape[axis + 1 :]) for part in known}
            size = sum(part.shape[axis] for part in known)
            if shapes == {(*node.shape[:axis], *node.shape[axis + 1 :])} and size == node.shape[axis]:
                return _joined(known, axis).expand(node.shape)
        return None

    def _sum(self, node: Node) -> Tensor | None:
        one, other = self.of(node), self.of(node, 1)
        if one is None or other is None or len(node.inputs) != 2:
            return None
        self._scales.link(one.expand(node.shape), other.expand(node.shape))
        return one.expand(node.shape)

    def _product(self, node: Node) -> Tensor | None:
        """A product with a constant, or with what has no scale of its own, as a gate."""
        factors = [self.of(node, number) for number, edge in enumerate(node.inputs) if edge is not None]
        known = [ids for ids in factors if ids is not None]
        if len(known) != len(factors) or (kind_of(node.function) == "div" and not self._divides_first(node)):
            return None
        if len(known) == 1:
            return self._gain(node, known[0]) if node.parameters and self._norms else self._broadcast(node, known[0])
        free = [ids for ids in known if not self._scales.holds(ids)]
        if len(known) != 2 or len(free) != 1 or (kind_of(node.function) == "div" and free[0] is not known[0]):
            return None
        return self._broadcast(node, free[0])

    def _divides_first(self, node: Node) -> bool:
        return bool(node.inputs) and node.inputs[0] is not None and _name(node) not in ("__rtruediv__", "__rdiv__")

    def _broadcast(self, node: Node, ids: Tensor) -> Tensor | None:
        return ids.expand(node.shape) if ids.numel() and ids.ndim <= len(node.shape) else None

    def _gain(self, node: Node, ids: Tensor) -> Tensor | None:
        """A product with a parameter, as a norm written by hand ends in: it writes channels."""
        gain = self.parameters.get(node.parameters[0])
        if gain is None or len(node.parameters) != 1 or not self.ownership.is_gain(node, gain):
            return self._broadcast(node, ids)
        self._scales.hold(ids, self._reaches(node))
        written = self._scales.channels(node.shape, len(node.shape) - 1)
        self._note(self._written, node.parameters[0], self._channels(written, len(node.shape) - 1))
        return written

    def _matmul(self, node: Node) -> Tensor | None:
        """The columns of the second matrix keep their scales; the first has none of its own."""
        left, right = self.of(node), self.of(node, 1)
        if left is None or right is None or right.ndim < 2 or left.ndim < 2 or _name(node) == "einsum":
            return None
        self._scales.hold(left, self._reaches(node))
        return self._scales.link_along(right, (right.ndim - 2,)).expand(node.shape)

    def _attention(self, node: Node) -> Tensor | None:
        """The values keep their scales; queries, keys and the mask have none."""
        values = self.of(node, 2)
        if values is None or values.ndim != len(node.shape) or values.ndim < 3:
            return None
        for number, edge in enumerate(node.inputs):
            if edge is not None and number != 2:
                self._held.append((edge[0], self._reaches(node)))
        values = self._scales.link_along(values, (values.ndim - 2,))
        heads, groups = node.shape[-3], values.shape[-3]
        if heads != groups:
            dims, shape = (values.ndim - 3,), (*values.shape[:-3], heads, *values.shape[-2:])
            values = moved(values, lambda part: part.repeat_interleave(heads // groups, dims[0]), dims, shape)
        return values.expand(node.shape)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """A concatenation, without the repetitions that all parts have along other dimensions."""
    for dim in range(parts[0].ndim):
        if dim != axis and not any(part.stride(dim) for part in parts):
            parts = [part.narrow(dim, 0, 1) for part in parts]
    return torch.cat(parts, axis)


def _name(node: Node) -> str:
    return getattr(node.function, "__name__", "")


Rule: TypeAlias = Callable[[Regions, Node], Tensor | None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(("relu", "leaky_relu", "dropout", "identity", "contiguous"), Regions._same),
    **dict.fromkeys(("to", "type", "type_as", "float", "double", "half", "bfloat16"), Regions._same),
    "prelu": Regions._prelu,
    "relu6": Regions._relu6_call,
    **dict.fromkeys(("avg_pool", "max_pool", "interpolate"), Regions._spatial),
    "pad": Regions._pad,
    **dict.fromkeys(("mean", "sum"), Regions._reduction),
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze"), Regions._reshape),
    "permute": Regions._permute,
    "getitem": Regions._getitem,
    **dict.fromkeys(("select", "chunk", "split", "flip", "pixel_shuffle"), Regions._mixed),
    "expand": Regions._expand,
    "cat": Regions._cat,
    **dict.fromkeys(("add", "sub"), Regions._sum),
    **dict.fromkeys(("mul", "div"), Regions._product),
    "matmul": Regions._matmul,
    "attention": Regions._attention,
}
