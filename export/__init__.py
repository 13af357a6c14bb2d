"""Export: ONNX files that agree with the model to the bit, and the model's integers."""

from .errors import ExportError
from .integer.accumulators import AccumulatorReport, AccumulatorRow, accumulator_report
from .integer.extraction import integers
from .integer.float_modules import FloatModule
from .integer.grid import Entering, IntegerGrid, Quantized
from .integer.layers import LayerIntegers
from .integer.model import Integers
from .integer.operators.exporter import export_onnx_integer
from .integer.packing import pack, unpack
from .integer.reference.comparison import IntegerComparison, compare
from .integer.reference.entry import run_integers
from .integer.reference.run import IntegerRun
from .integer.requantize import ByMultiplier, ByScale, ByShift
from .integer.sums import Sums
from .onnx.exporter import export_onnx_qcdq, export_onnx_qdq
from .onnx.report import Report, Row
from .onnx.verify import verify_onnx

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
