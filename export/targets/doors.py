"""The targets that bitwright exports to, each one record."""

from dataclasses import dataclass, replace

from torch import nn

from ...qcore import BINARY, Integers, NumberFormat
from ..onnx.dialects import BIAS, INTEGER, QCDQ, QDQ, Dialect
from .target import Accepts, Target

__all__ = ["ONNX_INTEGER", "ONNX_QCDQ", "ONNX_QDQ", "QONNX", "TARGETS"]


def _of_dialect(dialect: Dialect) -> Target:
    """What the types of a dialect can hold; run-time tensors are computed in any levels that there are."""
    types = tuple(each.levels for each in dialect.types)
    widest = max(each.bits for each in types)
    stored = Accepts(
        types, tables=widest if dialect.tables else 0, float_zero_points=dialect.tables, computes=False, dynamic=True
    )
    computed = Accepts(types, any_levels=True, scales=("tensor", "axis"), dynamic=True)
    biases = Accepts((BIAS.levels, Integers(31, False)), computes=False)
    elsewhere = None if dialect.tables else "export_onnx_qdq"
    return Target(
        dialect.name, stored, computed, biases, call=f"export_onnx_{dialect.name.lower()}", elsewhere=elsewhere
    )


ONNX_QCDQ = _of_dialect(QCDQ)
ONNX_QDQ = _of_dialect(QDQ)

_INTEGER = _of_dialect(INTEGER)
ONNX_INTEGER = replace(
    _INTEGER,
    weights=replace(_INTEGER.weights, whole=True, scales=("tensor", "axis")),
    activations=replace(_INTEGER.activations, any_levels=False, whole=True, scales=("tensor",), dynamic=False),
    float_biases=False,
    float_layers=False,
    refused_layers=(
        (nn.RNNBase, "its gates are sigmoids and tanhs of floats, and so are its steps. Use export_onnx_qdq."),
        (nn.RNNCellBase, "its gates are sigmoids and tanhs of floats, and so are its steps. Use export_onnx_qdq."),
    ),
    call="export_onnx_integer",
)


@dataclass(frozen=True)
class _WithSigns(Accepts):
    """Integers, and the signs that BipolarQuant computes."""

    def holds(self, number_format: NumberFormat) -> bool:
        return number_format == BINARY or super().holds(number_format)


# What FINN and hls4ml read. The executor computes in float32, which tells integers of 22 bits apart.
_QONNX = _WithSigns(
    (Integers(22), Integers(22, False)),
    whole=True,
    scales=("tensor", "axis"),
    zero_points=False,
    roundings=("half_even", "floor"),
)
QONNX = Target(
    "QONNX",
    weights=replace(_QONNX, computes=False, roundings=None),
    activations=_QONNX,
    biases=Accepts((Integers(32), Integers(31, False)), whole=True, zero_points=False, computes=False),
    refused_layers=(
        (
            nn.RNNBase,
            "QONNX has no loop over time, and its readers take no recurrent layers. Use export_onnx_qdq, or call a "
            "cell once for each step.",
        ),
    ),
    call="export_qonnx",
    elsewhere="export_onnx_qdq",
)

TARGETS = {"onnx-qcdq": ONNX_QCDQ, "onnx-qdq": ONNX_QDQ, "onnx-integer": ONNX_INTEGER, "qonnx": QONNX}
