"""Which tokens count: those that are no padding."""

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from ...errors import GraphError
from ...recording.examples import Call
from .products import Linear, Product

__all__ = ["USUAL", "Masks"]

USUAL = "attention_mask"
UNMASKED = "padding counts, as its inputs are not (samples, tokens, ...)"


class Masks:
    """The masks of all batches. Inputs are (samples, tokens, ...), (samples * tokens, ...), or (tokens, samples, ...).

    The last are told from the first by their sizes.

    Args:
        masks: for each batch (samples, tokens), not 0 where a token counts; None for all.

    Example:
        >>> import torch
        >>> masks = Masks([torch.tensor([[1, 0]])])
        >>> masks.of(0, Linear(), torch.ones(1, 2, 8), None)
        (tensor([ True, False]), '')
        >>> masks.of(0, Linear(), torch.ones(1, 8), None)  # one for each sample
        (None, '')
    """

    def __init__(self, masks: Sequence[Tensor | None]) -> None:
        known = [None if each is None else each != 0 for each in masks]
        self._masks = [None if each is None or bool(each.all()) else each for each in known]

    @classmethod
    def among(cls, asked: str, model: nn.Module, calls: Sequence[Call], name: str | None) -> "Masks":
        """The masks among the arguments of forwards.

        Args:
            asked: the algorithm, for messages.
            model: what is called.
            calls: the arguments.
            name: of the argument; None for no masks.

        Raises:
            GraphError: no batch has it, or it is no mask of tokens. `USUAL` may be missing.
        """
        if name is None:
            return cls([None] * len(calls))
        found = [_named(model, call).get(name) for call in calls]
        if name != USUAL and all(each is None for each in found):
            names = ", ".join(dict.fromkeys(key for call in calls for key in _named(model, call))) or "none"
            raise GraphError(
                f"{asked}: mask={name!r} is no argument that data gives; these are {names}. Leave mask out where all "
                "tokens count."
            )
        for each in found:
            if each is not None and not (isinstance(each, Tensor) and each.ndim == 2):
                what = f"has the shape {tuple(each.shape)}" if isinstance(each, Tensor) else f"is {each!r}"
                raise GraphError(
                    f"{asked}: the mask {name} {what}, and says nothing of tokens: that is a tensor (samples, tokens). "
                    "Write mask=None to count all tokens."
                )
        return cls(found)

    def of(self, batch: int, product: Product, x: Tensor, chosen: Tensor | None) -> tuple[Tensor | None, str]:
        """Which of the rows that a product takes from an input count, None for all; and what a user should know.

        Args:
            batch: its number.
            product: takes rows.
            x: the input.
            chosen: the positions of each sample that are taken, (samples, P); None for all.
        """
        mask = self._masks[batch]
        if mask is None:
            return None, ""
        mask = mask.to(x.device)
        if isinstance(product, Linear):
            if x.ndim == 2 and x.shape[0] == mask.shape[0]:
                return None, ""
            if x.ndim == 2 and x.shape[0] == mask.numel():
                return mask.flatten(), ""
            if x.ndim > 2 and x.shape[:2] != mask.shape and x.shape[:2] == mask.mT.shape:
                mask = mask.mT
            if x.ndim > 2 and x.shape[:2] == mask.shape:
                spread = mask.unsqueeze(2).expand(-1, -1, math.prod(x.shape[2:-1])).flatten(1)
                return (spread if chosen is None else spread.gather(1, chosen)).flatten(), ""
        return None, UNMASKED


def _named(model: nn.Module, call: Call) -> Mapping[str, Any]:
    """Arguments by their names."""
    args, kwargs = call
    try:
        return signature(model.forward).bind_partial(*args, **kwargs).arguments | dict(kwargs)
    except (TypeError, ValueError):
        return kwargs
