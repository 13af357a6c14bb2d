"""What all passes over float models do first and last: the copy that they change, and the check of the result."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ...nn.layer import QuantLayer
from ...qcore.models import require_model
from ..errors import GraphError
from ..recording.examples import Call, calls_of
from ..recording.preserving import evaluating
from ..recording.tensors import tensors_in
from .reports import Report

__all__ = [
    "Examples",
    "check_same",
    "difference",
    "example_of",
    "float_copy",
    "replace_module",
    "untouched",
    "with_report",
]

Model = TypeVar("Model", bound=nn.Module)
REPORT = Report("", ())  # stands for none
Examples: TypeAlias = Tensor | tuple[object, ...] | Mapping[str, object] | Sequence[object]


def float_copy(call: str, model: Model) -> Model:
    """A deep copy of a float model, which a pass may change.

    Args:
        call: the pass.
        model: the user's model.

    Raises:
        GraphError: not a model, or one with quantized layers.

    Example:
        >>> import bitwright.nn as qnn
        >>> float_copy("equalize", nn.Sequential(qnn.QuantLinear(2, 2)))
        Traceback (most recent call last):
        bitwright.graph.errors.GraphError: equalize: 0 is a QuantLinear, and equalize changes float models. Call it \
before quantize.
    """
    require_model(call, model, GraphError)
    for path, module in model.named_modules():
        if isinstance(module, QuantLayer):
            raise GraphError(
                f"{call}: {path or 'the model'} is a {type(module).__name__}, and {call} changes float models. "
                "Call it before quantize."
            )
    if not isinstance(getattr(model, "report", REPORT), Report):
        raise GraphError(
            f"{call}: {type(model).__name__} has a `report` of its own, where {call} would put its report. "
            f"Wrap the model: {call}(nn.Sequential(model), ...)."
        )
    return copy.deepcopy(model)


def with_report(model: Model, report: Report) -> Model:
    """The model, with the report of the pass that made it as its attribute ``report``."""
    model.__dict__["report"] = report
    return model


def example_of(call: Call) -> Examples:
    """The arguments of one forward, as an example to record.

    Example:
        >>> example_of(((1, 2), {})), example_of(((), {"x": 3}))
        ((1, 2), {'x': 3})
    """
    args, kwargs = call
    return kwargs or args


def replace_module(model: nn.Module, module: nn.Module, other: nn.Module) -> None:
    """Put a module in the place of another, wherever that is registered."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is module:
                setattr(parent, name, other)


@contextmanager
def untouched(calls: list[Call], *models: nn.Module) -> Iterator[None]:
    """Evaluation of models that leaves them as they were, buffers and attributes too; torch's fused paths as they are.

    Example:
        >>> model = nn.Dropout().train()
        >>> with untouched([], model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model, tensors_in(calls)))
        torch.backends.mha.set_fastpath_enabled(fused)
        yield


TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}  # relative to the largest output; coarser types: COARSE
COARSE = 0.1


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for each in result.values():
            yield from _tensors(each)
    elif isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
        for each in result:
            yield from _tensors(each)
    elif hasattr(result, "__dict__"):
        yield from _tensors(vars(result))


def difference(one: object, other: object) -> tuple[float, float]:
    """The largest difference of two results relative to the largest value, and how much of it is rounding.

    Example:
        >>> difference(torch.tensor([2.0, 1.0]), {"y": torch.tensor([2.0, 1.5])})
        (0.25, 0.001)
    """
    largest, tolerance = 0.0, 0.0
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        if not a.is_floating_point() or not a.numel():
            continue
        size = float(a.double().abs().max())
        largest = max(largest, float((a.double() - b.double()).abs().max()) / (size or 1.0))
        tolerance = max(tolerance, TOLERANCES.get(a.dtype, COARSE))
    return largest, tolerance


def check_same(
    call: str, model: nn.Module, changed: nn.Module, examples: Examples, *, coarsest: torch.dtype = torch.float64
) -> None:
    """Compare the results of the changed model with those of the given one, on the examples.

    A model that does not agree with itself, because evaluation is random, is not compared.

    Args:
        call: the pass.
        model: what was given.
        changed: what became of it.
        examples: what both are called with.
        coarsest: a precision in which the model computes inside; that of its results is known.

    Raises:
        GraphError: they differ by more than rounding.

    Example:
        >>> check_same("equalize", nn.Identity(), nn.ReLU(), torch.tensor([-1.0, 2.0]))
        Traceback (most recent call last):
        bitwright.graph.errors.GraphError: equalize: the result is no longer the model's: it differs by 0.5 of the \
largest output. The model was not changed. A layer reads weights in a way that recording does not see; leave it out.
    """
    calls = calls_of(examples)
    with untouched(calls, model, changed):
        for args, kwargs in calls:
            expected = model(*args, **kwargs)
            apart, tolerance = difference(expected, changed(*args, **kwargs))
            tolerance = max(tolerance, TOLERANCES.get(coarsest, COARSE))
            if apart <= tolerance or difference(expected, model(*args, **kwargs))[0] > 0:
                continue
            raise GraphError(
                f"{call}: the result is no longer the model's: it differs by {apart:.2g} of the largest output. "
                "The model was not changed. A layer reads weights in a way that recording does not see; leave it out."
            )
