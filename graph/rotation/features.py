"""The operations that features pass in a model: which layers write and read them, and which functions keep them."""

from collections.abc import Callable
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..recording.kinds import kind_of
from ..recording.nodes import Node
from ..recording.tensors import TENSOR
from .following import Following
from .norms import Norm
from .parts import Matrix, Reading, Value, Writing, repeated, turns

__all__ = ["Features"]


class Features(Following):
    """The features of a recorded model.

    Args:
        graph: the recording.
        model: the model.

    Example:
        >>> from bitwright.graph import record
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.RMSNorm(4), nn.Linear(4, 2))
        >>> features = Features(record(model, torch.ones(1, 2)), model)
        >>> [each.layer for each in features.writings], [each.matrix.layer for each in features.readings]
        (['0', '0', '2', '2'], ['2'])
    """

    def _passes(self, node: Node, reads: bool) -> bool:
        module = self.modules.get(node.module) if node.module is not None else None
        if module is not None:
            rule = next((rule for kind, rule in _LAYERS.items() if isinstance(module, kind)), None)
        else:
            rule = _FUNCTIONS.get(kind_of(node.function) or node.kind)
        if rule is None:
            return False
        return not (reads or rule in _SOURCES) or rule(self, node)

    # Layers

    def _linear(self, node: Node) -> bool:
        path, layer = node.module or "", self.modules[node.module or ""]
        assert isinstance(layer, nn.Linear)
        weight, bias = (self._parameter(path, name) for name in ("weight", "bias"))
        if weight is None or bias is None or not turns(layer):
            return self._unowned(node, "weight" if weight is None or bias else "bias")
        matrix = Matrix(path, weight, bias, 0, layer.out_features)
        self._read(node, 0, matrix)
        self._write(node, matrix)
        return True

    def _conv(self, node: Node) -> bool:
        """Patches of an image: a convolution writes features along dimension 1."""
        path, layer = node.module or "", self.modules[node.module or ""]
        assert isinstance(layer, nn.modules.conv._ConvNd)
        weight, bias = (self._parameter(path, name) for name in ("weight", "bias"))
        forwards = [getattr(nn, f"Conv{rank}d").forward for rank in (1, 2, 3)]
        if not weight or bias is None or layer.groups != 1 or type(layer).forward not in forwards:
            return False
        self._block(node)  # what it reads
        axis = len(node.shape) - (layer.weight.ndim - 1)
        ids = self._channels((weight, 0, 0), node.shape, axis, layer.out_channels)
        for parameter in (weight, bias) if bias else (weight,):
            self.writings.append(Writing(path, parameter, 0, self._written[weight, 0, 0]))
        return self._give(node, Value(ids))

    def _embedding(self, node: Node) -> bool:
        path, layer = node.module or "", self.modules[node.module or ""]
        assert isinstance(layer, nn.Embedding)
        weight = self._parameter(path, "weight")
        if not weight or layer.max_norm is not None or node.shape[-1:] != (layer.embedding_dim,):
            return self._unowned(node, "weight")
        ids = self._channels((weight, 1, 0), node.shape, len(node.shape) - 1, layer.embedding_dim)
        self.writings.append(Writing(path, weight, 1, ids.reshape(-1, layer.embedding_dim)[0]))
        return self._give(node, Value(ids))

    def _attention_layer(self, node: Node) -> bool:
        """`nn.MultiheadAttention`: three matrices read, one writes, and the values lie between two."""
        path, layer = node.module or "", self.modules[node.module or ""]
        assert isinstance(layer, nn.MultiheadAttention)
        known = type(layer).forward is nn.MultiheadAttention.forward and layer.bias_k is None
        if not known or len(node.inputs) < 3 or layer.out_proj._parameters.get("weight") is None:
            return False
        start, size = (f"{path}." if path else ""), layer.embed_dim
        bias = f"{start}in_proj_bias" if layer.in_proj_bias is not None else ""
        row = torch.zeros(0, dtype=torch.int64)
        for number, name in enumerate(("q", "k", "v")):
            packed = layer.in_proj_weight is not None
            weight = f"{start}in_proj_weight" if packed else f"{start}{name}_proj_weight"
            first = number * size if packed else 0
            matrix = Matrix(path, weight, bias, first, first + size, number * size)
            self._read(node, number, matrix)
            if name == "v":
                row = self._channels((weight, 0, first), (size,), 0, size)
                self.writings.append(Writing(path, weight, 0, row, first))
                if bias:
                    self.writings.append(Writing(path, bias, 0, row, number * size))
                self._heads(row.reshape(layer.num_heads, -1))
        out = Matrix(path, f"{start}out_proj.weight", "", 0, size)
        out_bias = f"{start}out_proj.bias" if layer.out_proj.bias is not None else ""
        self.rows.append(row)
        self.readings.append(Reading(out, row))
        self._write(node, Matrix(path, out.weight, out_bias, 0, size))
        return True

    # Functions

    def _same(self, node: Node) -> bool:
        value = self._input(node)
        if value is None or value.ids.shape != node.shape or not self._alone(node):
            return False
        return self._give(node, value)

    def _cast(self, node: Node) -> bool:
        value = self._input(node)
        return value is not None and value.ids.shape == node.shape and self._give(node, value)

    def _alone(self, node: Node) -> bool:
        """Whether no input but the first has features."""
        return all(self.of(each) is None for each in node.inputs[1:])

    def _move(self, node: Node) -> bool:
        """What moves features about is done to their ids."""
        value = self._input(node)
        if value is None or not self._alone(node):
            return False
        moved = self._moved(node, value.ids)
        if moved is None:
            return False
        for number, ids in enumerate(moved):
            self._give(node, Value(ids, value.norm, value.squared), number)
        return tuple(moved[0].shape) == node.shape

    def _moved(self, node: Node, ids: Tensor) -> list[Tensor] | None:
        args, kwargs = node.arguments
        if len(node.inputs) == 1 and node.module is None and args and args[0] is TENSOR and node.function is not None:
            try:
                with torch.no_grad():
                    made: Any = node.function(ids, *args[1:], **kwargs)
            except Exception:
                return None
            parts = [made] if isinstance(made, Tensor) else list(made)
            return [repeated(each) for each in parts]
        if ids.numel() == prod(node.shape) and kind_of(node.function) == "reshape":
            return [repeated(ids.reshape(node.shape))]
        if kind_of(node.function) == "getitem" and self._row(ids) is not None and node.shape[-1:] == ids.shape[-1:]:
            return [self._along_last(ids, node.shape)]  # rows that a tensor picks
        return None

    def _along_last(self, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
        row = self._row(ids)
        assert row is not None
        return row.expand(shape)

    def _mean(self, node: Node) -> bool:
        """Over rows, features stay; over the features, squares give what a rotation keeps."""
        value = self._input(node)
        dims = self._dims(node)
        if value is None or dims is None:
            return False
        ids = value.ids
        varying = [dim for dim in dims if ids.stride(dim) and ids.shape[dim] > 1]
        if value.squared:
            rows = self._rows(ids)
            if dims != [ids.ndim - 1] or rows is None:
                return False
            self.rows += list(rows)
            return True
        if varying:
            return False
        for dim in dims:
            ids = ids.narrow(dim, 0, 1)
        if len(node.shape) != ids.ndim:
            ids = ids.reshape([each for dim, each in enumerate(ids.shape) if dim not in dims])
        return self._give(node, Value(ids.expand(node.shape), value.norm))

    def _dims(self, node: Node) -> list[int] | None:
        args, kwargs = node.arguments
        dims = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        value = self._input(node)
        if value is None or dims is None:
            return None
        dims = [dims] if isinstance(dims, int) else list(dims)
        return sorted(dim % value.ids.ndim for dim in dims)

    def _square(self, node: Node) -> bool:
        value = self._input(node)
        args, kwargs = node.arguments
        power = kwargs.get("exponent", args[1] if len(args) > 1 else 2)
        if value is None or value.norm is not None or value.squared or power != 2:
            return False
        return self._give(node, Value(value.ids, squared=True))

    def _sum(self, node: Node) -> bool:
        values = [self.of(each) for each in node.inputs]
        known = [each for each in values if each is not None]
        if len(node.inputs) == 1 and node.arguments == ((TENSOR, 0), {}):  # sum(...) begins with 0
            return self._same(node)
        if len(node.inputs) == 2 and None not in node.inputs:
            self.summed += [each.ids.flatten().unique() for each in known]
        if len(node.inputs) != 2 or any(each.norm is not None or each.squared for each in known):
            return False
        if len(known) == 2:
            one, other = (each.ids.expand(node.shape) for each in known)
            self._scales.link(one, other)
            return self._give(node, Value(one))
        number = next(at for at, each in enumerate(node.inputs) if each is None or self.of(each) is None)
        other = node.inputs[number]
        if other is not None:
            known_edge = next(each for each in node.inputs if each is not other)
            assert known_edge is not None
            self._hold(known_edge, f"{node.path} adds {other[0].path} ({other[0].kind}) to it")
            return False
        ids = known[0].ids.expand(node.shape)
        return self._constant(node, ids) and self._give(node, Value(ids))

    def _constant(self, node: Node, ids: Tensor) -> bool:
        """A parameter or buffer that is added: it writes features, too."""
        row = self._row(ids)
        if row is None or len(node.parameters) != 1:
            return False
        path = node.parameters[0]
        tensor = self.tensors[path]
        if not tensor.is_floating_point() or not tensor.ndim or tensor.shape[-1] != len(row):
            return False
        written = self._channels((path, tensor.ndim - 1, 0), (len(row),), 0, len(row))
        self._scales.link(written, row)
        self.writings.append(Writing(path, path, tensor.ndim - 1, written))
        return True

    def _product(self, node: Node) -> bool:
        """A product with a number, with one number a row, or with a gain."""
        values = [self.of(each) for each in node.inputs]
        known = [each for each in values if each is not None]
        if len(known) == 2 and kind_of(node.function) == "mul" and node.inputs[0] == node.inputs[1]:
            return self._square(node)
        if len(known) != 1 or known[0].ids.ndim > len(node.shape):
            return False
        if kind_of(node.function) == "div" and values[0] is None:
            return False
        value, ids = known[0], known[0].ids.expand(node.shape)
        others = [each for each in node.inputs if each is None or self.of(each) is None]
        if others and others[0] is not None:
            shape = others[0][0].shape if others[0][1] == 0 else None
            if shape is None or (shape and shape[-1] != 1):
                return False
            rows = self._rows(ids)
            if rows is None or value.squared:
                return False
            if len(rows) > 1:
                self._heads(rows)
        elif others and node.parameters:
            return self._gain(node, value, ids)
        elif others:
            return False  # a constant tensor
        return self._give(node, Value(ids, value.norm, value.squared))

    def _gain(self, node: Node, value: Value, ids: Tensor) -> bool:
        """A product with a parameter, as a norm ends in that is written in a block itself."""
        tensor = self.tensors[node.parameters[0]]
        if len(node.parameters) != 1 or value.norm is not None or value.squared:
            return False
        if tensor.numel() == 1:
            return self._give(node, Value(ids))
        if tensor.shape != node.shape[-1:] or not isinstance(tensor, nn.Parameter) or kind_of(node.function) == "div":
            return False
        gain = Norm(node.path, tensor.numel(), gain=node.parameters[0])
        rows = self._rows(ids)
        if rows is None or rows.shape[1] != tensor.numel():
            return False
        self.normed += [(gain, row) for row in rows]
        return self._give(node, Value(ids, gain))

    def _linear_function(self, node: Node) -> bool:
        """``F.linear(x, weight, bias)`` and ``torch.addmm(bias, x, weight)`` with parameters of the model."""
        transposed = node.kind == "addmm"
        args, kwargs = node.arguments
        number = 1 if transposed else 0
        paths = node.parameters[::-1] if transposed else node.parameters
        known = [each for each in node.inputs if each is not None]
        if len(known) != 1 or not paths or any(len(self._readers[path]) > 1 for path in paths):
            return False
        if transposed and (len(paths) != 2 or kwargs or len(args) != 3 or node.inputs[1] is None):
            return False
        if any(self.graph.calls(path.rpartition(".")[0]) for path in paths) or node.inputs[number] is None:
            return False
        weight = self.tensors[paths[0]]
        outputs = node.shape[-1]
        shape = (weight.shape[0], outputs) if transposed else (outputs, weight.shape[-1])
        if tuple(weight.shape) != shape or any(tuple(self.tensors[each].shape) != (outputs,) for each in paths[1:]):
            return False
        layer = node.owner if node.owner and paths[0].rpartition(".")[0] == node.owner else node.path
        matrix = Matrix(layer, paths[0], paths[1] if len(paths) > 1 else "", 0, outputs, 0, transposed)
        self._read(node, number, matrix)
        self._write(node, matrix)
        return True

    def _rms_norm(self, node: Node) -> bool:
        source = node.inputs[0] if node.inputs else None
        if source is None or len(node.parameters) > 1 or len(node.shape) < 1:
            return False
        gain = node.parameters[0] if node.parameters else ""
        return self._norm(node, Norm(node.path, node.shape[-1], gain=gain), source)

    def _cat(self, node: Node) -> bool:
        args, kwargs = node.arguments
        dim = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
        values = [self.of(each) for each in node.inputs]
        known = [each for each in values if each is not None]
        if not isinstance(dim, int) or len({each.norm for each in known}) != 1 or any(each.squared for each in known):
            return False
        dim %= len(node.shape)
        if any(each.ids.stride(dim) and each.ids.shape[dim] > 1 for each in known):
            return False
        first = known[0].ids.narrow(dim, 0, 1)
        for each in known[1:]:
            self._scales.link(first, each.ids.narrow(dim, 0, 1).expand_as(first))
        if len(known) < len(values):
            opaque = any(each is not None and self.of(each) is None for each in node.inputs)
            if opaque or known[0].norm is not None or not self._constant(node, first):
                return False
        return self._give(node, Value(first.expand(node.shape), known[0].norm))

    def _matmul(self, node: Node) -> bool:
        """The values of attention: features are the columns of the second matrix."""
        right = self._input(node, 1)
        name = getattr(node.function, "__name__", "")
        if len(node.inputs) != 2 or right is None or self._input(node) is not None or name == "einsum":
            return False
        return self._attended(node, right)

    def _attended(self, node: Node, values: Value) -> bool:
        ids = values.ids
        if ids.ndim < 2 or values.squared or (ids.stride(-2) and ids.shape[-2] > 1):
            return False
        rows = self._rows(ids)
        assert rows is not None
        self._heads(rows)
        ids = ids.narrow(-2, 0, 1)
        if ids.ndim > 2 and len(node.shape) == ids.ndim and node.shape[-3] != ids.shape[-3] > 1:
            ids = ids.repeat_interleave(node.shape[-3] // ids.shape[-3], -3)  # heads that share values
            ids = repeated(ids)
        return self._give(node, Value(ids.expand(node.shape), values.norm))

    def _attention(self, node: Node) -> bool:
        values = self._input(node, 2)
        for number, each in enumerate(node.inputs):
            if number != 2 and each is not None:
                self._hold(each, f"it reaches {node.path} ({node.kind})")
        return values is None or self._attended(node, values)


Rule: TypeAlias = Callable[[Features, Node], bool]
_LAYERS: dict[type[nn.Module], Rule] = {
    nn.Linear: Features._linear,
    nn.Embedding: Features._embedding,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Features._conv),
    nn.MultiheadAttention: Features._attention_layer,
    nn.modules.dropout._DropoutNd: Features._same,
    nn.Identity: Features._same,
    nn.Flatten: Features._move,
    nn.Unflatten: Features._move,
}
_SOURCES = (Features._linear, Features._linear_function, Features._embedding, Features._conv, Features._attention_layer)
_FUNCTIONS: dict[str, Rule] = {
    **dict.fromkeys(("dropout", "identity", "contiguous"), Features._same),
    "to": Features._cast,
    **dict.fromkeys(("reshape", "permute", "squeeze", "unsqueeze", "getitem", "select"), Features._move),
    **dict.fromkeys(("chunk", "split", "expand", "flip"), Features._move),
    **dict.fromkeys(("mean", "sum"), Features._mean),
    **dict.fromkeys(("pow", "square"), Features._square),
    **dict.fromkeys(("add", "sub"), Features._sum),
    **dict.fromkeys(("mul", "div"), Features._product),
    **dict.fromkeys(("linear", "addmm"), Features._linear_function),
    "rms_norm": Features._rms_norm,
    "cat": Features._cat,
    "matmul": Features._matmul,
    "attention": Features._attention,
}
