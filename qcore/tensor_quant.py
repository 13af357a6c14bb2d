"""What every resolved quantizer has in common: how it is called, lowered, saved and told apart."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .attributes import assign
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

    Example:
        >>> class Signs(TensorQuant):  # a kind of its own: what `_quantize` returns must lie on the grid it returns
        ...     def _quantize(self, x, *context):
        ...         scale = x.detach().abs().mean()
        ...         grid = Grid(scale, bit_width=2, narrow_range=True, source=self.source)
        ...         return torch.where(x < 0, -scale, scale), grid
        ...
        ...     def scheme(self):
        ...         return "signs"
        >>> values, grid = Signs().quantize(torch.tensor([0.5, -1.5]))
        >>> values, grid.to_int(values)
        (tensor([ 1., -1.]), tensor([ 1, -1], dtype=torch.int8))
    """

    quantizer: QuantizerType | None = None
    provided: Mapping[str, Any] = {}
    written: Mapping[str, str] = {}
    lowering: Any = None
    _quantize: Callable[..., tuple[Tensor, Grid]]  # what subclasses implement
    follows_input = False  # whether its grid is derived from the input's and the weight's (biases)
    _absent: str | None  # while a file is loaded that says nothing of this quantizer: the prefix of its keys

    def __init__(self) -> None:
        super().__init__()
        assign(self, _absent=None)
        self.renew()
        self.register_load_state_dict_post_hook(_forgive)
        self.register_forward_pre_hook(_unchanged)

    def renew(self) -> None:
        """Make the grids of this quantizer other ones than any before it: a copy's scale goes its own way."""
        vars(self)["source"] = next(_sources)

    def quantize(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid | None]:
        """The values moved onto the grid, and the grid; while being exported the grid may be None."""
        return self._quantize(x, *context) if self.lowering is None else self.lowering(self, x, *context)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """The values moved onto the grid."""
        return self.quantize(x, *context)[0]

    @property
    def calibrated(self) -> bool:
        """Whether the grid is known. False: it has seen no data, and evaluation uses the range of the input."""
        return True

    @property
    def calibrating(self) -> bool:
        """Whether training forwards still measure their input: the range is not learned yet."""
        return False

    def scheme(self) -> str:
        """One line that says what the numbers mean; saved with the state, and compared when it is loaded."""
        raise NotImplementedError

    def initialize(self, x: Tensor) -> None:
        """Set state from a tensor, where there is any that starts from one (a weight's learned scale)."""

    def rederive(self, x: Tensor) -> None:
        """Set such state anew: the tensor was replaced, by a checkpoint that holds no quantizer state."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        text = torch.frombuffer(bytearray(self.scheme().encode()), dtype=torch.uint8)
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
        assign(self, _absent=prefix if saved is None else None)
        own = self.scheme()
        found = own if saved is None else bytes(saved.tolist()).decode()
        if found != own:  # told as an unexpected key: those are errors with strict=True only
            unexpected_keys.append(
                f"{prefix.removesuffix('.') or type(self).__name__}: the file holds {found}, the model is "
                f"{own}. Build the model with the file's quantizers, or load with strict=False to keep this "
                "one's scheme."
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.renew()


def _forgive(quant: TensorQuant, keys: Any) -> None:
    """A float checkpoint holds no state of quantizers: it is derived, not missing."""
    if quant._absent is not None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(quant._absent)]
        assign(quant, _absent=None)


def _unchanged(quant: TensorQuant, inputs: tuple[object, ...]) -> None:
    """No more than there: torch's fast paths, which compute past the layers inside, keep off modules with hooks."""
