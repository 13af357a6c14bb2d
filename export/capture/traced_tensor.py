"""A QuantTensor for modules of the user's that read its grid, or ask for one, while torch.export traces them."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import _disable_current_modes

from ...qcore import Grid, QuantTensor, grid_of
from ...qcore.aliases import Arguments, Keywords

__all__ = ["TracedQuantTensor"]


class TracedQuantTensor(QuantTensor):
    """A `QuantTensor` over a tensor that is being traced; its scale and zero point become constants of the graph.

    torch.export does not dispatch to tensor subclasses but calls ``__torch_function__``. Operations are traced on the
    values; whether their result is on a grid is decided by a QuantTensor without data, the *shadow*.
    """

    _shadow: QuantTensor

    @staticmethod
    def of(values: Tensor, grid: Grid) -> "TracedQuantTensor":
        """Values that lie on a grid."""
        with _untraced():
            return _traced(values, QuantTensor.wrap(_without_data(values), grid))

    @property
    def value(self) -> Tensor:
        """The plain tensor of values."""
        return self._inner

    @property
    def is_valid(self) -> bool:
        """True: where values lie can't be asked while they are traced."""
        return self._known() is not None

    def int(self) -> Tensor:
        """The integers."""
        return self._known().to_int(self._inner)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        out = func(*_plain(args), **_plain(kwargs or {}))
        if not any(isinstance(each, Tensor) for each in _pytree.tree_leaves(out)):
            return out
        with _untraced():
            shadow = func(*_shadows(args), **_shadows(kwargs or {}))
        return _pytree.tree_map(_traced, out, shadow)


def _untraced() -> AbstractContextManager[object]:
    return _disable_current_modes()


def _traced(values: Tensor, shadow: object) -> Any:
    """Values with their shadow's grid, if it has one."""
    if not isinstance(shadow, QuantTensor) or grid_of(shadow) is None:
        return values
    traced = QuantTensor.__new__(TracedQuantTensor, values, shadow.scale, shadow._zero_point, shadow._form)
    traced._shadow = shadow
    return traced


def _plain(tree: Any) -> Any:
    return _pytree.tree_map(lambda each: each._inner if isinstance(each, TracedQuantTensor) else each, tree)


def _shadows(tree: Any) -> Any:
    return _pytree.tree_map(_shadow_of, tree)


def _shadow_of(each: object) -> object:
    if isinstance(each, TracedQuantTensor):
        return each._shadow
    if isinstance(each, Tensor):
        return _without_data(each)
    return _size(each) if isinstance(each, torch.SymInt) else each


def _without_data(values: Tensor) -> Tensor:
    return torch.empty([_size(each) for each in values.shape], dtype=values.dtype, device="meta")


def _size(size: int | torch.SymInt) -> int:
    """A size in the example, without a word to the tracer: it stays open in the graph."""
    return size.node.hint if isinstance(size, torch.SymInt) else size
