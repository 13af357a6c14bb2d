"""Quantized attention as a layer without parameters."""

import torch
from torch import Tensor
from torch.types import Device

from ...qcore import QuantizerError, TensorQuant
from ...quantizers import Int8Act, Uint8Act
from ..slots import Described, QuantizerLike, Slot, checked_flag
from .attention_layer import ATTENTION_SLOTS, AttentionLayer

__all__ = ["QuantScaledDotProductAttention"]


class QuantScaledDotProductAttention(AttentionLayer):
    """`torch.nn.functional.scaled_dot_product_attention` with quantized factors, as a layer.

    It is called as the function is. Projections, rotary embeddings and caches stay where they are in a model: what
    comes out of them is what this layer quantizes.

    Args:
        query_quant: quantizer of the query times ``scale``, or None.
        key_quant: quantizer of the key, or None.
        value_quant: quantizer of the value, or None.
        scores_quant: quantizer of the products of query and key, before the mask, or None.
        attention_quant: quantizer of the result of the softmax, before dropout, or None. Without it and
            ``scores_quant``, torch's own kernel runs on quantized query, key and value.
        output_quant: quantizer of the result, or None.
        return_quant_tensor: return a `QuantTensor` that carries the grid of ``output_quant``.
        device: of the quantizers' state.
        dtype: of the quantizers' state.
        **overrides: settings of these quantizers, with the prefix of the slot: ``key_bit_width=4``.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one; in
            forward, for nested tensors, and for ``is_causal=True`` together with a mask.

    Example:
        >>> attention = QuantScaledDotProductAttention(key_bit_width=4)
        >>> query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)  # (N, heads, tokens, features)
        >>> attention(query, key, key, is_causal=True, enable_gqa=True).shape
        torch.Size([1, 4, 6, 8])
    """

    slots: tuple[Slot, ...] = (*ATTENTION_SLOTS, Slot("output"))

    output_quant: TensorQuant | None
    return_quant_tensor: bool

    def __init__(
        self,
        *,
        query_quant: QuantizerLike = Int8Act,
        key_quant: QuantizerLike = Int8Act,
        value_quant: QuantizerLike = Int8Act,
        scores_quant: QuantizerLike = None,
        attention_quant: QuantizerLike = Uint8Act,
        output_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **overrides: object,
    ) -> None:
        super().__init__()
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        self._where = {"device": device, "dtype": dtype}
        quantizers = (query_quant, key_quant, value_quant, scores_quant, attention_quant, output_quant)
        given = {f"{slot.name}_quant": each for slot, each in zip(self.slots, quantizers, strict=True)}
        self.fill_slots(**given, **overrides)

    def _provided(self, slot: Slot) -> dict[str, object]:
        return dict(self._where)

    def _check_slots(self) -> None:
        if self.return_quant_tensor and self.output_quant is None:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs output_quant, which is None. Write "
                "output_quant=Int8Act."
            )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention; arguments, shapes and result are those of torch's function.

        Args:
            query: ``(N, ..., heads, L, E)``.
            key: ``(N, ..., heads, S, E)``; with ``enable_gqa``, its number of heads divides the query's.
            value: ``(N, ..., heads, S, Ev)``, likewise.
            attn_mask: broadcastable to ``(N, ..., heads, L, S)``: True where a key takes part, or floats to add to the
                scores.
            dropout_p: probability of dropout, in evaluation too, as for torch's function.
            is_causal: queries attend to keys up to their own place.
            scale: of the products, instead of ``1 / sqrt(E)``.
            enable_gqa: groups of query heads share heads of key and value.
        """
        self._refuse_nested(query, key, value)
        out, _ = self._attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if self.output_quant is None:
            return out
        return self._leaving(*self.output_quant.quantize(out))

    def extra_repr(self) -> str:
        return "return_quant_tensor=True" if self.return_quant_tensor else ""
