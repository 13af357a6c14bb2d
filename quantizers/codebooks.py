"""Quantizers to the levels of a table: ``<table>(Weight|Act)<granularity>``, see docs/quantizers.md."""

from typing import Any

from ..qcore import NF4, AdditivePowersOfTwo, Codebook, LearnedCodebook, LearnedLevels, Quantizer, powers_of_two, value
from ..qcore.formats.int_range import check_flag
from .base import FormatAct, FormatWeight, PerGroup, PerOutputChannel

__all__ = [
    "Apot4Act",
    "Apot4WeightPerChannel",
    "Apot4WeightPerTensor",
    "CodebookAct",
    "CodebookWeight",
    "NF4Weight",
    "Pot4Act",
    "Pot4WeightPerChannel",
    "Pot4WeightPerTensor",
]


class NF4Weight(PerGroup, FormatWeight):
    """Weights as 4-bit NormalFloat (QLoRA): the 16 levels divide a normal distribution, one scale for 64 neighbours.

    Example:
        >>> import bitwright.nn as qnn
        >>> qnn.QuantLinear(128, 2, weight_quant=NF4Weight).quant_weight().grid.number_format.bits
        4
    """

    number_format = NF4
    group_size = 64


class _Table(Quantizer):
    """Levels of the user's own, which may be learned."""

    learned_levels = False

    @value
    def number_format(levels: Any, learned_levels, device=None, dtype=None):  # noqa: ANN001, ANN202, N805
        """The table, or one that training adjusts."""
        if not check_flag("learned_levels", learned_levels):
            return Codebook(levels)
        return LearnedCodebook(LearnedLevels(levels, device, dtype))


class CodebookWeight(_Table, FormatWeight):
    """Fragment: weights on the levels of a table; `levels` is missing. One scale: the largest magnitude over the last.

    ``learned_levels=True`` makes the levels a parameter, which starts from the table: ``weight_quant.levels.table``,
    and training moves them. They stay in ascending order. The scale goes on as for the table that training starts from.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> class Mine(CodebookWeight):
        ...     levels = (-1, -0.3, 0, 0.3, 1)
        >>> layer = qnn.QuantLinear(4, 1, weight_quant=Mine)
        >>> layer.weight.data = torch.tensor([[2.0, 0.5, -0.7, 0.1]])
        >>> layer.quant_weight().value.detach()
        tensor([[ 2.0000,  0.6000, -0.6000,  0.0000]])
        >>> learned = qnn.QuantLinear(4, 1, weight_quant=Mine, weight_learned_levels=True)
        >>> learned(torch.ones(1, 4)).backward()
        >>> learned.weight_quant.levels.table.grad.shape
        torch.Size([5])
    """


class CodebookAct(_Table, FormatAct):
    """Fragment: activations on the levels of a table; `levels` is missing. The scale is calibrated, then learned.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant=CodebookAct, levels=(-1, 0, 1, 3), scale=0.5)
        >>> act(torch.tensor([-0.4, 0.2, 9.0]))
        tensor([-0.5000,  0.0000,  1.5000])
    """


class _PowersOfTwo(Quantizer):
    bit_width = 4

    @value
    def number_format(bit_width: Any):  # noqa: ANN202, N805 - bit_width is an attribute, not an instance
        """0 and the powers of two of so many bits."""
        return powers_of_two(bit_width)


class Pot4WeightPerTensor(_PowersOfTwo, FormatWeight):
    """Weights as powers of two, from the largest magnitude downward, or 0: products with them are shifts.

    Of 4 bits there are 7 powers of either sign; ``weight_bit_width`` selects another number of bits, from 2 to 7.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 1, weight_quant=Pot4WeightPerTensor)
        >>> layer.weight.data = torch.tensor([[1.0, -0.4, 0.3, 0.001]])
        >>> layer.quant_weight().value.detach()
        tensor([[ 1.0000, -0.5000,  0.2500,  0.0000]])
    """


class Pot4WeightPerChannel(PerOutputChannel, Pot4WeightPerTensor):
    """`Pot4WeightPerTensor` with one scale per output channel."""


class Pot4Act(_PowersOfTwo, FormatAct):
    """Activations as powers of two or 0; the scale is calibrated over 300 training batches, then learned.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantIdentity(act_quant=Pot4Act, scale=1.0)(torch.tensor([0.9, -0.4, 9.0]))
        tensor([ 1.0000, -0.5000,  1.0000])
    """


class _AdditivePowersOfTwo(Quantizer):
    bit_width = 4
    signed = True

    @value
    def number_format(bit_width: Any, signed):  # noqa: ANN001, ANN202, N805 - attributes, not instances
        """Sums of powers of two of so many bits."""
        return AdditivePowersOfTwo(bit_width, signed)


class Apot4WeightPerTensor(_AdditivePowersOfTwo, FormatWeight):
    """Weights as sums of powers of two (APoT), see `AdditivePowersOfTwo`; the scale follows the largest magnitude.

    ``weight_bit_width`` selects another number of bits, from 2 to 8. The paper learns the scale and normalizes the
    weights: ``weight_scaling="learned"`` and a transform.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 1, weight_quant=Apot4WeightPerTensor)
        >>> layer.weight.data = torch.tensor([[1.25, -0.8, 0.3, 0.05]])
        >>> layer.quant_weight().value.detach()
        tensor([[ 1.2500, -0.7500,  0.2500,  0.0000]])
    """


class Apot4WeightPerChannel(PerOutputChannel, Apot4WeightPerTensor):
    """`Apot4WeightPerTensor` with one scale per output channel."""


class Apot4Act(_AdditivePowersOfTwo, FormatAct):
    """Activations that are never negative as sums of powers of two (APoT); the scale is calibrated, then learned.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> qnn.QuantReLU(act_quant=Apot4Act, scale=1.0)(torch.tensor([0.9, -0.4, 9.0]))
        tensor([1.0000, 0.0000, 1.5000])
    """

    signed = False
