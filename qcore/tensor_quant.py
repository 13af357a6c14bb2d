"""What every resolved quantizer has in common: how it is called, intercepted, saved and told apart."""

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from .declare.inject import QuantizerType
from .errors import QuantizerError
from .grid import Grid
from .locate import path_of

__all__ = ["Intercept", "Kept", "TensorQuant"]

Intercept = Callable[..., tuple[Tensor, Grid | None]]  # (quantizer, x, *context) -> values, grid

_sources = itertools.count()
_VERSION = "; version 1"  # of what a saved state means


class Kept(dict[Any, Any]):
    """What a block of `frozen` keeps for one module; nothing in it is used once the block has ended.

    Blocks of several threads may end in any order, and somebody may hold on to this record for a moment longer.

    Args:
        outer: the record of the block around this one, or None.

    Example:
        >>> outer = Kept(None)
        >>> inner = Kept(outer)
        >>> outer.live = False
        >>> inner.lasting() is inner
        True
        >>> inner.live = False
        >>> inner.lasting() is None
        True
    """

    live = True

    def __init__(self, outer: "Kept | None") -> None:
        super().__init__()
        self.outer = outer

    def lasting(self) -> "Kept | None":
        """The innermost record whose block lasts: this one, or one around it."""
        found: Kept | None = self
        while found is not None and not found.live:
            found = found.outer
        return found


class TensorQuant(nn.Module):
    """A resolved quantizer: a module that layers own as ``weight_quant``, ``act_quant`` and so on.

    Subclasses implement `_quantize` and `scheme`. Invariant: ``quantize`` returns values on the grid it returns; the
    grid is None where they lie on none.

    Attributes:
        quantizer: the declaration it was resolved from, or None if it was built by hand.
        provided: what the layer contributed to it (shape, device ...).
        written: for each setting given by keyword, the keyword.
        intercept: called as ``(quant, x, *context)`` instead of `_quantize`, see `bitwright.nn.intercepted`.
        of_parameter: whether it quantizes a weight or bias, whose range is known without data.
        of_gradient: whether it quantizes what flows backward.
        source: a number that no other quantizer of this process has; marks the grids of one stored scale.

    Example:
        >>> from bitwright.qcore import Integers
        >>> class Signs(TensorQuant):  # a kind of its own: what `_quantize` returns must lie on the grid it returns
        ...     def _quantize(self, x, *context):
        ...         scale = x.detach().abs().mean()
        ...         grid = Grid(scale, number_format=Integers(2, narrow_range=True))
        ...         return torch.where(x < 0, -scale, scale), grid
        ...
        ...     def scheme(self):
        ...         return "signs"
        >>> values, grid = Signs().quantize(torch.tensor([0.5, -1.5]))
        >>> values, grid.to_int(values)
        (tensor([ 1., -1.]), tensor([ 1, -1], dtype=torch.int8))
    """

    quantizer: QuantizerType | None = None
    provided: Mapping[str, object] = {}
    written: Mapping[str, str] = {}
    intercept: Intercept | None = None
    of_parameter = False
    of_gradient = False
    truncates = False  # whether it drops bits of a grid, which it is handed
    follows_input = False  # whether its grid is derived from the input's and the weight's (biases)
    _quantize: Callable[..., tuple[Tensor, Grid | None]]  # what subclasses implement
    _kept: Kept | None = None  # grids that depend on no input, while the model is frozen
    _served: Sequence[tuple[weakref.ref[nn.Module], str]] = ()  # the layers, and their slots
    _stale = False  # whether `initialize` is due before the next use
    _absent: str | None = None  # while a file is loaded that says nothing of this quantizer: the prefix of its keys

    def __init__(self) -> None:
        super().__init__()
        self.source = next(_sources)
        self.register_load_state_dict_post_hook(_forgive)
        self.register_forward_pre_hook(_unchanged)

    def quantize(self, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
        """The values moved onto the grid, and the grid; while being exported the grid may be None."""
        if self._stale:
            self._stale = False
            self.initialize(x.detach())
        return self._quantize(x, *context) if self.intercept is None else self.intercept(self, x, *context)

    def forward(self, x: Tensor, *context: object) -> Tensor:
        """The values moved onto the grid."""
        return self.quantize(x, *context)[0]

    @torch.no_grad()
    def codes(self, x: Tensor, *context: object) -> tuple[Tensor, Grid]:
        """The integers that ``x`` is moved to, exactly, in the smallest type that holds their range; and the grid.

        Raises:
            QuantizerError: the values lie on no grid of integers.
        """
        values, grid = self._quantize(x if x.dtype == torch.float64 else x.float(), *context)
        if grid is None:
            kind = type(self).__name__
            raise QuantizerError(
                f"{path_of(self)}: {kind} puts values on no grid of integers, so they have none. Return a Grid from "
                f"{kind}._quantize where there is one."
            )
        return grid.to_int(values), grid

    @property
    def calibrated(self) -> bool:
        """Whether the grid is known. False: it has seen no data, and evaluation uses the range of the input."""
        return True

    @property
    def calibrating(self) -> bool:
        """Whether training forwards still measure their input: the range is not learned yet."""
        return False

    def progress(self) -> str:
        """What there is to say of the calibration, such as ``"calibrating, 100 of 300 steps"``; else nothing."""
        return ""

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; training in a frozen model forgets the grid that was kept."""
        if mode and self._kept:
            self._kept.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._kept:
            self._kept.clear()  # it was of another type, or on another device
        return super()._apply(fn, recurse)

    def scheme(self) -> str:
        """One line that says what the numbers mean; saved with the state, and compared when it is loaded."""
        raise NotImplementedError

    def initialize(self, x: Tensor) -> None:
        """Set state that starts from a weight or bias; called before the first use, and after `rederive`."""

    def rederive(self) -> None:
        """Set such state anew at the next use: the tensor was replaced, or its file held no state of quantizers."""
        self._stale = type(self).initialize is not TensorQuant.initialize

    # Who is served: layers that share a quantizer are measured together

    def serve(self, layer: nn.Module, slot: str) -> None:
        """Count a layer among those that use this quantizer."""
        served = [each for each in self._served if each[0]() is not None]
        served = [each for each in served if each[0]() is not layer or each[1] != slot]
        self._served = [*served, (weakref.ref(layer), slot)]

    def _parameters_served(self) -> list[Tensor]:
        """The weights (or biases) of every layer that uses this quantizer."""
        found = ((ref(), slot) for ref, slot in self._served)
        return [layer.tensor_of(slot) for layer, slot in found if layer is not None]  # type: ignore[operator]

    # State

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        if self._stale:  # a file says what the next use would find; the weight may change until then
            with torch.no_grad():
                for tensor in self._parameters_served()[:1]:
                    self.initialize(tensor.detach())
        super()._save_to_state_dict(destination, prefix, keep_vars)
        text = torch.frombuffer(bytearray(f"{self.scheme()}{_VERSION}".encode()), dtype=torch.uint8)
        destination[prefix + "scheme"] = text  # a tensor, so that every format and safe loading take it

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = state_dict.pop(prefix + "scheme", None)
        self._absent = prefix if saved is None else None
        if saved is not None:
            self._stale = False  # the file knows
        own = self.scheme()
        found = own if saved is None else bytes(saved.tolist()).decode().removesuffix(_VERSION)
        if found != own:  # told as an unexpected key: those are errors with strict=True only
            unexpected_keys.append(
                f"{prefix.removesuffix('.') or type(self).__name__}: the file holds {found}, the model is "
                f"{own}. Build the model with the file's quantizers, or load with strict=False to keep this "
                "one's scheme."
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None, "_served": ()}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.source = next(_sources)  # a copy's scale goes its own way


def _forgive(quant: TensorQuant, keys: _IncompatibleKeys) -> None:
    """A float checkpoint holds no state of quantizers: it is derived, not missing."""
    if quant._absent is not None:
        keys.missing_keys[:] = [key for key in keys.missing_keys if not key.startswith(quant._absent)]
        quant._absent = None


def _unchanged(quant: TensorQuant, inputs: tuple[object, ...]) -> None:
    """No more than there: torch's fast paths, which compute past the layers inside, keep off modules with hooks."""
