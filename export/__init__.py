"""Export: ONNX files that agree with the model to the bit, and the model's integers."""

from .accumulators import AccumulatorReport, AccumulatorRow, accumulator_report
from .errors import ExportError
from .exporter import export_onnx_qcdq, export_onnx_qdq
from .integer_compare import IntegerComparison, compare
from .integer_floats import FloatModule
from .integer_grid import Entering, IntegerGrid, Quantized
from .integer_onnx import export_onnx_integer
from .integer_packing import pack, unpack
from .integer_reference import run_integers
from .integer_requantize import ByMultiplier, ByScale, ByShift
from .integer_run import IntegerRun
from .integers import integers
from .layer_integers import Integers, LayerIntegers
from .report import Report, Row
from .sums import Sums
from .verify import verify_onnx

__all__ = [
    "AccumulatorReport",
    "AccumulatorRow",
    "ByMultiplier",
    "ByScale",
    "ByShift",
    "Entering",
    "ExportError",
    "FloatModule",
    "IntegerComparison",
    "IntegerGrid",
    "IntegerRun",
    "Integers",
    "LayerIntegers",
    "Quantized",
    "Report",
    "Row",
    "Sums",
    "accumulator_report",
    "compare",
    "export_onnx_integer",
    "export_onnx_qcdq",
    "export_onnx_qdq",
    "integers",
    "pack",
    "run_integers",
    "unpack",
    "verify_onnx",
]
