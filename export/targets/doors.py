"""The targets that bitwright exports to, each one record."""

from dataclasses import replace

from torch import nn

from ...qcore import BINARY, Integers, TruncQuant
from ...qcore.grid_quant import FLOAT_BITS
from ..onnx.dialects import BIAS, INTEGER, QCDQ, QDQ, Dialect
from .target import PLACES, Accepts, Target

__all__ = ["FPGA_FINN", "FPGA_HLS4ML", "ONNX_INTEGER", "ONNX_QCDQ", "ONNX_QDQ", "PROGRAM", "QONNX", "TARGETS"]


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
_GATES = "its gates are sigmoids and tanhs of floats, and so are its steps. Use export_onnx_qcdq or export_onnx_qdq."
ONNX_INTEGER = replace(
    _INTEGER,
    weights=replace(_INTEGER.weights, whole=True, scales=("tensor", "axis")),
    activations=replace(_INTEGER.activations, any_levels=False, whole=True, scales=("tensor",), dynamic=False),
    float_biases=False,
    refused_layers=(
        (nn.RNNBase, _GATES),
        (nn.RNNCellBase, _GATES),
    ),
    call="export_onnx_integer",
)

_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_IN_FLOATS = (Integers(FLOAT_BITS), Integers(FLOAT_BITS, False), BINARY)
_QONNX = Accepts(
    _IN_FLOATS, whole=True, narrow_unsigned=False, scales=("tensor", "axis"), zero_points=False, computes=False
)
_NO_LOOPS = (
    "QONNX has no loop over time, and its readers take no recurrent layers. Export it by export_onnx_qdq, or call a "
    "cell (QuantLSTMCell) once for each step."
)
QONNX = Target(
    "QONNX",
    weights=_QONNX,
    activations=replace(_QONNX, computes=True, roundings=("half_even", "floor")),
    biases=replace(_QONNX, formats=(Integers(32), Integers(32, False))),
    refused_layers=((nn.RNNBase, _NO_LOOPS),),
    call="export_qonnx",
    elsewhere="export_onnx_qdq",
)

# Compilers that read QONNX, by what their front ends were seen to make of files: finn-plus 1.6.1 and hls4ml 1.3.0.
_UP_TO_8 = (*(Integers(bits, signed) for bits in (8,) for signed in (True, False)), BINARY)
FPGA_FINN = replace(
    QONNX,
    name="FINN",  # which takes floor for rounding to nearest, and leaves wider activations floats
    activations=replace(QONNX.activations, formats=_UP_TO_8, roundings=("half_even",)),
)
_POOLS = (
    "hls4ml refuses AveragePool, and computes other numbers for GlobalAveragePool. Take a convolution with a stride, "
    "or max pooling."
)
FPGA_HLS4ML = replace(
    QONNX,
    name="hls4ml",  # which computes other numbers with float scales of weights in networks of several layers
    weights=replace(QONNX.weights, scales=("tensor",), scale_rules=("power of two",)),
    activations=replace(QONNX.activations, scales=("tensor",)),
    refused_layers=(
        *QONNX.refused_layers,
        *((kind, "hls4ml reads no ConvTranspose. Upsample and convolve.") for kind in _TRANSPOSED),
        *((kind, _POOLS) for kind in _AVERAGES),
        (TruncQuant, "hls4ml reads no Trunc. Write Int8Act in its place."),
    ),
)

_LEVELS = Accepts((Integers(32), Integers(32, False)), any_levels=True, scales=(*PLACES, "other"), computes=False)
PROGRAM = Target(
    "a torch program",
    weights=replace(_LEVELS, float_zero_points=True),
    activations=Accepts(
        (Integers(24), Integers(24, False)),  # the operators clamp float32 numbers, which tell such integers apart
        any_levels=True,
        scales=("tensor", "axis"),
        float_zero_points=True,
        dynamic=True,
        saturates=False,
    ),
    biases=_LEVELS,
    call="export_program",
)

TARGETS = {
    "onnx-qcdq": ONNX_QCDQ,
    "onnx-qdq": ONNX_QDQ,
    "onnx-integer": ONNX_INTEGER,
    "qonnx": QONNX,
    "program": PROGRAM,
    "fpga-hls4ml": FPGA_HLS4ML,
    "fpga-finn": FPGA_FINN,
}
