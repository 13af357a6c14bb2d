"""Whether a fast file is the model, but for what its kernels round; and saying how far it is from it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...capture.caveats import warn_user
from ...comparing.report import VerificationReport, VerificationRow
from ...errors import ExportError
from .nbits import round_inputs
from .waiver import ALLOWED, beyond, beyond_rounded_inputs, waived, wide_activations

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["accept"]


def accept(
    call: str, model: "ir.Model", accuracy_level: int, compared: Callable[[], VerificationReport] | None
) -> None:
    """Raise if a fast file is another model, else warn of its distance; and give MatMulNBits its level of accuracy.

    A file with level 4 is compared twice: at level 1 it shows that everything in it is right.

    Args:
        call: the function that messages name.
        model: what `hasten` made.
        accuracy_level: of MatMulNBits: 4 rounds inputs to 8 bits, 1 computes in float32.
        compared: compares the file, as it is now, with the model; None if nothing is to be compared.

    Raises:
        ExportError: the file is further from the model than the kernels round.
    """
    report = None if compared is None else compared()
    if report is not None:
        _judge(call, beyond(report, wide_activations(model)))
    if accuracy_level == 4 and round_inputs(model) and compared is not None:
        report = compared()
        _judge(call, beyond_rounded_inputs(report))
    if report is not None and not report.ok:
        warn_user(
            f"{call}: fast=True waives exactness, and on the example input {waived(report)} verify_onnx compares on "
            "other inputs."
        )


def _judge(call: str, wrong: list[VerificationRow]) -> None:
    if wrong:
        raise ExportError(
            f"{call}(fast=True): onnxruntime is further from the model than its kernels round, so no file was written."
            f"\n{VerificationReport(wrong).table()}\n{ALLOWED} Please report it. fast=False writes an exact file, "
            "verify=False this one all the same."
        )
