"""Export: ONNX files that agree with the model to the bit, and the model's integers."""

import warnings

from .capture.grid import Entering, IntegerGrid, QuantizedTensor
from .checkpoints.compressed_tensors.exporter import export_compressed_tensors
from .checkpoints.packed.loading import load_packed
from .checkpoints.packed.saving import save_packed
from .comparing.report import VerificationReport, VerificationRow
from .errors import ExportError
from .integer.accumulators import AccumulatorReport, AccumulatorRow, accumulator_report
from .integer.extraction import integers
from .integer.float_modules import FloatModule
from .integer.layers import LayerIntegers, LayerProduct
from .integer.model import Integers
from .integer.operators.exporter import export_onnx_integer
from .integer.packing import pack_integers, unpack_integers
from .integer.reference.comparison import IntegerComparison, compare_integers
from .integer.reference.entry import run_integers
from .integer.reference.journal import ProductSums
from .integer.reference.run import IntegerRun
from .integer.requantize import ByMultiplier, ByScale, ByShift
from .integer.sums import AccumulatorRange
from .onnx.exporter import export_onnx_qcdq, export_onnx_qdq
from .onnx.runtime.evaluation import evaluate_onnx
from .onnx.stored.report import StorageReport, StorageRow, storage_report
from .onnx.verify import verify_onnx
from .program.exporter import export_program
from .program.verify import verify_program
from .qonnx.exporter import export_qonnx
from .qonnx.verify import verify_qonnx
from .targets.doors import TARGETS
from .targets.report import SupportReport, SupportRow
from .targets.supports import supports
from .targets.target import Accepts, Target

__all__ = [
    "TARGETS",
    "Accepts",
    "AccumulatorRange",
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
    "LayerProduct",
    "ProductSums",
    "QuantizedTensor",
    "StorageReport",
    "StorageRow",
    "SupportReport",
    "SupportRow",
    "Target",
    "VerificationReport",
    "VerificationRow",
    "accumulator_report",
    "compare_integers",
    "evaluate_onnx",
    "export_compressed_tensors",
    "export_onnx_integer",
    "export_onnx_qcdq",
    "export_onnx_qdq",
    "export_program",
    "export_qonnx",
    "integers",
    "load_packed",
    "pack_integers",
    "run_integers",
    "save_packed",
    "storage_report",
    "supports",
    "unpack_integers",
    "verify_onnx",
    "verify_program",
    "verify_qonnx",
]

_FORMER = {
    "Quantized": "QuantizedTensor",
    "Report": "VerificationReport",
    "Row": "VerificationRow",
    "Sums": "AccumulatorRange",
    "compare": "compare_integers",
    "pack": "pack_integers",
    "unpack": "unpack_integers",
}


def __getattr__(name: str) -> object:
    present = _FORMER.get(name)
    if present is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    said = f"{name} is now {present}: the former name goes with version 0.3."
    warnings.warn(said, DeprecationWarning, stacklevel=2)
    return globals()[present]
