"""Weights that are kept as magnitude and direction (weight normalization), in either of torch's two forms."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["named_otherwise"]

_HALVES = (("_g", "0"), ("_v", "1"))  # of weight_norm, and of parametrizations.weight_norm: original0, original1


def named_otherwise(key: str, file: Mapping[str, Tensor]) -> tuple[Tensor, tuple[str, ...]] | None:
    """What a file has for a key under other names: halves of the other form, or the weight that two of them make.

    Returns:
        The tensor and the keys of the file that it comes from; None where the file has none.

    Example:
        >>> file = {"fc.weight_g": torch.tensor([[2.0]]), "fc.weight_v": torch.tensor([[3.0, 4.0]])}
        >>> named_otherwise("fc.weight", file)
        (tensor([[1.2000, 1.6000]]), ('fc.weight_g', 'fc.weight_v'))
        >>> named_otherwise("fc.parametrizations.weight.original0", file)
        (tensor([[2.]]), ('fc.weight_g',))
    """
    for old, new in (*zip(*_forms(key), strict=True),):
        for own, other in ((old, new), (new, old)):
            if key == own and other in file:
                return file[other], (other,)
    for pair in _forms_of(key):
        if all(half in file for half in pair):
            magnitude, direction = (file[half] for half in pair)
            return _product(magnitude, direction), pair
    return None


def _forms(key: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """The two halves of the weight that a key is a half of, in both forms."""
    for suffix, digit in _HALVES:
        if key.endswith(suffix):
            return _forms_of(key.removesuffix(suffix))
        ending = f".original{digit}"
        if key.endswith(ending):
            layer, _, name = key.removesuffix(ending).rpartition("parametrizations.")
            return _forms_of(layer + name)
    return _forms_of(key)


def _forms_of(weight: str) -> tuple[tuple[str, str], tuple[str, str]]:
    layer, dot, name = weight.rpartition(".")
    own = f"{layer}{dot}parametrizations.{name}.original"
    return (f"{weight}_g", f"{weight}_v"), (f"{own}0", f"{own}1")


def _product(magnitude: Tensor, direction: Tensor) -> Tensor:
    """The weight, as torch's weight norm computes it."""
    if magnitude.ndim == 0:
        return torch.ops.aten._weight_norm(direction, magnitude, -1)
    dim = next((dim for dim, size in enumerate(magnitude.shape) if size > 1), 0)
    return torch.ops.aten._weight_norm(direction, magnitude, dim)
