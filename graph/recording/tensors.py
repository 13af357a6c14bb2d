"""Tensors among arguments and results, and what a recording asks of them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "TENSOR",
    "named_tensors",
    "overlap",
    "range_of",
    "storage_of",
    "tensors_in",
    "version_of",
    "without_tensors",
]


def tensors_in(value: object) -> list[Tensor]:
    """The tensors in tuples, lists, dicts and dataclasses, in their order."""
    return [tensor for _, tensor in _keyed(value, None)]


def named_tensors(value: object, name: str) -> list[tuple[str, Tensor]]:
    """Tensors by the last key that leads to them, or by a common name; numbered where a name is taken.

    Example:
        >>> [name for name, _ in named_tensors(((torch.ones(1), torch.ones(1)), {"mask": torch.ones(1)}), "input")]
        ['input', 'input_2', 'mask']
    """
    found: dict[str, Tensor] = {}
    for key, tensor in _keyed(value, None):
        base = unique = name if key is None else key
        number = 1
        while unique in found:
            number += 1
            unique = f"{base}_{number}"
        found[unique] = tensor
    return list(found.items())


class _TensorArgument:
    def __repr__(self) -> str:
        return "TENSOR"


TENSOR = _TensorArgument()
"""Stands for a tensor among the arguments of a recorded function."""


def without_tensors(value: Any) -> Any:
    """Arguments with a `TENSOR` in the place of each tensor.

    Example:
        >>> without_tensors(((torch.ones(2), 1), {"other": [torch.ones(1)]}))
        ((TENSOR, 1), {'other': [TENSOR]})
    """
    if isinstance(value, Tensor):
        return TENSOR
    if type(value) is dict:
        return {key: without_tensors(each) for key, each in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(without_tensors, value))
    return value


def _keyed(value: object, key: str | None) -> Iterator[tuple[str | None, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _keyed(each, inner if isinstance(inner, str) else key)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _keyed(each, key)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from _keyed(getattr(value, each.name, None), each.name)


def range_of(tensor: Tensor) -> tuple[float, float]:
    """The smallest and the largest value; NaN for a tensor without values that have an order."""
    if not tensor.numel() or tensor.is_complex() or tensor.dtype is torch.bool or tensor.is_meta:
        return math.nan, math.nan
    try:
        low, high = torch.aminmax(tensor.detach())
        return float(low), float(high)
    except (NotImplementedError, RuntimeError):  # sparse, nested, of a dtype without comparisons, or under vmap
        return math.nan, math.nan


def version_of(tensor: Tensor) -> int:
    """What counts the writes to a tensor; zero for a tensor of inference mode, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def storage_of(tensor: Tensor) -> int | None:
    """Where the memory of a tensor starts; None for one without memory of its own."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):  # sparse, nested, wrapped or traced
        return None


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors in one memory have an element in common."""
    if one.dtype is not other.dtype:
        return True
    size = one.untyped_storage().nbytes() // one.element_size()
    touched = torch.zeros(size, dtype=torch.bool)
    touched.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(touched.as_strided(other.shape, other.stride(), other.storage_offset()).any())
