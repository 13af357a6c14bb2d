"""The integer-only reference: what a model computes on hardware that has integers alone."""

from collections.abc import Mapping

from torch import Tensor, nn

from ..qcore.models import require_model
from .errors import ExportError
from .integer_requantize import Requantization, requantization
from .integer_run import IntegerRun, run_lowered
from .integers import integers_for
from .layer_integers import Integers
from .lowering import evaluating, quantizers_of, unchanged

__all__ = ["run_integers"]


def run_integers(
    model: nn.Module,
    inputs: Tensor | tuple[object, ...],
    *,
    integers: Integers | None = None,
    requantize: str | Requantization = "scale",
    accumulator_bits: int = 32,
    kwargs: Mapping[str, object] | None = None,
) -> IntegerRun:
    """Run a model with integer arithmetic: its forward, on the integers of its weights, biases and activations.

    Sums of products are integers; at each quantizer they are moved to the next grid. Pooling, ReLU, reshaping,
    concatenation, addition and averaging need the integers alone. Any other operation (sigmoid, a batch norm that was
    not folded ...) is computed on values up to the next quantizer, and ``run.floats`` names each.

    Args:
        model: gives the order of operations; it is left as it was.
        inputs: one tensor, or a tuple of the positional arguments.
        integers: weights, biases and grids, such as `Integers.load` returns; by default the model's own.
        requantize: how sums move to the next grid: ``"scale"``, float scales as the fake-quantized model has them;
            ``"multiplier"``, an integer multiplier and a shift; ``"shift"``, for scales that are powers of two; or a
            callable such as ``ByMultiplier(bits=16)``.
        accumulator_bits: width of the accumulators, up to 53.
        kwargs: keyword arguments.

    Returns:
        An `IntegerRun`.

    Raises:
        ExportError: not a model, an accumulator that overflows (the layer, the channel and the sum are named), or
            integers that are not this model's.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8Act, Int32Bias
        >>> layer = qnn.QuantLinear(8, 4, bias_quant=Int32Bias, input_quant=Int8Act(scale=0.5)).eval()
        >>> run, x = run_integers(nn.Sequential(layer), torch.randn(2, 8)), torch.randn(2, 8)
        >>> print(run)
        1 tensor of integers, 1 layer with sums; nothing computed in floats
        >>> torch.allclose(run_integers(nn.Sequential(layer), x).outputs, layer(x))
        True
    """
    require_model("run_integers", model, ExportError)
    if not 2 <= accumulator_bits <= 53:
        raise ExportError(f"accumulator_bits={accumulator_bits} is not possible: expected 2 to 53. Write 32.")
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    found = integers_for("run_integers", model, inputs, kwargs, integers)
    with unchanged(model), evaluating(model):
        return run_lowered(
            model,
            quantizers_of(model),
            found.quantized(),
            arguments,
            kwargs,
            requantization(requantize),
            accumulator_bits,
            keep=True,
        )
