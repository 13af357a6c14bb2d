"""Terms that a model's quantizers add to the loss."""

from .accumulators import accumulator_penalty
from .rounding import rounding_penalty

__all__ = ["accumulator_penalty", "rounding_penalty"]
