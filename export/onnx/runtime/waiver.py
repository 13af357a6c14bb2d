"""What a fast file gives up: how far it is from the model, and how far it may be.

Measured on LeNet, a VGG, ResNet-18, MobileNetV2, transformer encoders (MiniLM's weights among them), LSTMs, and single
layers, with weights and activations of 8 bits, from the same integers before each tensor: no integer was off by more
than one, or three where it had 16 bits. At most 0.75 % of a tensor's were off (a depthwise convolution of MobileNetV2,
whose bias is rounded), 3 % of a softmax; of 16-bit tensors up to 74 %, as their steps are as small as those of the
products. Outputs were off by 0.2 % of their range at most, and by 5e-5 of it on average.

MatMulNBits rounds its inputs to 8 bits of the largest in a block, which no bound on single numbers describes: outputs
were off by 3.7 % of their range at most, 0.9 % on average (MiniLM, weights of 8 bits). So a file is first compared with
these computed in float32, which shows that everything in it is right.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from ...comparing.report import VerificationReport, VerificationRow

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["ALLOWED", "beyond", "beyond_rounded_inputs", "waived", "wide_activations"]

CODES = 1  # by which an integer may be off
WIDE_CODES = 8  # of more than 8 bits: a wrong scale moves the largest of 16 bits by 33 for each 0.1 %
SHARE, FEW = 0.05, 5  # of a tensor's integers of 8 bits or fewer, and as many more, may be off
OUTPUT, MEAN = 0.01, 0.001  # of its range, by which an output may be off, at most and on average
ROUNDED_MEAN = 0.1  # on average behind rounded inputs; unrelated numbers are 0.3 apart

ALLOWED = (
    f"Its kernels may be off by {CODES} in {SHARE:.0%} of a tensor's integers ({WIDE_CODES} in those of more than 8 "
    f"bits), and in outputs by {OUTPUT:.0%} of their range, {MEAN:.1%} on average."
)


def waived(report: VerificationReport) -> str:
    """In one line, how far a file is from its model.

    Example:
        >>> act = VerificationRow("act", "activation", "on", 1000, 12, 1, 1.0)
        >>> output = VerificationRow("y", "output", "plain", 10, 2, largest=0.003, mean=0.0004, samples=5, alike=4)
        >>> for part in waived(VerificationReport([act, output])).split("; "):
        ...     print(part)
        12 of 1000 integers differ, by 1 at most
        outputs are off by 0.003 of their range at most, by 0.0004 on average
        the top class is the same in 4 of 5 samples.
    """
    parts = []
    rows = [row for row in report.only("on").rows if row.kind == "activation"]
    compared, differing = sum(row.compared for row in rows), sum(row.differences for row in rows)
    if compared:
        largest = max(row.largest for row in rows)
        parts.append(
            f"{differing} of {compared} integers differ" + (f", by {largest:.0f} at most" if differing else "")
        )
    plain = [row for row in report.only("plain").rows if row.kind == "output"]
    if plain:
        most, mean = max(row.largest for row in plain), max(row.mean for row in plain)
        parts.append(f"outputs are off by {most:.2g} of their range at most, by {mean:.2g} on average")
    samples = sum(row.samples for row in plain)
    if samples:
        parts.append(f"the top class is the same in {sum(row.alike for row in plain)} of {samples} samples")
    return "; ".join(parts) + "."


def wide_activations(model: "ir.Model") -> set[str]:
    """The calls of quantizers whose integers have more than 8 bits."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "QuantizeLinear"]
    return {
        (node.name or "").removesuffix(".quantize")
        for node in nodes
        if (dtype := node.outputs[0].dtype) is not None and dtype.bitwidth > 8
    }


def beyond(report: VerificationReport, wide: Collection[str] = ()) -> list[VerificationRow]:
    """The rows that other roundings can't explain, in a file whose products are computed in float32 or in integers.

    Integers and outputs are compared from the same integers before them. The whole file, end to end, is reported alone:
    integers that differ by one may end anywhere.

    Args:
        report: of the file.
        wide: the calls of quantizers whose integers have more than 8 bits.

    Example:
        >>> rows = [VerificationRow("act", "activation", "on", 1000, 12, 1, largest) for largest in (1.0, 2.0)]
        >>> [row.largest for row in beyond(VerificationReport(rows))]
        [2.0]
    """
    rows = (row for row in report.rows if row.differences and row.optimizations != "plain")
    return [row for row in rows if row.note or not _explained(row, row.name in wide)]


def _explained(row: VerificationRow, wide: bool) -> bool:
    if row.kind == "stored":
        return False
    if row.kind == "output":
        return row.largest <= OUTPUT and row.mean <= MEAN  # neither of which is so of NaN
    if wide:
        return row.largest <= WIDE_CODES
    return row.largest <= CODES and row.differences <= SHARE * row.compared + FEW


def beyond_rounded_inputs(report: VerificationReport) -> list[VerificationRow]:
    """The outputs that are too far off for a file whose only fault is that MatMulNBits rounds its inputs.

    Example:
        >>> rows = [VerificationRow("y", "output", "on", 10, 10, largest=0.5, mean=mean) for mean in (0.02, 0.3)]
        >>> [row.mean for row in beyond_rounded_inputs(VerificationReport(rows))]
        [0.3]
    """
    rows = (row for row in report.rows if row.kind == "output" and row.differences and row.optimizations != "plain")
    return [row for row in rows if row.note or not row.mean <= ROUNDED_MEAN]
