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
    return torch.ops.bitwright.placeholder(x, f"{kind} {call.index} {role} {call.path}", others or None)


# An operator of its own, with one text that says all: torch.onnx.ops.symbolic, whose attributes are lists, takes torch
# twice as long to trace and to translate; torch.library.custom_op, and an argument for each part, half a millisecond.
_OPERATORS = torch.library.Library(DOMAIN, "FRAGMENT")  # as long as this lives
_OPERATORS.define(
    "placeholder(Tensor x, str mark, Tensor[]? others=None) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


def _like(x: Tensor, mark: str, others: Sequence[Tensor] | None = None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _copy(x: Tensor, mark: str, others: Sequence[Tensor] | None = None) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


_OPERATORS.impl("placeholder", _copy, "CompositeExplicitAutograd")
torch.library.register_fake(f"{DOMAIN}::placeholder", _like, lib=_OPERATORS)


def translations() -> dict[Callable[..., object], Callable[..., object]]:
    """How torch's exporter writes the operator: its ``custom_translation_table``."""
    script = required("onnxscript", "export")
    operators: dict[str, Any] = {}

    def translated(x: Any, mark: str, others: Sequence[Any] | None = None) -> Any:
        kind, index, role, path = mark.split(" ", 3)
        if kind not in operators:
            operators[kind] = _operator(script, kind)
        named = {"role": role} if role else {}
        return operators[kind](x, *(others or ()), path=path, index=int(index), **named)

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
