"""Terms that a model's quantizers add to the loss."""

from .accumulators import accumulator_penalty
from .bits import BitLoss, bit_loss
from .ranges import range_penalty
from .rounding import rounding_penalty

__all__ = ["BitLoss", "accumulator_penalty", "bit_loss", "range_penalty", "rounding_penalty"]
