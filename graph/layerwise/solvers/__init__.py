"""Algorithms that choose the weights of one layer: functions of a `Problem`, without models and data."""

from .correction import solve_qronos
from .error_feedback import Rescale, solve_gptq
from .path_following import solve_gpfq
from .scale_search import solve_scales
from .shrinking import solve_magr
from .signed_steps import solve_autoround
from .up_or_down import solve_adaround

__all__ = [
    "Rescale",
    "solve_adaround",
    "solve_autoround",
    "solve_gpfq",
    "solve_gptq",
    "solve_magr",
    "solve_qronos",
    "solve_scales",
]
