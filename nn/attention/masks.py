"""The shapes and masks that multi-head attention is called with."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...qcore import QuantizerError, path_of

__all__ = ["Masks"]


class Masks(NamedTuple):
    """The masks of one call, checked, as floats to add to the scores.

    Args:
        attention: ``(L, S)`` or ``(N * heads, L, S)``, or None.
        padding: ``(N, S)``, or None.
    """

    attention: Tensor | None
    padding: Tensor | None

    @staticmethod
    def of(
        layer: nn.MultiheadAttention,
        query: Tensor,  # (L, E) or three dimensions, as forward got it
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        dtype: torch.dtype,
    ) -> "Masks":
        """The masks that forward got.

        Raises:
            QuantizerError: a tensor or mask of a shape or type that does not go with the others.
        """
        dims = (query.dim(), key.dim(), value.dim())
        if dims not in ((2, 2, 2), (3, 3, 3)):
            raise QuantizerError(
                f"{path_of(layer)}: query, key and value have {dims[0]}, {dims[1]} and {dims[2]} dimensions, expected "
                "3 each, or 2 each for one sequence without a batch."
            )
        batched = dims[0] == 3
        batch, tokens = (0, 1) if layer.batch_first else (1, 0)
        length, source = (each.shape[tokens if batched else 0] for each in (query, key))
        count = query.shape[batch] if batched else 1
        for name, each, width in zip(
            ("query", "key", "value"), (query, key, value), (layer.embed_dim, layer.kdim, layer.vdim), strict=True
        ):
            if each.shape[-1] != width:
                raise QuantizerError(f"{path_of(layer)}: {name} has {each.shape[-1]} features, expected {width}.")
        if key.shape[:-1] != value.shape[:-1]:
            raise QuantizerError(
                f"{path_of(layer)}: key and value have the shapes {tuple(key.shape)} and {tuple(value.shape)}, and "
                "must agree in all but the last dimension."
            )
        if batched and key.shape[batch] != count:
            raise QuantizerError(
                f"{path_of(layer)}: query has a batch of {count}, and key one of {key.shape[batch]}. They must agree; "
                f"with batch_first={layer.batch_first}, dimension {batch} is the batch."
            )
        padding = (count, source) if batched else (source,)
        heads = (count * layer.num_heads, length, source)
        _check(layer, "key_padding_mask", key_padding_mask, padding)
        _check(layer, "attn_mask", attn_mask, (length, source), heads)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        return Masks(_to_add(attn_mask, dtype), _to_add(key_padding_mask, dtype))

    def extended(self, by: int) -> "Masks":
        """The masks for keys to which some were added that always take part."""
        return Masks(*(each if each is None or not by else F.pad(each, (0, by)) for each in self))

    def joined(self, batch: int, heads: int) -> Tensor | None:
        """Both as one mask that broadcasts to ``(N, heads, L, S)``."""
        attention, padding = self
        if attention is not None and attention.dim() == 3:
            attention = attention.unflatten(0, (batch, heads))
        if padding is None:
            return attention
        padding = padding[:, None, None, :]
        return padding if attention is None else attention + padding


def _check(layer: nn.Module, name: str, mask: Tensor | None, *shapes: tuple[int, ...]) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise QuantizerError(
            f"{path_of(layer)}: {name} is {mask.dtype}, expected torch.bool or floats. Write {name}.bool() if it is "
            "True where a key is left out."
        )
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(each) for each in dict.fromkeys(shapes))
        raise QuantizerError(f"{path_of(layer)}: {name} has the shape {tuple(mask.shape)}, expected {expected}.")


def _to_add(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
