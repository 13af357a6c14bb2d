"""The nodes of QONNX that stand for quantizers: which one a call becomes, with which attributes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...qcore import BINARY, Floor, HalfEven, TruncQuant, int_bounds
from ...qcore.truncation import Truncation
from ..capture.record import Call

__all__ = ["NOTE", "QONNX_DOMAIN", "TURNED", "QuantNode", "node_of", "rounding_mode"]

QONNX_DOMAIN = "qonnx.custom_op.general"
NOTE = "call"  # what a node's note is called while the graph is edited; a file has it as doc_string
TURNED = " transposed "  # what stands in the note before the order of the dimensions of a weight that was turned

_MODES = {HalfEven: "ROUND", Floor: "FLOOR"}  # those that hls4ml reads


def rounding_mode(rounding: object) -> str | None:
    """What QONNX calls a rounding; None where its readers know none that does the same.

    Example:
        >>> from bitwright.qcore import HalfUp
        >>> rounding_mode(Floor()), rounding_mode(HalfUp())
        ('FLOOR', None)
    """
    return _MODES.get(type(rounding.rounding if isinstance(rounding, Truncation) else rounding))


@dataclass(frozen=True)
class QuantNode:
    """One node: ``Quant`` (integers), ``BipolarQuant`` (-1 and 1) or ``Trunc`` (integers without their low bits).

    Args:
        op_type: the operator.
        bit_width: of the integers that come out.
        signed: whether they may be negative.
        narrow: whether the smallest is left out.
        rounding_mode: ``ROUND`` (half to even) or ``FLOOR``.
        dropped: how many low bits ``Trunc`` drops.
    """

    op_type: str
    bit_width: int = 1
    signed: bool = True
    narrow: bool = False
    rounding_mode: str = "ROUND"
    dropped: int = 0

    def attributes(self) -> dict[str, int | str]:
        """The attributes of the node, as the operator has them.

        Example:
            >>> QuantNode("Quant", 4).attributes()
            {'signed': 1, 'narrow': 0, 'rounding_mode': 'ROUND'}
        """
        flags: dict[str, int | str] = {"signed": int(self.signed), "narrow": int(self.narrow)}
        mode: dict[str, int | str] = {"rounding_mode": self.rounding_mode}
        return {"BipolarQuant": {}, "Trunc": mode}.get(self.op_type, flags | mode)

    def computed(self, x: Tensor, scale: Tensor) -> Tensor:
        """What ``Quant`` or ``BipolarQuant`` makes of a float32 tensor, rounding half to even.

        Example:
            >>> QuantNode("Quant", 3, narrow=True).computed(torch.tensor([-9.0, 0.25, 1.2]), torch.tensor(0.5))
            tensor([-1.5000,  0.0000,  1.0000])
        """
        if self.op_type == "BipolarQuant":
            return torch.where(x >= 0, scale, -scale)
        low, high = int_bounds(self.bit_width, self.signed, self.narrow)
        return torch.round((x / scale).clamp(low, high)) * scale


def node_of(call: Call) -> QuantNode:
    """The node of a call that `check` has let through."""
    grid, mode = call.plain, None if call.stored else rounding_mode(getattr(call.quantizer, "rounding", None))
    if call.grid.number_format == BINARY:
        return QuantNode("BipolarQuant")
    if isinstance(call.quantizer, TruncQuant):
        dropped = call.quantizer.rounding.shift
        return QuantNode("Trunc", grid.bit_width, grid.signed, grid.narrow_range, mode or "FLOOR", dropped)
    return QuantNode("Quant", grid.bit_width, grid.signed, grid.narrow_range, mode or "ROUND")
