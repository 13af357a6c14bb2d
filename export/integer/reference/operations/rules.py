"""Rules by operator, and how they read what torch hands to an operator."""

from collections.abc import Callable

from .....qcore.aliases import Arguments, Keywords, Operator

__all__ = ["Rule", "Rules", "named"]

Rule = Callable[[Operator, Arguments, Keywords], object]
"""The result of an operator on integers, or None where it takes values."""


class Rules(dict[Operator, Rule]):
    """The rules of one module, by operator.

    Example:
        >>> import torch
        >>> rules = Rules()
        >>> @rules.of(torch.ops.aten.abs.default)
        ... def absolute(func, args, kwargs):
        ...     return None
        >>> list(rules.values()) == [absolute]
        True
    """

    def of(self, *operations: Operator) -> Callable[[Rule], Rule]:
        """A decorator that makes a function the rule of some operators."""

        def register(rule: Rule) -> Rule:
            self.update(dict.fromkeys(operations, rule))
            return rule

        return register


def named(func: Operator, args: Arguments, kwargs: Keywords) -> Keywords:
    """All arguments of an operator that are given, by name."""
    return dict(zip((each.name for each in func._schema.arguments), args, strict=False)) | kwargs
