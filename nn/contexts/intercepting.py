"""Standing in for quantizers: what every pass over a model that looks at or changes their work is built on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from ...qcore import TensorQuant
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept

__all__ = ["intercepted", "quantizers_of"]


def quantizers_of(model: nn.Module) -> dict[str, TensorQuant]:
    """Every quantizer of a model's forward by its path; one that several layers share counts once, by its first path.

    Quantizers of gradients are not among them.

    Raises:
        QuantizerError: what was given is no model.

    Example:
        >>> import bitwright.nn as qnn
        >>> list(quantizers_of(nn.Sequential(qnn.QuantLinear(4, 2), qnn.QuantReLU())))
        ['0.weight_quant', '1.act_quant']
    """
    require_model("quantizers_of", model)
    found = {name: each for name, each in model.named_modules() if isinstance(each, TensorQuant)}
    return {name: each for name, each in found.items() if not each.of_gradient}


@contextmanager
def intercepted(quantizers: Mapping[str, TensorQuant], intercept: Callable[[str], Intercept]) -> Iterator[None]:
    """Have something else do the work of quantizers for the length of the block.

    Args:
        quantizers: by path, as `quantizers_of` gives them.
        intercept: for each path, what is called as ``(quant, x, *context)`` instead of the quantizer's arithmetic. It
            returns the values that the layer goes on with, and their grid, or None where they lie on none.
            ``quant._quantize(x, *context)`` is the quantizer's own work.

    Blocks may be nested: the inner one stands in. When a block ends, also by an exception, what was before is back.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(4, 2, bias=False, weight_bit_width=2)
        >>> def error(path):
        ...     def measured(quant, x, *context):
        ...         values, grid = quant._quantize(x, *context)
        ...         print(path, bool((values - x).abs().max() <= grid.scale / 2))
        ...         return values, grid
        ...
        ...     return measured
        >>> with intercepted(quantizers_of(layer), error):
        ...     _ = layer(torch.ones(4))
        weight_quant True
    """
    before = [(each, each.__dict__.get("intercept")) for each in quantizers.values()]
    try:
        for name, each in quantizers.items():
            each.__dict__["intercept"] = intercept(name)  # no setting, so nothing to be checked
        yield
    finally:
        for each, former in before:
            each.__dict__.pop("intercept", None)
            if former is not None:
                each.__dict__["intercept"] = former
