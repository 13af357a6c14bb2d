"""Names for what torch hands to functions without saying its type."""

from typing import Any

from torch._ops import OpOverload

__all__ = ["Arguments", "Context", "Keywords", "Operator"]

Operator = OpOverload  # of torch.ops.aten
Arguments = tuple[Any, ...]  # of an operator: its schema says what each of them is
Keywords = dict[str, Any]
Context = Any  # autograd's ctx: a FunctionCtx that carries what forward sets on it
