"""What a user passes to an export or a verification: what can't be meant is named before any work begins."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from torch import Tensor, nn

from ..qcore.errors import nearest
from ..qcore.models import shown
from .errors import ExportError

__all__ = ["checked_inputs", "checks_keywords", "require_count", "require_flag", "require_path_or_none"]

P = ParamSpec("P")
R = TypeVar("R")


def checks_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose unknown keywords and missing arguments raise an `ExportError` that says what there is.

    Example:
        >>> @checks_keywords
        ... def call(module, *, verify=True): ...
        >>> call(1, verfy=True)
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: call(verfy=...) is no keyword. Did you mean verify?
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    keywords = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    needed = [
        each.name for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    is_open = len(keywords) < len(signature.parameters)
    call = function.__name__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown = None if is_open else next((name for name in kwargs if name not in keywords), None)
        if unknown is not None:
            close = nearest(unknown, keywords)
            hint = f"Did you mean {close}?" if close else f"There are: {', '.join(keywords)}."
            raise ExportError(f"{call}({unknown}=...) is no keyword. {hint}")
        missing = next((name for name in needed[len(args) :] if name not in kwargs), None)
        if missing is not None:
            raise ExportError(f"{call}: {missing} is missing. Write {call}({', '.join(needed)}).")
        return function(*args, **kwargs)

    return checked


def checked_inputs(call: str, name: str, given: object, kwargs: object, module: nn.Module) -> tuple[object, ...]:
    """The positional arguments of a model's forward; see the callers' ``args`` and ``inputs``.

    Args:
        call: the function that the user called.
        name: of its argument.
        given: one tensor, or a tuple of all positional arguments.
        kwargs: keyword arguments of the model.
        module: the model.

    Raises:
        ExportError: neither a tensor nor a tuple, kwargs that are no mapping, or what forward does not take.

    Example:
        >>> import torch
        >>> len(checked_inputs("export_qonnx", "args", torch.zeros(1, 2), None, nn.Identity()))
        1
    """
    if not isinstance(given, Tensor | tuple):
        hint = "Pass a tensor, or a tuple of all positional arguments"
        if isinstance(given, list | Mapping):
            hint += f"; for a model that takes a {type(given).__name__} itself, a tuple that holds it: (value,)"
        raise ExportError(f"{call}: {name}={shown(given)} is not what a model is called with. {hint}.")
    if kwargs is not None and not (isinstance(kwargs, Mapping) and all(isinstance(each, str) for each in kwargs)):
        raise ExportError(
            f"{call}: kwargs={shown(kwargs)} is not a dict of keyword arguments. Write {{'name': tensor}}."
        )
    arguments = given if isinstance(given, tuple) else (given,)
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):  # a forward of C
        return arguments
    try:
        signature.bind(*arguments, **(kwargs or {}))
    except TypeError as error:
        raise ExportError(
            f"{call}: {name} and kwargs don't fit the model's forward, {type(module).__name__}{signature}: {error}."
        ) from None
    return arguments


def require_flag(call: str, **given: object) -> None:
    """Refuse what is neither True nor False.

    Example:
        >>> require_flag("export_qonnx", verify="no")
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: export_qonnx(verify='no'): write True or False.
    """
    for name, each in given.items():
        if not isinstance(each, bool):
            raise ExportError(f"{call}({name}={shown(each)}): write True or False.")


def require_count(call: str, **given: object) -> None:
    """Refuse what is not a whole number from 1 on.

    Example:
        >>> require_count("verify_program", batch_size=0)
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: verify_program(batch_size=0): write a whole number, 1 or more.
    """
    for name, each in given.items():
        if not isinstance(each, int) or isinstance(each, bool) or each < 1:
            raise ExportError(f"{call}({name}={shown(each)}): write a whole number, 1 or more.")


def require_path_or_none(call: str, path: object) -> None:
    """Refuse an ``export_path`` that is no path: arguments in another order, mostly.

    Example:
        >>> require_path_or_none("export_qonnx", 3)
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: export_qonnx(export_path=3) is no path. Write \
export_qonnx(model, args, "model.onnx"), or leave it out.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        ending = "pt2" if call == "export_program" else "onnx"
        hint = f'Write {call}(model, args, "model.{ending}"), or leave it out.'
        raise ExportError(f"{call}(export_path={shown(path)}) is no path. {hint}")
