"""Algorithms that choose the weights of one layer: functions of a `Problem`, without models and data."""

from .correction import solve_qronos
from .error_feedback import Rescale, solve_gptq
from .path_following import solve_gpfq
from .shrinking import solve_magr

__all__ = ["Rescale", "solve_gpfq", "solve_gptq", "solve_magr", "solve_qronos"]
