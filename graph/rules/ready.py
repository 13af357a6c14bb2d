"""Ready rules: keywords of layers as plain dicts, to be printed, merged and edited."""

from ... import quantizers
from ...qcore.declare.inject import QuantizerType
from ...quantizers import Int8Act, Int8WeightPerChannel, Int32Bias
from ..errors import GraphError

__all__ = ["W2", "W3", "W4", "W4A4", "W4A8", "W8", "W8A8", "integer"]


def integer(weights: int, activations: int) -> dict[str, object]:
    """Settings for targets that compute with integers only: weights per channel, activations, and 32-bit biases.

    They are for ``placement="outputs"``, where every tensor between layers lies on a grid, and serve with
    ``placement="inputs"``, too.

    Args:
        weights: bits of the weights.
        activations: bits of what flows.

    Raises:
        GraphError: a number of bits that no integers have.

    Example:
        >>> integer(4, 8)
        {'weight_quant': Int4WeightPerChannel, 'input_quant': Int8Act, 'bias_quant': Int32Bias}
    """
    return {
        "weight_quant": _of_width(Int8WeightPerChannel, "weights", weights),
        "input_quant": _of_width(Int8Act, "activations", activations),
        "bias_quant": Int32Bias,
    }


def _of_width(quantizer: QuantizerType, what: str, bits: int) -> QuantizerType:
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise GraphError(f"integer: {what}={bits!r} is not possible: expected a whole number of bits from 2 to 16.")
    shipped = getattr(quantizers, quantizer.__name__.replace("8", str(bits), 1), None)
    return shipped if isinstance(shipped, QuantizerType) else quantizer(bit_width=bits)


def _weights(bits: int) -> dict[str, object]:
    return {"weight_quant": _of_width(Int8WeightPerChannel, "weights", bits)}


def _both(weights: int, activations: int) -> dict[str, object]:
    return {**_weights(weights), "input_quant": _of_width(Int8Act, "activations", activations)}


W8A8, W4A8, W4A4 = _both(8, 8), _both(4, 8), _both(4, 4)
W8, W4, W3, W2 = _weights(8), _weights(4), _weights(3), _weights(2)
