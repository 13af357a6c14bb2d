"""Rotations that stay in the model: before linear layers, and on queries and keys."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.hadamard_transform import HadamardTransform
from ..errors import GraphError
from ..passes.models import replace_module
from ..recording.nodes import Graph, Node
from ..rewriting import function_at, interpose
from .weights import avoid_fused

__all__ = ["RotatedAttention", "RotatedScores", "key_products", "put_before", "rotate_keys"]


class RotatedAttention(nn.Module):
    """Attention whose queries and keys are rotated alike, so that products of the two stay what they are.

    Keys that go into a cache have no outliers then. It stands in the place of
    ``F.scaled_dot_product_attention(query, key, value, ...)``.

    Args:
        rotation: of the last dimension.

    Example:
        >>> attention = RotatedAttention(HadamardTransform(4))
        >>> q, k, v = torch.randn(3, 1, 2, 5, 4, dtype=torch.float64)
        >>> torch.allclose(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
        True
    """

    def __init__(self, rotation: HadamardTransform) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        query, key = self.rotation(query), self.rotation(key)
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)


class RotatedScores(nn.Module):
    """The product of queries with transposed keys, both rotated alike: ``torch.matmul(query, key)``.

    Args:
        rotation: of the features of a head.

    Example:
        >>> scores = RotatedScores(HadamardTransform(4))
        >>> q, k = torch.randn(2, 1, 2, 5, 4, dtype=torch.float64)
        >>> torch.allclose(scores(q, k.mT), q @ k.mT)
        True
    """

    def __init__(self, rotation: HadamardTransform) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        query = self.rotation(query)
        key = self.rotation(key.transpose(-2, -1)).transpose(-2, -1)
        return torch.matmul(query, key)


_SITES: dict[str, type[RotatedAttention] | type[RotatedScores]] = {
    "attention": RotatedAttention,
    "matmul": RotatedScores,
}
_BETWEEN = frozenset({"mul", "div", "add", "sub", "masked_fill", "where", "to", "contiguous", "softcap", "tanh"})


def put_before(model: nn.Module, path: str, rotation: nn.Module) -> None:
    """Put a rotation before a layer: ``fc`` becomes ``fc.rotation`` and ``fc.layer``."""
    layer = model.get_submodule(path)
    avoid_fused(model, layer)
    parts = nn.Sequential(OrderedDict(rotation=rotation.train(layer.training), layer=layer)).train(layer.training)
    replace_module(model, layer, parts)


def key_products(graph: Graph) -> list[Node]:
    """Where queries meet keys: attention functions, and products whose result goes through softmax."""
    found = graph.functions(["attention", "matmul"])
    return [node for node in found if node.kind == "attention" or (len(node.inputs) == 2 and _meets_softmax(node))]


def _meets_softmax(node: Node, steps: int = 6) -> bool:
    users = [user for user in node.users if steps and user is not node]
    return any(
        user.kind in ("softmax", "Softmax") or (user.kind in _BETWEEN and _meets_softmax(user, steps - 1))
        for user in users
    )


def rotate_keys(model: nn.Module, node: Node, rotation: Callable[[int], HadamardTransform]) -> tuple[str, int]:
    """Let the queries and keys of an attention be rotated.

    Args:
        model: the model that is changed.
        node: the attention, or the product.
        rotation: makes one of a size.

    Returns:
        The path of the new module, and the size of a head.

    Raises:
        GraphError: its code can't be rewritten, or its queries are a constant.
    """
    source = node.inputs[0] if node.inputs else None
    owner = model.get_submodule(node.owner)
    if source is None or node.place is None or not source[0].shape:
        raise GraphError(f"{node.path} ({node.kind}) reads a constant, or is called at an unknown place.")
    function_at(owner, node.place, node)
    name = f"rotated_{node.name}"
    size = source[0].shape[-1]
    module = _SITES[node.kind](rotation(size)).train(owner.training)
    interpose(owner, [(node.place, name, node)])
    owner.add_module(name, module)
    return f"{node.owner}.{name}" if node.owner else name, size
