"""A tensor of integers that runs through a model in place of floats.

Its values are a sum of terms, integers times a scale: one term for a quantized tensor, for sums of products and after
an addition of tensors on one scale; two after an addition of tensors on different grids. Integers are centred (the zero
point is subtracted), so that 0 is 0 for padding and ReLU. What can be done with the integers alone is done with them;
anything else is computed on the values, and noted in the journal.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ....qcore.aliases import Arguments, Keywords, Operator
from ...errors import ExportError
from .journal import Journal
from .operations import averages, bounds, choices, joins, masks, moves, products, sums, writing
from .operations.rules import Rule
from .terms import TermsTensor

__all__ = ["SELECTIONS", "IntegerTensor"]

aten = torch.ops.aten


class IntegerTensor(TermsTensor):
    """A tensor whose values are integers times scales, which operations keep as integers where they can.

    Example:
        >>> from bitwright.export.integer.reference.terms import Term
        >>> x = IntegerTensor((Term(torch.tensor([3, -1]), torch.tensor(0.5)),), Journal())
        >>> x.relu().terms[0].codes, x.value, type(x.sin()).__name__
        (tensor([3, 0]), tensor([ 1.5000, -0.5000]), 'Tensor')
    """

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"IntegerTensor({tuple(self.shape)}, {len(self.terms)} terms)"

    def __iadd__(self, other: Tensor | complex) -> Tensor:
        return self + other  # rebinds, as the result may be plain

    def __isub__(self, other: Tensor | complex) -> Tensor:
        return self - other

    def __imul__(self, other: Tensor | complex) -> Tensor:
        return self * other

    def __itruediv__(self, other: Tensor | complex) -> Tensor:
        return self / other

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Operator, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func._schema.is_mutable and isinstance(args[0] if args else None, IntegerTensor):
            return _in_place(func, args, kwargs)
        rule = _RULES.get(func)
        out = None if rule is None else rule(func, args, kwargs)
        if out is not None:
            return out
        if rule is None:
            out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func not in _LIKE:
            _journal((args, kwargs)).compute_in_float(func)
        return func(*_plain(args), **_plain(kwargs))


def _in_place(func: Operator, args: Arguments, kwargs: Keywords) -> object:
    """Write integers on the tensor's own scale into it; or replace all of it, if nothing shares its memory."""
    target = args[0]
    write = writing.RULES.get(func)
    if write is not None and write(func, args, kwargs) is not None:
        return target
    name, overload = func._schema.name.removeprefix("aten::").removesuffix("_"), func._overloadname
    twin = getattr(getattr(aten, name, None), overload, None)
    out = None if twin is None or target.aliased else IntegerTensor.__torch_dispatch__(twin, (), args, kwargs)
    if not isinstance(out, IntegerTensor):
        where = target.journal.layer or "the model"
        raise ExportError(
            f"{where}: {name}_ changes a quantized tensor in place, and what comes out are no integers on a grid. "
            f"Write the operation that returns a new tensor ({name}; inplace=False)."
        )
    target.terms, target.grid_, target.low, target.high = out.terms, out.grid_, out.low, out.high
    target.bounded, target.stored, target._made_of_zeros = out.bounded, out.stored, out._made_of_zeros
    return target


def _plain(arguments: Any) -> Any:
    if isinstance(arguments, (tuple, list)):
        return type(arguments)(_plain(each) for each in arguments)
    if isinstance(arguments, dict):
        return {name: _plain(each) for name, each in arguments.items()}
    return arguments.value if isinstance(arguments, IntegerTensor) else arguments


def _journal(arguments: object) -> Journal:
    """The journal of the first integer tensor among arguments."""
    found = (each for each in _pytree.tree_leaves(arguments) if isinstance(each, IntegerTensor))
    return next(found).journal


_SELECTING: dict[Operator, Rule] = {**moves.RULES, **joins.RULES, **choices.RULES, **bounds.RULES, **masks.RULES}
_RULES: dict[Operator, Rule] = {**_SELECTING, **sums.RULES, **products.RULES, **averages.RULES}
_LIKE = {aten.ones_like.default, aten.full_like.default, aten.new_ones.default, aten.new_full.default}
SELECTIONS = frozenset(_SELECTING)  # no new values
