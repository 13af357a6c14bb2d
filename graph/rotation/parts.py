"""What is known of features: parameters that write them, matrices that read them, and the ids of a tensor."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .norms import Norm

__all__ = ["Matrix", "Reading", "Value", "Writing", "repeated", "turns"]


@dataclass(frozen=True)
class Matrix:
    """A weight and its bias, which map features to features.

    Attributes:
        layer: the path of the layer that they belong to.
        weight: the path of the parameter: (outputs, inputs), or (inputs, outputs) if it is transposed.
        bias: that of the bias, "" if there is none.
        start: the first of its rows.
        stop: behind the last one.
        bias_start: where the bias of these rows begins.
        transposed: whether the weight multiplies from the right.
    """

    layer: str
    weight: str
    bias: str
    start: int
    stop: int
    bias_start: int = 0
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Writing:
    """A parameter one dimension of which is of features.

    Attributes:
        layer: the path of the layer, or of the parameter itself.
        parameter: the path.
        dim: the dimension.
        ids: of the features along it, from ``start``.
        start: where they begin.
    """

    layer: str
    parameter: str
    dim: int
    ids: Tensor
    start: int = 0


@dataclass(frozen=True, eq=False)
class Reading:
    """A matrix that reads features; ``norm`` is that whose gain lies between."""

    matrix: Matrix
    ids: Tensor
    norm: Norm | None = None


@dataclass(frozen=True)
class Value:
    """What is known of a tensor: the id of the feature that each element is, and the norm whose gain it has."""

    ids: Tensor
    norm: Norm | None = None
    squared: bool = False


def repeated(ids: Tensor) -> Tensor:
    """Ids as an expanded view along the dimensions along which they repeat; a copy has written them out."""
    for dim in range(ids.ndim):
        first = ids.narrow(dim, 0, 1) if ids.shape[dim] else ids
        if ids.stride(dim) and ids.shape[dim] > 1 and bool((ids == first).all()):
            ids = first.expand_as(ids)
    return ids


@torch.no_grad()
def turns(layer: nn.Linear) -> bool:
    """Whether a linear layer's result turns with its weight; one with a forward of its own is tried."""
    if type(layer).forward is nn.Linear.forward:
        return True
    generator = torch.Generator().manual_seed(0)
    plain = copy.deepcopy(layer).to("cpu", torch.float64).eval()
    inputs, outputs = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        for size in (layer.in_features, layer.out_features)
    )
    x = torch.randn(1, 2, layer.in_features, generator=generator, dtype=torch.float64)
    try:
        expected = plain(x) @ outputs
        plain.weight.copy_(outputs.T @ plain.weight @ inputs)
        if plain.bias is not None:
            plain.bias.copy_(plain.bias @ outputs)
        return bool(torch.allclose(plain(x @ inputs), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())))
    except Exception:
        return False
