"""The operator that a call of a quantizer is traced as, and the node that torch's exporter writes for it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...capture.record import Call
from ...optional import required

__all__ = ["DOMAIN", "placeholder", "translations"]

DOMAIN = "bitwright"  # of the nodes; none is left in the end


def placeholder(kind: str, call: Call, x: Tensor, *others: Tensor, role: str = "") -> Tensor:
    """One call of a quantizer in the trace: a tensor like ``x``.

    Args:
        kind: the type of its node.
        call: the call.
        x: what stands in its place without it.
        others: further inputs of the node.
        role: of the result, in nodes that give it a name.
    """
    return torch.ops.bitwright.placeholder(x, others, kind, call.path, call.index, role)


# An operator of its own: torch.onnx.ops.symbolic, whose attributes are lists, takes torch twice as long to trace and
# to translate: 5.6 ms each, this one 3.0.
@torch.library.custom_op(f"{DOMAIN}::placeholder", mutates_args=())
def _placeholder(x: Tensor, others: Sequence[Tensor], kind: str, path: str, index: int, role: str) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


@_placeholder.register_fake
def _(x: Tensor, others: Sequence[Tensor], kind: str, path: str, index: int, role: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def translations() -> dict[Callable[..., object], Callable[..., object]]:
    """How torch's exporter writes the operator: its ``custom_translation_table``."""
    script = required("onnxscript", "export")

    def translated(x: Any, others: Sequence[Any], kind: str, path: str, index: int, role: str) -> Any:
        named = {"role": role} if role else {}
        return _operator(script, kind)(x, *others, path=path, index=index, **named)

    return {torch.ops.bitwright.placeholder.default: translated}


def _operator(script: Any, kind: str) -> Any:
    """An operator of the placeholders' domain, which onnxscript only writes by a schema."""
    schema = required("onnx", "export").defs.OpSchema
    inputs = schema.FormalParameter("inputs", "T", param_option=schema.FormalParameterOption.Variadic)
    attributes = {"path": schema.AttrType.STRING, "index": schema.AttrType.INT, "role": schema.AttrType.STRING}
    return script.values.Op(
        script.values.Opset(DOMAIN, 1),
        kind,
        schema(
            kind,
            DOMAIN,
            1,
            inputs=[inputs],
            outputs=[schema.FormalParameter("output", "T")],
            type_constraints=[("T", ["tensor(float)"], "")],
            attributes=[schema.Attribute(name, of, required=False) for name, of in attributes.items()],
        ),
    )
