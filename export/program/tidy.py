"""A traced program made ready: marked tensors get their names, constants become buffers, floats without use go."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    TensorArgument,
)
from torch.fx import GraphModule, Node

from .markers import marks

__all__ = ["tidied"]

_HELD = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


def tidied(program: ExportedProgram) -> ExportedProgram:
    """The same program without marks, and with copies of what it holds, so that training the model changes nothing.

    Args:
        program: as traced; its graph is changed.
    """
    module, signature = program.graph_module, program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    tensors = {spec.arg.name: _held(program, spec) for spec in signature.input_specs if spec.kind in _HELD}
    buffers: dict[str, tuple[Node, Tensor]] = {}
    for node in list(module.graph.nodes):
        if not marks(node):
            continue
        source, name = node.args[0], str(node.args[1])
        if source.op == "placeholder":
            _without_assertions(module, source)
            source, _ = buffers.setdefault(name, (source, tensors[source.name]))
        else:
            _rename(source, name, signature)
        node.replace_all_uses_with(source)
        _told(signature, node.name, source.name)
        module.graph.erase_node(node)
    target_of = {node.name: target for target, (node, _) in buffers.items()}
    state = dict[str, Tensor]()
    constants: dict[str, Any] = {key: each for key, each in program.constants.items() if not isinstance(each, Tensor)}
    kept: list[InputSpec] = []
    for node in _placeholders(module):
        spec, name = specs[node.name], node.name
        if spec.kind in _HELD and not node.users:
            module.graph.erase_node(node)
            continue
        if name in target_of:
            target = target_of[name]
            state[target] = tensors[name].detach().clone()
            _rename(node, "b_" + target.replace(".", "_"), signature)
            node.target = node.name
            spec = InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), target, persistent=True)
        elif spec.kind in _HELD and spec.target is not None:
            lasting = spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent)
            (state if lasting else constants)[spec.target] = _copy(tensors[name])
        kept.append(spec)
    module.graph.lint()
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(kept, signature.output_specs),
        state_dict=state,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def _held(program: ExportedProgram, spec: InputSpec) -> Tensor:
    assert spec.target is not None
    if spec.kind is InputKind.CONSTANT_TENSOR or (spec.kind is InputKind.BUFFER and not spec.persistent):
        return cast(Tensor, program.constants[spec.target])
    return program.state_dict[spec.target]


def _copy(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().clone(), requires_grad=False)
    return tensor.detach().clone()


def _placeholders(module: GraphModule) -> Iterator[Node]:
    return iter([node for node in module.graph.nodes if node.op == "placeholder"])


def _without_assertions(module: GraphModule, source: Node) -> None:
    """A buffer is what it is: nothing has to be asserted of it whenever the program runs."""
    found = torch.ops.aten._assert_tensor_metadata.default
    for user in [each for mark in source.users for each in (mark, *mark.users)]:
        if user.target is found:
            module.graph.erase_node(user)


def _rename(node: Node, name: str, signature: ExportGraphSignature) -> None:
    """Give a node a name, and the signature the same."""
    before = node.name
    node._rename(name)
    _told(signature, before, node.name)


def _told(signature: ExportGraphSignature, before: str, after: str) -> None:
    """Have outputs that were one node's be another's."""
    for spec in signature.output_specs:
        if isinstance(spec.arg, TensorArgument) and spec.arg.name == before:
            spec.arg.name = after
