"""Export: ONNX files that agree with the model to the bit."""

from .errors import ExportError
from .exporter import export_onnx_qcdq, export_onnx_qdq
from .report import Report, Row
from .verify import verify_onnx

__all__ = ["ExportError", "Report", "Row", "export_onnx_qcdq", "export_onnx_qdq", "verify_onnx"]
