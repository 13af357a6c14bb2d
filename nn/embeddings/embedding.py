"""Quantized embeddings."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ...quantizers import Int8WeightPerTensor
from ..slots import QuantizerLike
from .table import TableLayer, shape_of

__all__ = ["QuantEmbedding"]


class QuantEmbedding(TableLayer, nn.Embedding):
    """`torch.nn.Embedding` with a quantized table and, optionally, output; input (*) of integers, output (*, H).

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones; there are those of
    weight and output. Rows are looked up in the quantized
    table, so that outputs lie on its grid. A table that an output layer shares has one quantizer, too: pass the module,
    ``QuantLinear(..., weight_quant=embedding.weight_quant)``.

    - ``max_norm`` scales rows down in place before they are quantized, where torch does.
    - ``sparse=True`` needs ``weight_quant=None``: the gradient of a quantized table is dense.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> embedding = QuantEmbedding(10, 4, weight_bit_width=4, return_quant_tensor=True)
        >>> embedding(torch.tensor([[1, 2, 9]])).int().shape
        torch.Size([1, 3, 4])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.Embedding.__init__(
            self,
            num_embeddings,
            embedding_dim,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            _weight,
            _freeze,
            device,
            dtype,
        )
        quantizers = {"weight": weight_quant, "output": output_quant, "grad": grad_quant}
        self._equip(quantizers, return_quant_tensor, overrides)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        **options: Any,
    ) -> Self:
        """A layer with a table that exists: torch's arguments, and the keyword-only ones of the constructor.

        Example:
            >>> table = torch.tensor([[0.5, -1.27], [0.3, 0.0]])
            >>> QuantEmbedding.from_pretrained(table, weight_bit_width=8).int_weight()
            tensor([[  50, -127],
                    [  30,    0]], dtype=torch.int8)
        """
        made = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, embeddings, freeze)
        return cls(*shape_of(embeddings), *made, **options)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: object) -> Tensor:
        return F.embedding(x, weight, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
