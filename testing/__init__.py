"""A conformance kit for quantizers, Hypothesis strategies, plots, and golden vectors."""

from importlib import import_module

try:
    import_module("hypothesis")
    import_module("numpy")
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"bitwright.testing needs the package {error.name}: pip install bitwright[testing]", name=error.name
    ) from None

from . import strategies as quantizer_strategies
from .formats import check_format
from .golden.level_vectors import BlockVector, golden_blocks
from .golden.oracle import golden_vectors
from .golden.vector import Vector
from .kit import check_quantizer
from .plot import plot_model, plot_quantizer
from .registry import CHECKS, Check, register_check
from .report import Failure, NotApplicable, QuantizerCheckError, Refused, Report, Result
from .strategies import Placement
from .subject import Case, Draw, Subject

__all__ = [
    "CHECKS",
    "BlockVector",
    "Case",
    "Check",
    "Draw",
    "Failure",
    "NotApplicable",
    "Placement",
    "QuantizerCheckError",
    "Refused",
    "Report",
    "Result",
    "Subject",
    "Vector",
    "check_format",
    "check_quantizer",
    "golden_blocks",
    "golden_vectors",
    "plot_model",
    "plot_quantizer",
    "quantizer_strategies",
    "register_check",
]
