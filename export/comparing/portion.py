"""Samples as the arguments of a model, and the tensors among them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.utils import _pytree

from ...qcore import values_of

__all__ = ["Portion", "tensors_in"]


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors of arguments or outputs, in order, plain."""
    return [values_of(each) for each in _pytree.tree_leaves(tree) if isinstance(each, Tensor)]


@dataclass(frozen=True)
class Portion:
    """Some of the samples: as arguments, and as the tensors among them.

    Args:
        args: positional arguments of the model.
        kwargs: keyword arguments.
        last: whether no other portion follows.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    last: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return tensors_in((self.args, self.kwargs))

    def through(self, module: nn.Module) -> list[Tensor]:
        """The tensors among what a model returns."""
        return tensors_in(module(*self.args, **self.kwargs))

    def cut(self, start: int, stop: int) -> "Portion":
        """The samples from one to another."""

        def cut(each: object) -> object:
            return each[start:stop] if isinstance(each, Tensor) else each

        args, kwargs = _pytree.tree_map(cut, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs, last=False)
