"""Exported files: onnxruntime computes the model's numbers, or the export refuses with a clear error."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from ...export import ExportError, export_onnx_qcdq, export_onnx_qdq, verify_onnx
from ...export.optional import installed
from ..registry import register_check
from ..report import Failure, NotApplicable, Refused
from ..subject import Subject
from .state import _feed

if TYPE_CHECKING:
    import torch

__all__ = ["export_qcdq", "export_qdq"]


@register_check
def export_qcdq(subject: Subject) -> None:
    """The QCDQ file yields the model's integers in onnxruntime, or the export refuses with a clear error."""
    _agrees(subject, export_onnx_qcdq)


@register_check
def export_qdq(subject: Subject) -> None:
    """The QDQ file yields the model's integers in onnxruntime, or the export refuses with a clear error."""
    _agrees(subject, export_onnx_qdq)


def _agrees(subject: Subject, export: Callable[..., "torch.onnx.ONNXProgram"]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if not installed(package):
            raise NotApplicable(f"needs the package {package}: pip install bitwright[onnx]")
    model = nn.Sequential(subject.layer())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _feed(model, [subject.layer_input(seed) for seed in range(2)])
        model.eval()
        try:
            program = export(model, subject.layer_input(), verify=False)
        except ExportError as error:
            raise Refused(str(error)) from None
        for seed in range(3):
            report = verify_onnx(model, program, subject.layer_input(seed) * (1 + seed))
            if not report.ok:
                raise Failure("no differences between onnxruntime and the model", str(report))
