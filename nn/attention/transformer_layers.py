"""Quantized layers of transformers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ...qcore import QuantizerError, TensorQuant
from ...quantizers import Int8Act, Int8WeightPerTensor, Uint8Act
from ..layer import Family, QuantLayer
from ..linear import QuantLinear
from ..slots import Described, QuantizerLike, Slot, checked_flag
from .attention_layer import ATTENTION_SLOTS
from .composite import Composite, become
from .multihead import QuantMultiheadAttention

__all__ = ["QuantTransformerDecoderLayer", "QuantTransformerEncoderLayer"]

Activation = str | Callable[[Tensor], Tensor]


class TransformerLayer(Composite):
    """What quantized layers of encoders and decoders share: attention and linear layers with one set of keywords.

    Attributes:
        parts: the names of the layers inside that are quantized, in the order of the computation.
    """

    slots: tuple[Slot, ...] = (
        Slot("weight", "linear1.weight"),
        Slot("bias", "linear1.bias", follows=("input", "weight")),
        Slot("input"),
        *ATTENTION_SLOTS,
        Slot("context"),
        Slot("output"),
    )
    parts: ClassVar[tuple[str, ...]]

    weight_quant = Family()
    bias_quant = Family()
    input_quant = Family()
    query_quant = Family()
    key_quant = Family()
    value_quant = Family()
    scores_quant = Family()
    attention_quant = Family()
    context_quant = Family()
    output_quant: TensorQuant | None
    return_quant_tensor: bool

    def _make_slots(self, return_quant_tensor: object) -> None:
        """Quantized parts with empty slots, and the slots that reach them."""
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        for name in self.parts:
            attention = isinstance(self._modules[name], nn.MultiheadAttention)
            torchs, layer = (nn.MultiheadAttention, QuantMultiheadAttention) if attention else (nn.Linear, QuantLinear)
            become(self, name, torchs, layer)
        found = [(name, slot) for name in self.parts for slot in self._part(name).slots]
        self.slots = (*(_of_part(*each) for each in found), Slot("output"))
        self.routes = {f"{name}_{slot.name}": (name, slot.name) for name, slot in found}

    def _part(self, name: str) -> QuantLayer:
        part = self._modules[name]
        assert isinstance(part, QuantLayer)
        return part

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        given = dict(given)
        self._make_slots(given.pop("return_quant_tensor", False))
        super()._convert(given, device, dtype)

    def _check_slots(self) -> None:
        super()._check_slots()
        if self.return_quant_tensor and self.output_quant is None:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs output_quant, which is None. Write "
                "output_quant=Int8Act."
            )

    def _finished(self, out: Tensor) -> Tensor:
        """The output, quantized."""
        if self.output_quant is None:
            return out
        return self._leaving(*self.output_quant.quantize(out))

    def extra_repr(self) -> str:
        return "return_quant_tensor=True" if self.return_quant_tensor else ""


def _of_part(part: str, slot: Slot) -> Slot:
    """The slot of the whole layer for one of a part: keywords for all parts reach it, and those for the part."""
    wide = tuple(_families(part, slot))
    follows = None if slot.follows is None else (f"{part}_{slot.follows[0]}", f"{part}_{slot.follows[1]}")
    parameter = None if slot.parameter is None else f"{part}.{slot.parameter}"
    return Slot(
        f"{part}_{slot.name}",
        parameter,
        slot.channel_axis,
        follows=follows,
        family=wide,
        backward=slot.backward,
    )


def _families(part: str, slot: Slot) -> Iterator[str]:
    if slot.name != "output":  # of the whole layer
        yield slot.names[0]
    for name in slot.family:
        yield f"{part}_{name}"


class QuantTransformerEncoderLayer(TransformerLayer, nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` with quantized attention and linear layers.

    Positional arguments, arguments of forward and state dict are torch's. `self_attn` is a `QuantMultiheadAttention`,
    ``linear1`` and ``linear2`` are `QuantLinear`; torch's fast path, which reads their weights and calls none of them,
    is never taken. In an `nn.TransformerEncoder`, say ``enable_nested_tensor=False``: that is for the fast path.

    Args:
        weight_quant: quantizer of each matrix, or None.
        bias_quant: quantizer of the biases, or None.
        input_quant: quantizer of the inputs of ``self_attn``, ``linear1`` and ``linear2``, or None.
        query_quant, key_quant, value_quant, scores_quant, attention_quant, context_quant: as in
            `QuantMultiheadAttention`.
        output_quant: quantizer of the output, after the last sum or normalization, or None.
        return_quant_tensor: return a `QuantTensor` that carries the grid of ``output_quant``.
        **overrides: settings of these quantizers, with the prefix of the slot: ``weight_bit_width=4``; for one of the
            parts, with its name: ``linear2_weight_bit_width=8``, ``linear2_input_quant=Uint8Act``,
            ``self_attn_weight_bit_width=8``.

    Attributes:
        output_quant: the resolved module, or None.
        weight_quant, bias_quant, input_quant, ...: those of the parts, by the names of their slots. Assigning to them
            sets all.

    Raises:
        QuantizerError: for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> layer = QuantTransformerEncoderLayer(8, 2, 16, weight_bit_width=4, linear2_weight_bit_width=8)
        >>> layer.load_state_dict(nn.TransformerEncoderLayer(8, 2, 16).state_dict())
        <All keys matched successfully>
        >>> layer(torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
        >>> layer.linear1.weight_quant.bit_width, layer.linear2.weight_quant.bit_width
        (4, 8)
    """

    parts = ("self_attn", "linear1", "linear2")

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        query_quant: QuantizerLike = Int8Act,
        key_quant: QuantizerLike = Int8Act,
        value_quant: QuantizerLike = Int8Act,
        scores_quant: QuantizerLike = None,
        attention_quant: QuantizerLike = Uint8Act,
        context_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        more: Any = (layer_norm_eps, batch_first, norm_first, bias, device, dtype)
        nn.TransformerEncoderLayer.__init__(self, d_model, nhead, dim_feedforward, dropout, activation, *more)
        self._make_slots(return_quant_tensor)
        self.fill_slots(
            weight_quant=weight_quant,
            bias_quant=bias_quant,
            input_quant=input_quant,
            query_quant=query_quant,
            key_quant=key_quant,
            value_quant=value_quant,
            scores_quant=scores_quant,
            attention_quant=attention_quant,
            context_quant=context_quant,
            output_quant=output_quant,
            **overrides,
        )

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """The output for torch's arguments; a `QuantTensor` with ``return_quant_tensor=True``."""
        return self._finished(super().forward(src, src_mask, src_key_padding_mask, is_causal))


class QuantTransformerDecoderLayer(TransformerLayer, nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer` with quantized attention and linear layers.

    Positional arguments, arguments of forward and state dict are torch's. ``self_attn`` and ``multihead_attn`` are
    `QuantMultiheadAttention`, ``linear1`` and ``linear2`` are `QuantLinear`. Keywords are those of
    `QuantTransformerEncoderLayer`.

    Raises:
        QuantizerError: for a keyword or setting that nothing uses, or an impossible one.

    Example:
        >>> layer = QuantTransformerDecoderLayer(8, 2, 16, weight_bit_width=4, multihead_attn_key_bit_width=6)
        >>> layer.load_state_dict(nn.TransformerDecoderLayer(8, 2, 16).state_dict())
        <All keys matched successfully>
        >>> layer(torch.randn(5, 3, 8), torch.randn(7, 3, 8)).shape
        torch.Size([5, 3, 8])
        >>> layer.self_attn.key_quant.bit_width, layer.multihead_attn.key_quant.bit_width
        (8, 6)
    """

    parts = ("self_attn", "multihead_attn", "linear1", "linear2")

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        bias_quant: QuantizerLike = None,
        input_quant: QuantizerLike = None,
        query_quant: QuantizerLike = Int8Act,
        key_quant: QuantizerLike = Int8Act,
        value_quant: QuantizerLike = Int8Act,
        scores_quant: QuantizerLike = None,
        attention_quant: QuantizerLike = Uint8Act,
        context_quant: QuantizerLike = None,
        output_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        more: Any = (layer_norm_eps, batch_first, norm_first, bias, device, dtype)
        nn.TransformerDecoderLayer.__init__(self, d_model, nhead, dim_feedforward, dropout, activation, *more)
        self._make_slots(return_quant_tensor)
        self.fill_slots(
            weight_quant=weight_quant,
            bias_quant=bias_quant,
            input_quant=input_quant,
            query_quant=query_quant,
            key_quant=key_quant,
            value_quant=value_quant,
            scores_quant=scores_quant,
            attention_quant=attention_quant,
            context_quant=context_quant,
            output_quant=output_quant,
            **overrides,
        )

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """The output for torch's arguments; a `QuantTensor` with ``return_quant_tensor=True``."""
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self._finished(super().forward(tgt, memory, *masks, tgt_is_causal, memory_is_causal))
