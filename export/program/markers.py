"""Marks on tensors of a trace: an operator that names what it is given, and is gone when the program is made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Mark", "marking", "marks"]

Mark = Callable[[Tensor, str], Tensor]

_NAMESPACE = "bitwright_export"


@contextmanager
def marking() -> Iterator[Mark]:
    """A function that names a tensor of a trace, for the length of the block.

    Example:
        >>> with marking() as mark:
        ...     mark(torch.ones(1), "one")
        tensor([1.])
    """
    with torch.library._scoped_library(_NAMESPACE, "DEF") as library:
        library.define("named(Tensor x, str name) -> Tensor")
        library.impl("named", lambda x, name: x.clone(), "CompositeExplicitAutograd")
        yield torch.ops.bitwright_export.named


def marks(node: torch.fx.Node) -> bool:
    """Whether a node is such an operator."""
    return str(node.target) == f"{_NAMESPACE}.named.default"
