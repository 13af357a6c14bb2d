"""What every resolved quantizer has in common: how it is called, lowered, saved and told apart."""

import itertools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .attributes import assign
from .errors import BitwrightWarning
from .grid import Grid
from .inject import QuantizerType

__all__ = ["TensorQuant"]

_sources = itertools.count()


class TensorQuant(nn.Module):
    """A resolved quantizer: a module that layers own as ``weight_quant``, ``act_quant`` and so on.

    Subclasses implement `_quantize` and `scheme`. Invariant: ``quantize`` returns values on the grid it returns.

    Attributes:
        quantizer: the declaration it was resolved from, or None if it was built by hand.
        provided: what the layer contributed to it (shape, device ...).
        written: for each setting given by keyword, the keyword.
        lowering: set by an exporter for the time of an export: called instead of `_quantize`.
        source: a number that no other quantizer of this process has; marks the grids that come from it.
    """

    quantizer: QuantizerType | None = None
    provided: Mapping[str, Any] = {}
    written: Mapping[str, str] = {}
    lowering: Any = None
    _quantize: Callable[..., tuple[Tensor, Grid]]  # what subclasses implement
    follows_input = False  # whether its grid is derived from the input's and the weight's (biases)

    def __init__(self) -> None:
        super().__init__()
        assign(self, source=next(_sources))

    def quantize(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid | None]:
        """The values moved onto the grid, and the grid; while being exported the grid may be None."""
        return self._quantize(x, *context) if self.lowering is None else self.lowering(self, x, *context)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """The values moved onto the grid."""
        return self.quantize(x, *context)[0]

    def scheme(self) -> str:
        """One line that says what the numbers mean; saved with the state, and compared when it is loaded."""
        raise NotImplementedError

    def initialize(self, x: Tensor) -> None:
        """Set state from a tensor, where there is any that starts from one (a weight's learned scale)."""

    def rederive(self, x: Tensor) -> None:
        """Set such state anew: the tensor was replaced, by a checkpoint that holds no quantizer state."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        text = torch.tensor(list(self.scheme().encode()), dtype=torch.uint8)
        destination[prefix + "scheme"] = text  # a tensor, so that every format and safe loading take it

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = state_dict.pop(prefix + "scheme", None)
        if saved is not None:
            found = bytes(saved.tolist()).decode()
            if found != self.scheme():
                message = (
                    f"{prefix.removesuffix('.')}: the file holds {found}, the model is {self.scheme()}. Build the "
                    "model with the file's quantizers, or load with strict=False to keep this one's scheme."
                )
                if strict:
                    error_msgs.append(message)
                    return
                warnings.warn(message, BitwrightWarning, stacklevel=2)
        own: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, own, unexpected_keys, error_msgs)
        if saved is not None:  # a float checkpoint has no quantizer state: it is derived, not missing
            missing_keys += own

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.source = next(_sources)  # a copy's grid is another grid: its scale goes its own way
