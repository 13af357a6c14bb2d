"""The base of attention layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...qcore import QuantizerError, TensorQuant, path_of, values_of
from ..contexts.switching import passed
from ..layer import QuantLayer
from ..slots import Slot

__all__ = ["ATTENTION_SLOTS", "AttentionLayer"]

# In the order of the computation
ATTENTION_SLOTS = (Slot("query"), Slot("key"), Slot("value"), Slot("scores"), Slot("attention"))


class AttentionLayer(QuantLayer):
    """What attention layers share: the slots inside ``softmax(scale * query @ key.T + mask) @ value``.

    Attributes:
        query_quant: quantizes the query, scaled: integer kernels multiply it by the key as it is then.
        key_quant, value_quant: quantize the key and the value.
        scores_quant: quantizes the products of query and key before the mask, as an infinite score has no integer.
        attention_quant: quantizes the result of the softmax before dropout, which leaves its range.

    Each of them is a module or None. Without ``scores_quant`` and ``attention_quant``, torch's own kernel computes the
    rest, unless the weights are asked for.
    """

    slots: tuple[Slot, ...] = ATTENTION_SLOTS

    query_quant: TensorQuant | None
    key_quant: TensorQuant | None
    value_quant: TensorQuant | None
    scores_quant: TensorQuant | None
    attention_quant: TensorQuant | None

    def _attend(
        self,
        query: Tensor,  # (N, ..., heads, L, E)
        key: Tensor,  # (N, ..., heads, S, E)
        value: Tensor,  # (N, ..., heads, S, Ev)
        mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None = None,
        enable_gqa: bool = False,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention, and its weights where they are asked for: ``(N, ..., heads, L, Ev)``, ``(N, ..., heads, L, S)``.

        A mask of booleans is True where a key takes part, as for `torch.nn.functional.scaled_dot_product_attention`.
        """
        if mask is not None:
            self._check_mask(query, mask, is_causal)
        working = [quant is not None and quant.intercept is not passed for quant in self._inner()]
        scaled, plain = working[0], not any(working[1:]) and not need_weights
        if scaled or not plain:
            query, scale = values_of(query) * (query.shape[-1] ** -0.5 if scale is None else scale), 1.0
        if scaled:
            query = self.pass_through("query", query)[0]
        key, value = self.pass_through("key", key)[0], self.pass_through("value", value)[0]
        if plain:
            query = values_of(query)
            out = F.scaled_dot_product_attention(
                query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
            return out, None
        if enable_gqa:
            key, value = _for_each_query(self, query, key), _for_each_query(self, query, value)
        scores = self.pass_through("scores", query @ key.transpose(-2, -1))[0]
        weights = self._weights(scores, _causal(scores) if is_causal else mask, need_weights and not working[2])
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        return weights @ value, weights if need_weights else None

    def _inner(self) -> tuple[TensorQuant | None, ...]:
        """The quantizers without which torch's kernel computes what they are within."""
        return self.query_quant, self.scores_quant, self.attention_quant

    def _check_mask(self, query: Tensor, mask: Tensor, is_causal: bool) -> None:
        if is_causal:
            raise QuantizerError(
                f"{path_of(self)}: is_causal=True is given with a mask, and each of them says which keys take part. "
                "Leave one out."
            )
        if mask.dtype not in (torch.bool, torch.float32, query.dtype):
            raise QuantizerError(
                f"{path_of(self)}: the mask is {mask.dtype}, expected torch.bool or {query.dtype}. Write mask.bool() "
                "if it is True where a key takes part."
            )

    def _weights(self, scores: Tensor, mask: Tensor | None, undefined: bool) -> Tensor:
        """The softmax of masked scores, quantized.

        Where all keys are masked there is nothing to attend to. Torch's kernel gives 0 there; its way with weights
        gives NaN, which ``undefined`` asks for, and which is no integer.
        """
        if mask is None:
            return self.pass_through("attention", torch.softmax(scores, -1))[0]
        allows = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, -math.inf) if allows else scores + mask.to(scores.dtype)
        if undefined:
            return torch.softmax(scores, -1)
        empty = (scores == -math.inf).all(-1, keepdim=True)
        weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)  # NaN has no gradient
        return self.pass_through("attention", weights)[0]


def _causal(scores: Tensor) -> Tensor:
    """The mask with which a query attends to the keys up to its own place."""
    queries, keys = (torch.arange(scores.shape[dim], device=scores.device) for dim in (-2, -1))
    return keys <= queries.unsqueeze(-1)  # (L, S)


def _for_each_query(layer: QuantLayer, query: Tensor, key: Tensor) -> Tensor:
    """Keys or values of a group of queries for each of the queries."""
    heads, groups = query.shape[-3], key.shape[-3]
    if heads % groups:
        raise QuantizerError(
            f"{path_of(layer)}: enable_gqa=True shares keys and values among groups of query heads, and {heads} heads "
            f"of the query are no multiple of {groups}."
        )
    return key if heads == groups else key.repeat_interleave(heads // groups, -3)
