"""Editing the graph of an ONNX model: constants, nodes, and values that take the place of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Self

from torch import Tensor

from ..optional import required

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Editor"]


class Editor:
    """Edits the graph of a model in place, bodies of loops included. A name that is taken gets a number.

    Args:
        model: an ``onnx_ir.Model``.
    """

    def __init__(self, model: ir.Model) -> None:
        self.ir = required("onnx_ir", "export")
        self.model, self.graph = model, model.graph
        nodes, graphs = list(model.graph.all_nodes()), [model.graph, *model.graph.subgraphs()]
        values = (value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None)
        named = (value for graph in graphs for value in (*graph.inputs, *graph.initializers.values()))
        self._names = {value.name for value in (*values, *named)}
        self._constants: dict[tuple[object, ...], ir.Value] = {}

    def rewrite(self, rules: Mapping[str, Callable[[Self, ir.Node], None]]) -> None:
        """Let a rule for its operator edit every node that there is now, unless another rule took it away."""
        for node in list(self.graph.all_nodes()):
            rule = rules.get(node.op_type)
            if rule is not None and node.graph is not None:
                rule(self, node)

    def operand(self, node: ir.Node, index: int) -> ir.Value | None:
        """An input of a node, None where it is left out."""
        return node.inputs[index] if len(node.inputs) > index else None

    def addition(self, value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
        """The Add that alone uses a value, and what it adds to it; or None."""
        users = list(value.uses())
        if len(users) != 1 or users[0].node.op_type != "Add" or value.is_graph_output():
            return None
        other = users[0].node.inputs[1 - users[0].idx]
        assert other is not None
        return users[0].node, other

    def unused(self, name: str) -> str:
        """A name that no value has: this one, or with a number."""
        free, number = name, 0
        while free in self._names:
            number += 1
            free = f"{name}.{number}"
        self._names.add(free)
        return free

    def constant(self, name: str, tensor: Tensor, kind: str, otherwise: str | None = None) -> ir.Value:
        """An initializer of the whole model, shared by all who ask for the same content under the same name.

        Args:
            name: of the initializer, unless other content has it.
            tensor: the content.
            kind: the type, as ONNX spells it.
            otherwise: what it is called where the name is taken.
        """
        dtype = self.ir.DataType[kind]
        array = tensor.detach().cpu().contiguous().numpy().astype(dtype.numpy())
        key = (name, kind, array.shape, sha256(array.tobytes()).digest())  # weights are large
        if key not in self._constants:
            free = self.unused(otherwise if otherwise is not None and name in self._names else name)
            content = self.ir.tensor(array, dtype=dtype, name=free)
            value = self.ir.Value(
                name=free, shape=self.ir.Shape(array.shape), type=self.ir.TensorType(dtype), const_value=content
            )
            self.graph.register_initializer(value)
            self._constants[key] = value
        return self._constants[key]

    def add(
        self,
        place: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        attributes: Mapping[str, object] | None = None,
        *,
        like: ir.Value,
        kind: str | None = None,
        called: str | None = None,
        after: bool = False,
        domain: str = "",
    ) -> ir.Value:
        """A node in front of another; its result.

        Args:
            place: the other node.
            op_type: the operator.
            inputs: its inputs.
            name: of the result.
            attributes: by name.
            like: the value whose shape and type the result has.
            kind: the result's type where it is another one.
            called: the name of the node, by default that of its result.
            after: whether the node goes behind the other.
            domain: of the operator, where it is none of ONNX.
        """
        free = self.unused(name)
        node = self.ir.node(op_type, inputs, attributes, domain=domain, name=called or free)
        result: ir.Value = node.outputs[0]
        result.name = free
        dtype = like.dtype if kind is None else self.ir.DataType[kind]
        if dtype is not None:
            result.dtype = dtype
        result.shape = like.shape
        graph = place.graph
        assert graph is not None
        (graph.insert_after if after else graph.insert_before)(place, node)
        return result

    def supersede(self, old: ir.Value, new: ir.Value, *, renamed: bool = False) -> None:
        """Let one value take the place of another in nodes and outputs; an output of the model keeps its name.

        Args:
            old: the value that loses its users.
            new: the value that they get.
            renamed: whether the new one takes over the name in any case.
        """
        maker = new.producer()
        if old.is_graph_output() and new.is_graph_output() and maker is not None:  # one value for two outputs
            new = self.add(maker, "Identity", [new], f"{new.name}.copy", like=new, after=True)
        if renamed or old in self.graph.outputs:
            name, old.name = old.name, None
            new.name = name
        self.ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def replace(self, node: ir.Node, value: ir.Value, *, renamed: bool = False) -> None:
        """Let a value take the place of a node's result, see `supersede`, and drop the node."""
        self.supersede(node.outputs[0], value, renamed=renamed)
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def sweep(self) -> None:
        """Drop nodes and initializers that nothing uses, and the exporter's notes (more bytes than small weights)."""
        common = required("onnx_ir.passes.common", "export")
        common.RemoveUnusedNodesPass()(self.model)
        common.ClearMetadataAndDocStringPass()(self.model)
        for value in self.graph.initializers.values():
            value.metadata_props.clear()
