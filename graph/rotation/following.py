"""Following the features of tensors through a recorded model: who writes them, who reads them, what they meet."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from ..recording.nodes import Graph, Node, Source
from ..regions.scales import Classes, Scales
from .norms import Norm, norm_calls
from .parts import Matrix, Reading, Value, Writing

__all__ = ["Following"]


class Following(ABC):
    """What a recorded model does with features: all that matters for rotating them. A subclass knows the operations.

    A tensor has the ids of its features, in its shape, mostly as an expanded view. Ids are linked where residual sums
    join tensors, and held where something computes with single features.

    Args:
        graph: the recording.
        model: the model.

    Attributes:
        writings: the parameters that write features.
        readings: the matrices that read them.
        rows: ids that a rotation may mix, in their order: what a layer, a norm or a head reads.
        values: those of `rows` that are the values of an attention, whose heads must not mix.
        normed: those of `rows` that a norm reads, with the norm.
        summed: ids that residual sums join.
        computed: layers whose weights can't be rotated, and why.
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph = graph
        self.modules = dict(model.named_modules())
        self.tensors = dict([*model.named_parameters(), *model.named_buffers()])
        self.writings: list[Writing] = []
        self.readings: list[Reading] = []
        self.rows: list[Tensor] = []
        self.values: list[Tensor] = []
        self.normed: list[tuple[Norm, Tensor]] = []
        self.summed: list[Tensor] = []
        self.computed: dict[str, str] = {}
        self._scales = Scales()
        self._states: dict[Source, Value] = {}
        self._passing: dict[Node, Tensor] = {}
        self._written: dict[tuple[str, int, int], Tensor] = {}
        self._readers: dict[str, set[str]] = {}  # of parameters, the functions
        for node in graph.functions():
            for path in node.parameters:
                self._readers.setdefault(path, set()).add(node.path)
        self._norms = norm_calls(graph, model)
        for node in graph.nodes:
            self._visit(node)
        self.classes: Classes = self._scales.classes()

    def why_held(self, numbers: Tensor) -> str | None:
        """Why some of these features can't be rotated; None if they can."""
        found = (self.classes.why_held(each) for each in numbers.unique().tolist())
        return next((why for why in found if why is not None), None)

    def _visit(self, node: Node) -> None:
        call = self._norms.get(node)
        if call is not None and self.of(call.read) is not None:
            if node is call.wrote:
                self._norm(node, call.norm, call.read)
            return
        values = [self.of(each) for each in node.sources]
        if node.alternatives or 0 in node.shape or not self._passes(node, any(values)):
            self._block(node)

    @abstractmethod
    def _passes(self, node: Node, reads: bool) -> bool:
        """Note what an operation does with features; whether what it does is known.

        Args:
            node: the operation.
            reads: whether any of its inputs has features.
        """

    def of(self, source: Source | None) -> Value | None:
        """What is known of a tensor; None for one without features."""
        if source is None:
            return None
        found = self._states.get(source)
        if found is None and source[0] in self._passing:  # other memory that was written to
            self._scales.hold(self._passing[source[0]], f"{source[0].path} ({source[0].kind}) writes to memory")
        return found

    def _input(self, node: Node, number: int = 0) -> Value | None:
        return self.of(node.inputs[number]) if number < len(node.inputs) else None

    def _block(self, node: Node) -> None:
        what = "the model returns it" if node.kind == "output" else f"it reaches {node.path} ({node.kind})"
        if node.kind in ("linear", "addmm", "matmul") and node.parameters:
            what = f"{node.path} multiplies it by {node.parameters[0]}, where an nn.Linear should be written"
        for source in node.sources:
            self._hold(source, what)

    def _hold(self, source: Source, why: str) -> None:
        value = self.of(source)
        if value is not None:
            self._scales.hold(value.ids, why if value.norm is None else f"{why}, behind the gain of {value.norm.path}")

    def _give(self, node: Node, value: Value, number: int = 0) -> bool:
        self._states[node, number] = value
        self._passing[node] = value.ids
        return True

    def _channels(self, key: tuple[str, int, int], shape: tuple[int, ...], axis: int, size: int) -> Tensor:
        """The ids of what a parameter writes, the same at each of its uses."""
        if key not in self._written:
            self._written[key] = self._scales.channels((size,), 0)
        return self._written[key].reshape([-1 if each == axis else 1 for each in range(len(shape))]).expand(shape)

    def _rows(self, ids: Tensor) -> Tensor | None:
        """The distinct rows of ids along the last dimension: (rows, length)."""
        if not ids.ndim:
            return None
        for dim in range(ids.ndim - 1):
            if not ids.stride(dim) and ids.shape[dim] > 1:
                ids = ids.narrow(dim, 0, 1)
        return ids.reshape(-1, ids.shape[-1]).unique(dim=0)

    def _row(self, ids: Tensor) -> Tensor | None:
        """The one row that there is."""
        rows = self._rows(ids)
        return rows[0] if rows is not None and len(rows) == 1 else None

    def _parameter(self, path: str, name: str) -> str | None:
        """The path of a parameter, "" where there is none, None where it is computed."""
        layer = self.modules[path]
        full = f"{path}.{name}" if path else name
        if name not in layer._parameters or full in self._readers:
            return None
        return full if layer._parameters[name] is not None else ""

    def _unowned(self, node: Node, name: str) -> bool:
        """What a layer writes whose weight can't be changed: features that are held."""
        self._block(node)
        path, readers = node.path, sorted(self._readers.get(f"{node.path}.{name}", ()))
        why = "is computed, or its forward is its own"
        if readers:
            why = f"is read by {readers[0]}, too, where an nn.Linear should be written"
        self.computed[path] = f"its {name} {why}"
        ids = self._scales.channels(node.shape, len(node.shape) - 1)
        self._scales.hold(ids, f"its {name} {why}")
        self.writings.append(Writing(path, "", 0, ids.reshape(-1, ids.shape[-1])[0]))
        return self._give(node, Value(ids))

    def _read(self, node: Node, number: int, matrix: Matrix) -> None:
        value = self._input(node, number)
        if value is None:
            return
        row = None if value.squared else self._row(value.ids)
        if row is None:
            self._scales.hold(value.ids, f"{matrix.layer} reads rows that differ")
            return
        layer = self.modules.get(matrix.layer)
        if value.norm is not None and value.norm.bias and not matrix.bias and not isinstance(layer, nn.Linear):
            self._scales.hold(value.ids, f"{matrix.layer} has no bias for that of {value.norm.path}")
        self.rows.append(row)
        self.readings.append(Reading(matrix, row, value.norm))

    def _write(self, node: Node, matrix: Matrix) -> None:
        size = matrix.stop - matrix.start
        dim = 1 if matrix.transposed else 0
        ids = self._channels((matrix.weight, dim, matrix.start), node.shape, len(node.shape) - 1, size)
        row = ids.reshape(-1, size)[0]
        self.writings.append(Writing(matrix.layer, matrix.weight, dim, row, matrix.start))
        bias = matrix.bias or (f"{matrix.layer}.bias" if matrix.layer else "bias")  # a norm's may become one
        if matrix.bias or isinstance(self.modules.get(matrix.layer), nn.Linear):
            self.writings.append(Writing(matrix.layer, bias, 0, row, matrix.bias_start))
        self._give(node, Value(ids))

    def _heads(self, rows: Tensor) -> None:
        self.rows += list(rows)
        self.values += list(rows)

    def _norm(self, node: Node, norm: Norm, read: Source) -> bool:
        value = self.of(read)
        assert value is not None
        rows = self._rows(value.ids)
        if value.norm is not None or value.squared or rows is None or rows.shape[1] != norm.size:
            self._hold(read, f"it reaches {norm.path} (a norm)")
            return False
        self.rows += list(rows)
        self.normed += [(norm, row) for row in rows]
        ids = value.ids.expand(node.shape) if value.ids.shape != node.shape else value.ids
        return self._give(node, Value(ids, norm if norm.gain or norm.bias else None))
