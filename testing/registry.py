"""The registry of checks: decorated functions, by name."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from ..qcore import SettingError
from ..qcore.errors import nearest

__all__ = ["CHECKS", "Check", "named", "register_check", "selected"]


@dataclass(frozen=True)
class Check:
    """One rule that a quantizer must obey.

    Attributes:
        name: the function's.
        says: the rule, the first line of the docstring.
        function: raises if the rule is broken.
        searched: whether it is a property that Hypothesis tries on many inputs.

    Example:
        >>> from bitwright.testing import CHECKS
        >>> CHECKS["zero"].says, CHECKS["zero"].searched
        ('Zero stays exactly zero: padding and ReLU rely on it.', True)
    """

    name: str
    says: str
    function: Callable[[Any], None]
    searched: bool


CHECKS: dict[str, Check] = {}

_F = TypeVar("_F", bound=Callable[[Any], None])


def register_check(function: _F) -> _F:
    """Register a function as a check of `check_quantizer`, under its name. Its docstring's first line states the rule.

    A parameter called ``case`` makes it a property: it is called with many a `Case` (a quantizer and an input), and
    the smallest failing case is reported. Any other parameter gets the `Subject`, once.

    Raises:
        SettingError: a function without a docstring, or a name that is already taken.

    Example:
        >>> @register_check
        ... def bounded(case):
        ...     "Values stay below 1e6."
        ...     assert case.quantize()[0].abs().max() < 1e6
        >>> CHECKS.pop("bounded").says
        'Values stay below 1e6.'
    """
    name = function.__name__
    if not function.__doc__:
        raise SettingError("function", function, "a docstring whose first line says the rule")
    if name in CHECKS and CHECKS[name].function.__module__ != function.__module__:
        raise SettingError("function", function, "a name that no other check has", f"{name} is taken.")
    (parameter,) = inspect.signature(function).parameters
    CHECKS[name] = Check(name, function.__doc__.strip().splitlines()[0], function, parameter == "case")
    return function


def selected(checks: Iterable[str] | None, skip: Iterable[str]) -> list[Check]:
    """The checks to run, in the registry's order.

    Raises:
        SettingError: an unknown name of a check.
    """
    wanted, unwanted = named("checks", checks, CHECKS), named("skip", skip, CHECKS)
    return [each for name, each in CHECKS.items() if (checks is None or name in wanted) and name not in unwanted]


def named(setting: str, names: Iterable[str] | None, known: Iterable[str]) -> set[str]:
    """The names that a setting selects among the known ones.

    Raises:
        SettingError: an unknown name.
    """
    known, found = list(known), {names} if isinstance(names, str) else set(names or ())
    for name in sorted(found - set(known)):
        guess = nearest(name, known)
        remedy = f"Did you mean {guess!r}?" if guess else ""
        raise SettingError(setting, name, f"names of checks: {', '.join(known)}", remedy)
    return found
