"""Keeping what evaluation would work out again for every batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from ..qcore import TensorQuant
from ..qcore.models import require_model
from ..qcore.tensor_quant import Kept
from .slots import QuantLayer

__all__ = ["frozen"]

Model = TypeVar("Model", bound=nn.Module)


@contextmanager
def frozen(model: Model) -> Iterator[Model]:
    """Keep quantized weights, biases and the grids of activations for the length of the block.

    Outside of it every forward works them out from the parameters as they are. In the block the first forward in
    evaluation, without gradients, works them out, and later ones use them: for loops over an evaluation set.

    - A change of a quantized parameter in the block is not seen until the block ends.
    - A forward in training mode, one with gradients enabled and one under ``torch.compile`` uses nothing that is kept.
      ``train()`` forgets it, so that evaluation after training steps in the block is that of the new parameters.
    - Blocks may be nested: the inner one starts anew. What was kept is gone when a block ends, also by an exception;
      copies and pickles of the model hold none of it. Blocks of several threads may overlap: the model is frozen until
      the last one ends.

    Args:
        model: any module with quantized layers.

    Yields:
        The model.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import torch
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantLinear(2, 1, bias=False).eval()
        >>> with qnn.frozen(layer), torch.no_grad():
        ...     before = layer(torch.ones(2))
        ...     _ = layer.weight.mul_(2)
        ...     print(torch.equal(layer(torch.ones(2)), before))
        True
        >>> torch.equal(layer(torch.ones(2)), 2 * before)
        True
    """
    require_model("frozen", model)
    parts = [each for each in model.modules() if isinstance(each, (TensorQuant, QuantLayer))]
    own = [Kept(each._kept if isinstance(each._kept, Kept) else None) for each in parts]
    for each, kept in zip(parts, own, strict=True):
        each._kept = kept
    try:
        yield model
    finally:
        for each, kept in zip(parts, own, strict=True):
            kept.live = False
            innermost = each._kept
            each._kept = innermost.lasting() if isinstance(innermost, Kept) else None
