"""Seeing which inputs meet the weights of a model while it runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ....nn.contexts.intercepting import intercepted, quantizers_of
from ....qcore import Grid, TensorQuant, values_of
from ....qcore.tensor_quant import Intercept
from ...errors import GraphError
from ...recording.kinds import kind_of
from ...recording.tensors import storage_of, tensors_in
from .products import Product, product_of
from .sites import Site

__all__ = ["Meeting", "following", "observing"]

Meeting = Callable[[Site, Product | None, Tensor, Tensor], Tensor | None]
"""Called as ``(site, product, input, weight)`` where a weight meets an input; what it returns replaces the weight.

The product is None for a function that isn't known as one."""

_MOVES = frozenset({"reshape", "permute", "squeeze", "unsqueeze", "contiguous", "getitem", "chunk", "split", "to"})


class _Watch(TorchFunctionMode):
    """Follows weights by their memory to the functions that multiply them."""

    def __init__(self, meet: Meeting) -> None:
        super().__init__()
        self._meet = meet
        self._sites: dict[
            int, tuple[Site, Tensor]
        ] = {}  # the tensor is held, so that its memory isn't given to another

    def follow(self, site: Site, weight: Tensor) -> None:
        """Look out for a tensor."""
        where = storage_of(weight)
        if where is not None:
            self._sites[where] = (site, weight)

    def forget(self) -> None:
        """Look out for nothing any more."""
        self._sites.clear()

    def _site(self, tensor: object) -> Site | None:
        where = storage_of(tensor) if isinstance(tensor, Tensor) else None
        found = None if where is None else self._sites.get(where)
        return None if found is None else found[0]

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self._sites:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            kind = kind_of(func) if callable(func) else None
            named = None if kind is None else product_of(func, args, kwargs)
            if named is not None:
                product, given = named
                site = self._site(given["weight"])
                if site is not None:
                    other = self._meet(site, product, values_of(given["input"]), given["weight"])
                    if other is not None:
                        args, kwargs = _with_weight(args, kwargs, other)
            else:
                read = tensors_in((args, kwargs))
                sites = [(each, self._site(each)) for each in read]
                known = [(each, site) for each, site in sites if site is not None]
                if known and kind not in _MOVES and len(read) > len(known):
                    for weight, site in known:
                        others = [each for each, other in sites if other is None]
                        self._meet(site, None, others[0], weight)
                elif known and kind in _MOVES:
                    out = func(*args, **kwargs)
                    for made in tensors_in(out):
                        self.follow(known[0][1], made)
                    return out
        return func(*args, **kwargs)


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
    meet: Meeting,
    chosen: Mapping[Site, Tensor] | None = None,
    grids: dict[Site, Grid] | None = None,
    kept: dict[Site, tuple[Tensor, Grid | None]] | None = None,
    *,
    floats: bool = False,
) -> Iterator[None]:
    """See what the weights of a model meet for the length of the block.

    Args:
        model: with the layers of the sites.
        sites: by their quantizers.
        meet: called whenever a weight meets an input.
        chosen: what stands in for the quantized weight of a site, as its quantizer sees the weight.
        grids: where the grid of each weight is put, as the forward had it.
        kept: where quantized weights are kept for the next time, if they depend on no input.
        floats: all quantizers are off, and the weights are the float ones.
    """
    watch = _Watch(meet)
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
                watch.follow(site, values)
            return values, grid

        return stand_in

    quantizers = quantizers_of(model)
    if not floats:
        quantizers = {path: each for path, each in quantizers.items() if each in sites}
    with ExitStack() as stack:
        stack.enter_context(intercepted(quantizers, intercept))
        stack.enter_context(watch)
        stack.callback(watch.forget)
        yield


@contextmanager
def following(reference: nn.Module, sites: Iterable[Site], meet: Meeting) -> Iterator[None]:
    """The same for the float model whose layers have the paths of the sites'.

    Raises:
        GraphError: it has other layers.
    """
    named, watch = dict(reference.named_modules()), _Watch(meet)
    for site in sites:
        weight = getattr(named.get(site.module), site.slot.parameter or "", None)
        if not isinstance(weight, Tensor) or weight.shape != site.parameter.shape:
            lacks = "no layer" if site.module not in named else "another layer at"
            raise GraphError(
                f"The reference has {lacks} {site.module}. Pass the float model that this one was made from, with the "
                "same paths."
            )
        watch.follow(site, weight)
    with watch:
        yield
