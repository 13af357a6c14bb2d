"""Quantized multi-head attention."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.types import Device

from ...qcore import Grid, GridQuant, QuantizerError, TensorQuant, path_of, values_of
from ...qcore.tracing import exporting
from ...quantizers import Int8Act, Int8WeightPerTensor, Uint8Act
from ..bypass import OwnParameter
from ..layer import Family
from ..linear import QuantLinear
from ..slots import Described, QuantizerLike, Slot, checked_flag
from .attention_layer import ATTENTION_SLOTS, AttentionLayer
from .bias_grids import floor_of, joined, products
from .composite import Composite, become
from .masks import Masks

__all__ = ["QuantMultiheadAttention"]

PACKED = ("in_proj_weight",)
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


class QuantMultiheadAttention(Composite, AttentionLayer, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with quantized weights, factors of its products, and more on request.

    Positional arguments, arguments of forward and state dict are torch's. ``in_proj_weight`` has one quantizer; with
    ``kdim`` or ``vdim``, each of the three matrices has its own. `out_proj` is a `QuantLinear`.

    Args:
        weight_quant: quantizer of each matrix, or None.
        bias_quant: quantizer of the biases, or None (float). On the scale of the products, each third of
            ``in_proj_bias`` follows the grid of its own input, and that of ``out_proj`` needs a ``context_quant``.
        input_quant: quantizer of query, key and value before their projections, or None. One tensor given as two of
            them is quantized once.
        query_quant, key_quant, value_quant: quantizers of the projected query (scaled by ``1 / sqrt(head_dim)``), key
            and value, which have the shape ``(N, num_heads, tokens, head_dim)``; or None.
        scores_quant: quantizer of the products of query and key, before the mask, or None.
        attention_quant: quantizer of the result of the softmax, before dropout, or None.
        context_quant: quantizer of the input of ``out_proj``, or None.
        output_quant: quantizer of the output, or None.
        return_quant_tensor: return the output as a `QuantTensor` that carries its grid.
        **overrides: settings of these quantizers, with the prefix of the slot: ``weight_bit_width=4``; for one of the
            matrices, with its name: ``out_proj_weight_bit_width=8``.

    Attributes:
        query_quant, key_quant, value_quant, scores_quant, attention_quant, input_quant, context_quant, output_quant:
            the resolved modules, or None.
        weight_quant, bias_quant: those of all matrices and biases, by the names of their slots. Assigning to them sets
            all.

    Where all keys are masked, the result is 0 if torch's kernel or an ``attention_quant`` is at work. Without either,
    it is NaN, as torch's is with ``need_weights=True``.

    Raises:
        QuantizerError: in the constructor, for a keyword or setting that nothing uses, or an impossible one; in
            forward, for nested tensors, for shapes and masks that don't fit together, and where a bias on the scale of
            the products finds no quantized input.

    Example:
        >>> layer = QuantMultiheadAttention(8, 2, batch_first=True, weight_bit_width=4, out_proj_weight_bit_width=8)
        >>> x = torch.randn(3, 5, 8)
        >>> out, weights = layer(x, x, x)
        >>> out.shape, weights.shape
        (torch.Size([3, 5, 8]), torch.Size([3, 5, 5]))
        >>> {name: quant.bit_width for name, quant in layer.weight_quant.items()}
        {'in_proj_weight': 4, 'out_proj_weight': 8}
    """

    slots: tuple[Slot, ...] = (
        Slot("weight", "in_proj_weight"),
        Slot("bias", "in_proj_bias", follows=("input", "weight")),
        Slot("input"),
        *ATTENTION_SLOTS,
        Slot("context"),
        Slot("output"),
    )

    weight_quant = Family()
    bias_quant = Family()
    in_proj_weight: Any = OwnParameter()  # nn.TransformerEncoder looks at it to see whether it may pass layers by
    input_quant: TensorQuant | None
    out_proj: QuantLinear
    _seen: tuple[Grid | None, ...] = (None, None, None)  # grids of the last query, key and value

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
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
        flags = {"bias": bias, "add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn, "batch_first": batch_first}
        bias, add_bias_kv, add_zero_attn, batch_first = (checked_flag(self, *each) for each in flags.items())
        more = (add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype)
        nn.MultiheadAttention.__init__(self, embed_dim, num_heads, dropout, bias, *more)
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

    def _make_slots(self, return_quant_tensor: object) -> None:
        """The slots that this layer has by its parameters, all of them empty."""
        self._qkv_same_embed_dim = False  # torch's encoder layers compute past forward where it is True
        become(self, "out_proj", NonDynamicallyQuantizableLinear, QuantLinear)
        self.out_proj.return_quant_tensor = checked_flag(self, "return_quant_tensor", return_quant_tensor)
        self.slots = self._slots()
        self.routes = {
            "out_proj_weight": ("out_proj", "weight"),
            "out_proj_bias": ("out_proj", "bias"),
            "context": ("out_proj", "input"),
            "output": ("out_proj", "output"),
        }

    def _slots(self) -> tuple[Slot, ...]:
        """The slots of this layer, by its parameters."""
        biases = () if self.in_proj_bias is None else ("in_proj_bias",)
        follows = ("input", "weight")
        return (
            *(Slot(name, name, family=("weight",)) for name in self._matrices()),
            Slot("out_proj_weight", "out_proj.weight", family=("weight",)),
            *(Slot(name, name, follows=follows, family=("bias",)) for name in biases),
            Slot("out_proj_bias", "out_proj.bias", follows=("context", "out_proj_weight"), family=("bias",)),
            Slot("input"),
            *ATTENTION_SLOTS,
            Slot("context"),
            Slot("output"),
        )

    def _matrices(self) -> tuple[str, ...]:
        return PACKED if self.in_proj_weight is not None else SEPARATE

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        given = dict(given)
        self._make_slots(given.pop("return_quant_tensor", False))
        super()._convert(given, device, dtype)

    @property
    def return_quant_tensor(self) -> bool:
        """Whether the output is a `QuantTensor`."""
        return self.out_proj.return_quant_tensor

    @return_quant_tensor.setter
    def return_quant_tensor(self, flag: bool) -> None:
        self.out_proj.return_quant_tensor = flag

    def _check_slots(self) -> None:
        self._check_context()  # before the parts, which would say it of a layer that the user did not write
        super()._check_slots()
        for name in self._matrices():
            granularity = getattr(getattr(self, f"{name}_quant"), "granularity", None)
            if granularity is None or granularity.single or (granularity.fits(2) and granularity.axis in (0, -2)):
                continue
            if granularity.fits(2) and self._follower() is None:
                continue
            wrong = (
                "a bias on the scale of the products needs a common one for all products that an output sums"
                if granularity.fits(2)
                else "the matrix has 2 dimensions"
            )
            raise QuantizerError(
                f"{Described(self)}: {name}_quant has several scales ({granularity}), and {wrong}. Write "
                "weight_quant=Int8WeightPerChannel for one scale for each output, or Int8WeightPerTensor for one."
            )

    def _check_context(self) -> None:
        """Refuse what follows the grid of the input of ``out_proj``, where that has none."""
        bias = self.out_proj_bias_quant
        follows = bias is not None and bias.follows_input
        if self.context_quant is not None or not (follows or (self.return_quant_tensor and self.output_quant is None)):
            return
        what, remedy = (
            ("the scale of out_proj_bias_quant follows", "out_proj_bias_quant=None")
            if follows
            else ("return_quant_tensor=True without output_quant needs", "output_quant=Int8Act")
        )
        raise QuantizerError(
            f"{Described(self)}: {what} the grid of the input of out_proj, and context_quant is None. Write "
            f"context_quant=Int8Act, or {remedy}."
        )

    def _follower(self) -> TensorQuant | None:
        """The quantizer of ``in_proj_bias``, if its scale is that of the products."""
        quant = None if self.in_proj_bias is None else self.in_proj_bias_quant
        return quant if quant is not None and quant.follows_input else None

    # Forward

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output and, with ``need_weights``, the attention weights; arguments and shapes are torch's.

        Args:
            query: ``(L, N, embed_dim)``, ``(N, L, embed_dim)`` if ``batch_first``, ``(L, embed_dim)`` without a batch.
            key: likewise, of ``S`` tokens and ``kdim`` features.
            value: likewise, of ``S`` tokens and ``vdim`` features.
            key_padding_mask: ``(N, S)`` or ``(S,)``: True where a key is left out, or floats to add to the scores.
            need_weights: return the weights; without them torch's own kernel can be used.
            attn_mask: ``(L, S)`` or ``(N * num_heads, L, S)``, likewise.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: whether ``attn_mask`` is the causal mask, which need not be looked at then.
        """
        self._refuse_nested(query, key, value)
        masks = Masks.of(self, query, key, value, key_padding_mask, attn_mask, query.dtype)
        if is_causal and attn_mask is None:
            raise QuantizerError(
                f"{path_of(self)}: is_causal=True says that attn_mask is causal, and there is none. Write "
                "attn_mask=nn.Transformer.generate_square_subsequent_mask(length) too."
            )
        is_causal = is_causal and key_padding_mask is None and not need_weights
        q, k, v = self._projected(*self._take_inputs(query, key, value))
        k, v, added = self._with_more_keys(k, v)
        q, k, v = (self._heads(each) for each in (q, k, v))
        mask = None if is_causal else masks.extended(added).joined(q.shape[0], self.num_heads)
        dropout = self.dropout if self.training else 0.0
        out, weights = self._attend(q, k, v, mask, dropout, is_causal, need_weights=need_weights)
        out = self.out_proj(out.permute(2, 0, 1, 3).flatten(2))  # (L, N, E)
        batched = query.dim() == 3
        out = out.squeeze(1) if not batched else out.transpose(0, 1) if self.batch_first else out
        if weights is None:
            return out, None
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights if batched else weights.squeeze(0)

    def _take_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[list[Tensor], list[Grid | None]]:
        """Query, key and value, quantized, and their grids; what is one object stays one.

        Tokens come first, as in torch, whatever the layout of the input: sums are torch's to the bit then.
        """
        given = [query, key, value]
        firsts = [next(i for i in range(3) if given[i] is each) for each in given]
        different = list(dict.fromkeys(firsts))
        taken = dict(zip(different, self._on_grids([given[i] for i in different]), strict=True))
        grids = [taken[i][1] for i in firsts]
        if exporting():  # torch.export carries plain tensors: the grids are recorded
            grids = [seen if grid is None else grid for grid, seen in zip(grids, self._seen, strict=True)]
        elif not torch.compiler.is_compiling():
            vars(self)["_seen"] = tuple(grids)  # past nn.Module's bookkeeping
        values = {i: self._tokens_first(x) for i, (x, _) in taken.items()}
        return [values[i] for i in firsts], grids

    def _on_grids(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, Grid | None]]:
        """Tensors quantized by one quantizer; while it measures, as one tensor, or their mean range would clip one."""
        quant = self.input_quant
        together = isinstance(quant, GridQuant) and quant.granularity.single and quant.intercept is None
        if quant is None or len(tensors) == 1 or not together or (quant.calibrated and not quant.calibrating):
            return [self.pass_through("input", each) for each in tensors]
        plain = [values_of(each) for each in tensors]
        values, grid = quant.quantize(torch.cat([each.reshape(-1) for each in plain]))
        parts = values.split([each.numel() for each in plain])
        return [(part.view(each.shape), grid) for part, each in zip(parts, plain, strict=True)]

    def _tokens_first(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1) if x.dim() == 2 else x.transpose(0, 1) if self.batch_first else x

    def _projected(self, tensors: Sequence[Tensor], grids: Sequence[Grid | None]) -> Sequence[Tensor]:
        """The three projections."""
        query, key, value = tensors
        inputs = grids[0] if query is key and key is value else joined(grids, self.embed_dim)
        weights, bias = self._take_projections(grids, inputs)
        if len(weights) == 1 and query is key and key is value:
            return F.linear(query, weights[0], bias).chunk(3, -1)
        weights = self._thirds(weights[0]) if len(weights) == 1 else weights
        biases = (None, None, None) if bias is None else self._thirds(bias)
        return [F.linear(*each) for each in zip(tensors, weights, biases, strict=True)]

    def _take_projections(
        self, grids: Sequence[Grid | None], inputs: Grid | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """The quantized matrices and bias; for the grid of each input, and that of all three."""
        bias, follower = self.in_proj_bias, self._follower()
        packed = len(self._matrices()) == 1
        parts = (None, None, None) if bias is None else (bias,) if packed else self._thirds(bias)
        values: list[Tensor] = []
        weights: list[Grid | None] = []
        for name, grid, part in zip(self._matrices(), [inputs] if packed else grids, parts, strict=False):
            quant = getattr(self, f"{name}_quant")
            context = () if quant is None else floor_of(quant, follower, part, grid)
            taken = (getattr(self, name), None) if quant is None else self._take(name, quant, context, grid)
            values.append(taken[0])
            weights.append(taken[1])
        if bias is None or self.in_proj_bias_quant is None:
            return values, bias
        context = () if follower is None else products(inputs, weights, self.embed_dim)
        return values, self._take("in_proj_bias", self.in_proj_bias_quant, context, inputs)[0]

    def _thirds(self, x: Tensor) -> list[Tensor]:
        """For query, key and value; by slices, which an exporter folds."""
        return [x[start : start + self.embed_dim] for start in range(0, 3 * self.embed_dim, self.embed_dim)]

    def _with_more_keys(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those that ``add_bias_kv`` and ``add_zero_attn`` add, and how many these are."""
        shape, added = (1, *k.shape[1:]), []
        if self.bias_k is not None and self.bias_v is not None:
            added.append((self.bias_k.to(k.dtype).expand(shape), self.bias_v.to(v.dtype).expand(shape)))
        if self.add_zero_attn:
            added.append((k.new_zeros(shape), v.new_zeros(shape)))
        if added:
            k, v = (torch.cat([first, *more]) for first, more in zip((k, v), zip(*added, strict=True), strict=True))
        return k, v, len(added)

    def _heads(self, x: Tensor) -> Tensor:
        """``(N, heads, tokens, head_dim)``, of tokens with all heads side by side."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)

    # State

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._seen = (None, None, None)
        return super()._apply(fn, recurse)

    def _reset_parameters(self) -> None:
        now, self._qkv_same_embed_dim = self._qkv_same_embed_dim, self.in_proj_weight is not None
        super()._reset_parameters()
        self._qkv_same_embed_dim = now

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_seen": (None, None, None)}

    def extra_repr(self) -> str:
        said = [f"embed_dim={self.embed_dim}", f"num_heads={self.num_heads}"]
        said += ["batch_first=True"] if self.batch_first else []
        return ", ".join([*said, "return_quant_tensor=True"] if self.return_quant_tensor else said)
