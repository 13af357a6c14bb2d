"""Sums, products and concatenations of tensors as layers, whose operands meet on one grid or come on their own.

Each takes the keywords of `QuantFunction`: ``**options`` are the ones that a layer passes on.
"""

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..quantizers import Int8Act
from .activations.layer import spelled_out
from .function import QuantFunction
from .slots import QuantizerLike, Slot

__all__ = ["QuantAdd", "QuantCat", "QuantMatmul", "QuantMul"]

_Operands = QuantizerLike | Sequence[QuantizerLike]


class _Elementwise(QuantFunction):
    """A function with slots that rules and descriptions know by the class; a layer has one for each operand, or one."""

    slots = (Slot("act", prefix=""), Slot("input"))
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = spelled_out(cls, QuantFunction)


class QuantAdd(_Elementwise):
    """`torch.add` as a layer: operands on one grid, so that their integers add up, and the sum quantized.

    Args:
        act_quant: quantizer of the sum; None leaves the sum of the integers as it is.
        input_quant: quantizer of the operands; a pair for one each; None for operands that come on grids.
        share: one quantizer for both operands, so that they lie on one grid. None: unless there is a pair.
        **options: see `QuantFunction`.

    Raises:
        QuantizerError: as `QuantFunction`.

    Example:
        >>> add = QuantAdd(input_scale=0.5, scale=1.0, return_quant_tensor=True)
        >>> add(torch.tensor([0.6, 9.9]), torch.tensor([1.1, -0.1])).int()
        tensor([ 2, 10], dtype=torch.int8)
        >>> add = QuantAdd(act_quant=None, input_scale=0.5, return_quant_tensor=True)
        >>> add(torch.tensor([0.6, 9.9]), torch.tensor([1.1, -0.1])).int()
        tensor([ 3, 20], dtype=torch.int16)
    """

    def __init__(
        self,
        *,
        act_quant: QuantizerLike = Int8Act,
        input_quant: _Operands = Int8Act,
        share: bool | None = None,
        **options: Any,
    ) -> None:
        share = _alike(input_quant) if share is None else share
        super().__init__(torch.add, act_quant=act_quant, input_quant=input_quant, share=share, **options)

    def forward(self, input: Tensor, other: Tensor, *, alpha: float = 1) -> Tensor:  # noqa: A002 - torch's name for it
        """The sum ``input + alpha * other``."""
        return super().forward(input, other, alpha=alpha)


class QuantCat(_Elementwise):
    """`torch.cat` as a layer: operands on one grid, on which the result lies, too.

    Args:
        act_quant: quantizer of the result; None leaves it on the operands' grid.
        input_quant: quantizer of the operands; a sequence with one for each; None for operands that come on grids.
        share: one quantizer for all operands, so that they lie on one grid. None: unless there is a sequence.
        **options: see `QuantFunction`.

    Raises:
        QuantizerError: as `QuantFunction`.

    Example:
        >>> cat = QuantCat(input_scale=0.5, return_quant_tensor=True)
        >>> cat([torch.tensor([0.6]), torch.tensor([9.9, -1.0])]).int()
        tensor([ 1, 20, -2], dtype=torch.int8)
    """

    def __init__(
        self,
        *,
        act_quant: QuantizerLike = None,
        input_quant: _Operands = Int8Act,
        share: bool | None = None,
        **options: Any,
    ) -> None:
        share = _alike(input_quant) if share is None else share
        super().__init__(torch.cat, act_quant=act_quant, input_quant=input_quant, share=share, **options)

    def forward(self, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
        """The tensors one behind the other along a dimension."""
        return super().forward(list(tensors), dim=dim)


class QuantMul(_Elementwise):
    """`torch.mul` as a layer: each operand on a grid of its own, and the product quantized.

    Args:
        act_quant: quantizer of the product, or None.
        input_quant: quantizer of the operands, of which each has its own; a pair for two kinds; None for operands that
            come on grids.
        **options: see `QuantFunction`.

    Raises:
        QuantizerError: as `QuantFunction`.

    Example:
        >>> mul = QuantMul(input_scale=0.5, scale=0.5)
        >>> mul(torch.tensor([1.0, 3.1]), torch.tensor([1.6, -2.0]))
        tensor([ 1.5000, -6.0000])
    """

    def __init__(self, *, act_quant: QuantizerLike = Int8Act, input_quant: _Operands = Int8Act, **options: Any) -> None:
        super().__init__(torch.mul, act_quant=act_quant, input_quant=input_quant, **options)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """The product, element by element."""
        return super().forward(input, other)


class QuantMatmul(_Elementwise):
    """`torch.matmul` as a layer: each operand on a grid of its own, and the product quantized.

    Args:
        act_quant: quantizer of the product, or None.
        input_quant: quantizer of the operands, of which each has its own; a pair for two kinds; None for operands that
            come on grids.
        **options: see `QuantFunction`.

    Raises:
        QuantizerError: as `QuantFunction`.

    Example:
        >>> matmul = QuantMatmul(input_scale=0.5, scale=0.5)
        >>> matmul(torch.tensor([[1.0, 3.1]]), torch.tensor([[1.6], [-2.0]]))
        tensor([[-4.5000]])
    """

    def __init__(self, *, act_quant: QuantizerLike = Int8Act, input_quant: _Operands = Int8Act, **options: Any) -> None:
        super().__init__(torch.matmul, act_quant=act_quant, input_quant=input_quant, **options)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        """The matrix product."""
        return super().forward(input, other)


def _alike(input_quant: object) -> bool:
    """Whether one quantizer is given for all operands."""
    return not isinstance(input_quant, (list, tuple))
