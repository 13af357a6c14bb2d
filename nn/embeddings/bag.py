"""Quantized bags of embeddings."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device

from ...qcore import QuantizerError, values_of
from ...quantizers import Int8WeightPerTensor
from ..slots import Described, QuantizerLike
from .table import TableLayer, shape_of

__all__ = ["QuantEmbeddingBag"]


class QuantEmbeddingBag(TableLayer, nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` with a quantized table and, optionally, output.

    Positional arguments are torch's. `WeightLayer` documents the keyword-only ones; there are those of
    weight and output. A sum or mean of rows is computed in
    floats: with ``return_quant_tensor=True`` it needs ``output_quant``. The largest values of a bag, ``mode="max"``,
    lie on the table's grid.

    Raises:
        QuantizerError: an unused or impossible setting.

    Example:
        >>> bag = QuantEmbeddingBag(10, 4, mode="sum", weight_bit_width=4)
        >>> bag(torch.tensor([1, 2, 4, 5, 4]), torch.tensor([0, 2])).shape
        torch.Size([2, 4])
    """

    mode: str
    include_last_offset: bool

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_quant: QuantizerLike = Int8WeightPerTensor,
        output_quant: QuantizerLike = None,
        grad_quant: QuantizerLike = None,
        return_quant_tensor: bool = False,
        **overrides: object,
    ) -> None:
        nn.EmbeddingBag.__init__(
            self,
            num_embeddings,
            embedding_dim,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            _weight,
            include_last_offset,
            padding_idx,
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
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        **options: Any,
    ) -> Self:
        """A layer with a table that exists: torch's arguments, and the keyword-only ones of the constructor.

        Example:
            >>> table = torch.tensor([[0.5, -1.27], [0.3, 0.0]])
            >>> QuantEmbeddingBag.from_pretrained(table, mode="sum")(torch.tensor([[0, 1]]))
            tensor([[ 0.8000, -1.2700]])
        """
        made = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings, include_last_offset, padding_idx)
        bag = cls(*shape_of(embeddings), *made, **options)
        bag.weight.requires_grad = not freeze
        return bag

    def _check_output_grid(self) -> None:
        if self.mode != "max":
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs outputs that lie on a grid, and a {self.mode} of "
                "rows is computed in floats. Set output_quant=Int8Act to quantize the output."
            )
        super()._check_output_grid()

    def forward(  # type: ignore[override]
        self,
        input: Tensor,  # noqa: A002 - torch's name for it
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The bags, (B, H); a `QuantTensor` with ``return_quant_tensor=True``."""
        return super().forward(input, offsets, per_sample_weights)

    def _compute(self, x: Tensor, weight: Tensor, bias: Tensor | None, *extra: Any) -> Tensor:
        offsets, per_sample_weights = extra
        return F.embedding_bag(
            x,
            weight,
            offsets,
            None,
            2.0,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            None if per_sample_weights is None else values_of(per_sample_weights),
            self.include_last_offset,
            self.padding_idx,
        )
