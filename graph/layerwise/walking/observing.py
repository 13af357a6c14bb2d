"""Seeing which inputs meet the weights of a model while it runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....qcore import Grid, QuantTensor, TensorQuant, grid_of, values_of
from ....qcore.tensor_quant import Intercept
from ...errors import GraphError
from ...recording.kinds import kind_of, name_of
from ...recording.tensors import storage_of, tensors_in
from .products import Linear, Product, product_of
from .sites import Site
from .unrolling import unrolled

__all__ = ["Meet", "Meeting", "following", "observing"]


@dataclass(frozen=True)
class Meeting:
    """A weight meets an input.

    Attributes:
        site: the weight.
        product: what multiplies the two; None if nothing does that is known.
        x: the input.
        weight: the weight, as it comes in.
        rows: which rows of the weight these are, the first and the one behind the last.
        why: where no product is known, what there is instead.
    """

    site: Site
    product: Product | None
    x: Tensor
    weight: Tensor
    rows: tuple[int, int]
    why: str = ""


Meet = Callable[[Meeting], Tensor | None]
"""Called where a weight meets an input; what it returns replaces the weight."""

_VIEWS = frozenset({"reshape", "permute", "squeeze", "unsqueeze", "getitem", "chunk", "split", "select"})
_COPIES = frozenset({"contiguous", "to"})  # that keep every number in its place


@dataclass(frozen=True)
class _Place:
    """Where a weight, or a copy of some rows of it, lies in memory.

    Attributes:
        site: the weight.
        tensor: the rows; held, so that their memory isn't given to another.
        start: the number of the first; None for a copy that has the numbers in other places.
    """

    site: Site
    tensor: Tensor
    start: int | None = 0

    def rows(self, part: Tensor) -> tuple[int, int] | None:
        """Which rows of the weight a tensor in the same memory has; None if it has no whole rows, or turned ones."""
        base = self.tensor
        if self.site.turned:  # its layer, which turns it, is known to use the whole
            whole = self.site.parameter.shape
            return (0, whole[0]) if part.shape == whole else None
        if self.start is None or part.ndim != base.ndim or part.shape[1:] != base.shape[1:]:
            return None
        if any(a != b for a, b, n in zip(part.stride(), base.stride(), part.shape, strict=True) if n > 1):
            return None
        apart, step = part.storage_offset() - base.storage_offset(), base.stride(0)
        if apart % (step or 1):
            return None
        first = self.start + int(apart // (step or 1))
        return first, first + part.shape[0]


class _Watch(TorchFunctionMode):
    """Follows weights by their memory to the functions that multiply them."""

    def __init__(self, meet: Meet) -> None:
        super().__init__()
        self._meet = meet
        self._places: dict[int, _Place] = {}

    def follow(self, place: _Place) -> None:
        """Look out for a tensor."""
        where = storage_of(place.tensor)
        if where is not None:
            self._places[where] = place

    def forget(self) -> None:
        """Look out for nothing any more."""
        self._places.clear()

    def _place(self, tensor: object) -> _Place | None:
        where = storage_of(values_of(tensor)) if isinstance(tensor, Tensor) else None
        return None if where is None else self._places.get(where)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._places:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            kind = kind_of(func) if callable(func) else None
            named = None if kind is None else product_of(func, args, kwargs)
            if named is not None:
                other = self._multiplied(*named)
                if other is not None:
                    args, kwargs = _with_weight(args, kwargs, other)
            else:
                known = [(each, place) for each in tensors_in((args, kwargs)) if (place := self._place(each))]
                if known and kind in _VIEWS | _COPIES:
                    out = func(*args, **kwargs)
                    self._moved(known[0][1], known[0][0], kind in _COPIES, out)
                    return out
                if known:
                    self._otherwise(func, kind, known, args, kwargs)
        return func(*args, **kwargs)

    def _multiplied(self, product: Product, given: Mapping[str, Any]) -> Tensor | None:
        weight, place = values_of(given["weight"]), self._place(given["weight"])
        if place is None:
            return None
        rows, x, grid = place.rows(weight), values_of(given["input"]), grid_of(given["weight"])
        if rows is None or (rows != (0, place.site.parameter.shape[0]) and type(product) is not Linear):
            return self._meet(Meeting(place.site, None, x, weight, (0, 0), "its layer multiplies parts of it"))
        other = self._meet(Meeting(place.site, product, x, weight, rows))
        return other if other is None or grid is None else QuantTensor.wrap(other, grid)

    def _moved(self, place: _Place, weight: Tensor, copied: bool, out: object) -> None:
        """Follow what a function made of a weight."""
        rows = place.rows(weight)
        for made in tensors_in(out):
            if storage_of(made) != storage_of(weight):
                kept = copied and rows is not None and made.shape == weight.shape
                self.follow(_Place(place.site, made, rows[0] if kept and rows is not None else None))

    def _otherwise(
        self, func: object, kind: str | None, known: list[tuple[Tensor, _Place]], args: Any, kwargs: Any
    ) -> None:
        """A function that isn't known as a product reads weights, and something else."""
        others = [each for each in tensors_in((args, kwargs)) if self._place(each) is None]
        for weight, place in known if others else ():
            said = (
                "it selects rows of it, for which round-to-nearest is best"
                if kind == "embedding"
                else f"its layer uses it in {name_of(func)}, which is neither a linear layer nor a convolution"
            )
            self._meet(Meeting(place.site, None, others[0], weight, (0, 0), said))


def _with_weight(
    args: tuple[Any, ...], kwargs: dict[str, Any], weight: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if len(args) > 1:
        return (args[0], weight, *args[2:]), kwargs
    return args, {**kwargs, "weight": weight}


@contextmanager
def observing(
    model: nn.Module,
    sites: Mapping[TensorQuant, Site],
    meet: Meet | None,
    chosen: Mapping[Site, Tensor] | None = None,
    grids: dict[Site, Grid] | None = None,
    kept: dict[Site, tuple[Tensor, Grid | None]] | None = None,
    *,
    floats: bool = False,
) -> Iterator[None]:
    """See what the weights of a model meet for the length of the block. Recurrent layers run step by step.

    Args:
        model: with the layers of the sites.
        sites: by their quantizers.
        meet: called whenever a weight meets an input; None where nobody looks, so that other weights stand in alone.
        chosen: what stands in for the quantized weight of a site, as its quantizer sees the weight.
        grids: where the grid of each weight is put, as the forward had it.
        kept: where quantized weights are kept for the next time, if they depend on no input.
        floats: all quantizers are off, and the weights are the float ones.
    """
    watch = None if meet is None else _Watch(meet)
    known = {} if chosen is None else chosen

    def intercept(path: str) -> Intercept:
        before = quantizers[path].__dict__.get("intercept")
        site = sites.get(quantizers[path])

        def stand_in(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            if floats:
                values, grid = x, None
            elif site is not None and kept is not None and site in kept and not context:
                values, grid = kept[site]
            else:
                values, grid = quant._quantize(x, *context) if before is None else before(quant, x, *context)
            if site is not None:
                if kept is not None and not floats and not context:
                    kept[site] = values, grid
                if grids is not None and grid is not None:
                    grids[site] = grid
                values = known[site].to(values.dtype) if site in known and not floats else values
                if watch is not None:
                    watch.follow(_Place(site, values))
            return values, grid

        return stand_in

    quantizers = quantizers_of(model)
    if not floats:
        quantizers = {path: each for path, each in quantizers.items() if each in sites}
    with ExitStack() as stack:
        stack.enter_context(unrolled(model))
        stack.enter_context(intercepted(quantizers, intercept))
        if watch is not None:
            stack.enter_context(watch)
            stack.callback(watch.forget)
        yield


@contextmanager
def following(reference: nn.Module, sites: Iterable[Site], meet: Meet | None) -> Iterator[None]:
    """The same for the float model whose layers have the paths of the sites'.

    Raises:
        GraphError: it has other layers.
    """
    named = dict(reference.named_modules())
    watch = _Watch((lambda meeting: None) if meet is None else meet)
    for site in sites:
        weight = getattr(named.get(site.module), site.slot.parameter or "", None)
        if not isinstance(weight, Tensor) or weight.shape != site.parameter.shape:
            lacks = "no layer" if site.module not in named else "another layer at"
            raise GraphError(
                f"The reference has {lacks} {site.module}. Pass the float model that this one was made from, with the "
                "same paths."
            )
        watch.follow(_Place(site, weight))
    if meet is None:
        yield
        return
    with watch:
        yield
