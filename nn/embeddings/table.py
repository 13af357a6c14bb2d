"""The base of embeddings."""

import torch
from torch import Tensor, nn

from ...qcore import Grid, QuantizerError, TensorQuant, path_of
from ...qcore.aliases import Context
from ...qcore.granularity import PerAxis
from ...qcore.grid import along_axis
from ...qcore.tracing import exporting, transformed
from ..kernels.backward import with_quantized_gradient
from ..slots import Described, Slot
from ..weight_layer import WeightLayer

__all__ = ["TableLayer", "check_fixed", "shape_of"]


class TableLayer(WeightLayer):
    """What embeddings share: rows of a weight are looked up, and nothing is multiplied.

    The table has the slots ``weight`` and ``output`` of a `WeightLayer`. Dimension 0 of the weight counts the rows:
    ``Int8WeightPerChannel`` has a scale for each row, ``Int8WeightPerGroup`` one for each group of neighbours in a row.
    """

    slots: tuple[Slot, ...] = (Slot("weight", "weight"), Slot("output"), Slot("grad", backward=True))
    sums_products = False

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    bias = None
    bias_quant = None
    input_quant = None

    def _check_slots(self) -> None:
        if self.sparse and self.weight_quant is not None:
            raise QuantizerError(
                f"{Described(self)}: sparse=True asks for a gradient of the rows that were looked up alone, and "
                "quantizers make a dense one. Write sparse=False, or weight_quant=None."
            )
        if self.max_norm is not None and self.weight_quant is not None and hasattr(type(self), "_standing_in"):
            raise QuantizerError(  # its own forward, which looks up rows in the quantized table, applies it to these
                f"{Described(self)}: max_norm={self.max_norm} would change rows of the quantized table, as this layer "
                "has a forward of its own. Renormalize the whole table first, and set max_norm = None."
            )
        super()._check_slots()

    def _check_output_grid(self) -> None:
        quant = self.weight_quant
        if quant is None:
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs outputs that lie on a grid, and the weight is not "
                "quantized. Set weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output."
            )
        granularity = getattr(quant, "granularity", None)
        columns = granularity is not None and granularity.axis is not None and granularity.axis % 2 == 1
        if granularity is not None and not granularity.single and not columns:
            kind = "row" if granularity.axis is not None else "group"
            raise QuantizerError(
                f"{Described(self)}: return_quant_tensor=True needs outputs that lie on one grid, and the weight has a "
                f"scale for each {kind} ({granularity}), so that each output has those of its own. Write "
                "weight_quant=Int8WeightPerTensor, or output_quant=Int8Act to quantize the output."
            )

    def forward(self, input: Tensor, *extra: object) -> Tensor:  # noqa: A002 - torch's name for it
        """The rows; a `QuantTensor` with ``return_quant_tensor=True``."""
        if self.max_norm is not None:
            self._renormalize(input, self.max_norm)
        weight, grid = self._take_weight(None)
        out = self._compute(input, weight, None, *extra)
        if self.grad_quant is not None:
            out = with_quantized_gradient(out, self.grad_quant)
        if out.is_nested and (self.output_quant is not None or self.return_quant_tensor):
            raise QuantizerError(
                f"{path_of(self)}: the input is a nested tensor, and so is the output, which can't be quantized. Pad "
                "the input: input.to_padded_tensor(padding_idx)."
            )
        if self.output_quant is not None:
            out, grid = self.output_quant.quantize(out)
        elif not self.return_quant_tensor or (grid is None and self._intercepted()):
            return out
        else:
            self._check_output_grid()  # the flag may have been set since the layer was built
            grid = self._grid_of_rows(grid, out.ndim)
        return self._leaving(out, grid)

    def _grid_of_rows(self, grid: Grid | None, ndim: int) -> Grid | None:
        """The grid of rows of the table in an output of so many dimensions."""
        if grid is None or grid.granularity.single:
            return grid
        last = PerAxis(ndim - 1)
        zero_point = None if grid.zero_point is None else along_axis(grid.zero_point.reshape(-1), last.axis, ndim)
        scale = along_axis(grid.scale.reshape(-1), last.axis, ndim)
        return grid.replace(scale=scale, zero_point=zero_point, granularity=last)

    def _renormalize(self, rows: Tensor, max_norm: float) -> None:
        """Scale rows down in place whose norm is too large, as torch does at each lookup, before they are quantized."""
        if exporting():
            raise QuantizerError(_changing(path_of(self), max_norm))
        with torch.no_grad():
            looked_up = rows.values() if rows.is_nested else rows
            torch.embedding_renorm_(self.weight, looked_up.contiguous(), max_norm, self.norm_type)

    def _take(
        self, slot: str, quant: TensorQuant, context: tuple[object, ...], depends_on: Grid | None
    ) -> tuple[Tensor, Grid | None]:
        if self.max_norm is not None:  # it changes the weight, in evaluation too: nothing can be kept
            return quant.quantize(self.tensor_of(slot), *context)
        return super()._take(slot, quant, context, depends_on)

    def tensor_of(self, slot: str) -> Tensor:
        """The table; the row of padding gets no gradient, not even through the scale where its values decide that."""
        weight, row = self.weight, self.padding_idx
        if row is None or not (torch.is_grad_enabled() and weight.requires_grad):
            return weight
        if torch.compiler.is_compiling() or transformed():
            return torch.cat([weight[:row], weight[row : row + 1].detach(), weight[row + 1 :]])
        fixed: Tensor = _Fixed.apply(weight, row)
        return fixed


class _Fixed(torch.autograd.Function):
    """A table of which one row gets no gradient; without a copy, which `torch.cat` would make."""

    @staticmethod
    def forward(ctx: Context, weight: Tensor, row: int) -> Tensor:
        ctx.row = row
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.index_fill(0, torch.tensor([ctx.row], device=grad.device), 0), None


def check_fixed(model: nn.Module) -> None:
    """Refuse tables that a forward changes, where their integers are to be stored.

    Raises:
        QuantizerError: a table has ``max_norm``.

    Example:
        >>> import bitwright.nn as qnn
        >>> check_fixed(qnn.QuantEmbedding(4, 2))
    """
    for path, layer in model.named_modules():
        if isinstance(layer, TableLayer) and layer.max_norm is not None:
            raise QuantizerError(_changing(path or type(layer).__name__, layer.max_norm))


def _changing(path: str, max_norm: float) -> str:
    return (
        f"{path}: max_norm={max_norm} changes the rows that a forward looks up, and a file can't change its weights. "
        "Renormalize the whole table, layer(torch.arange(layer.num_embeddings)), and set layer.max_norm = None."
    )


def shape_of(embeddings: Tensor) -> tuple[int, int]:
    """The numbers of rows and columns of a table that exists.

    Raises:
        QuantizerError: it is no matrix.

    Example:
        >>> shape_of(torch.ones(10, 4))
        (10, 4)
    """
    if embeddings.ndim != 2:
        raise QuantizerError(
            f"from_pretrained: embeddings has {embeddings.ndim} dimensions. Pass a table of 2: (rows, columns)."
        )
    rows, columns = embeddings.shape
    return rows, columns
