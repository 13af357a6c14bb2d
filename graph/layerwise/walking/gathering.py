"""Gathering what the weights of a stage meet, and choosing them one after the other."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .chain import Reached
from .moments import Moments
from .products import Linear, Product
from .sites import Site
from .stages import Kept, Stage

__all__ = ["Gatherer", "View"]

FEWEST, MOST = 2048, 24576  # inputs of a layer that are used, spread over samples; between these, 64 for each column
FOR_EACH_COLUMN = 64
AT_LEAST = 8  # for each column, however many that are
Choose = Callable[[Site, Product, Moments], Any]  # returns a `Choice`


@dataclass(frozen=True)
class View:
    """A stage of the quantized model, or of the float one.

    Attributes:
        stage: what runs.
        kept: its arguments, batch by batch.
        watched: gives a context in which a function sees what the weights meet.
    """

    stage: Stage
    kept: Kept
    watched: Callable[[Any], AbstractContextManager[None]]

    def run(self, number: int, meet: Any) -> bool:
        """Run the stage for one batch; whether it came to its end."""
        with self.watched(meet):
            out = self.stage(self.kept[number], number)
        if isinstance(out, Reached) and out.call is None:
            return False
        self.stage.results[number] = out
        return True


@dataclass
class _Run:
    """What is known of one weight."""

    moments: Moments = field(default_factory=Moments)
    product: Product | None = None
    floats: list[Tensor] = field(default_factory=list)  # inputs in the float model, which wait for their partners
    calls: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class _Read:
    """What a weight read, and where it was counted in."""

    x: Tensor
    floats: Tensor | None
    product: Product
    moments: Moments

    def serves(self, moments: Moments, product: Product, x: Tensor, floats: Tensor | None) -> bool:
        """Whether another weight, which has moments so far, reads the same."""
        if product != self.product or not (moments.count == 0 or moments is self.moments):
            return False
        if not _same(self.x, x):
            return False
        return floats is self.floats or (floats is not None and self.floats is not None and _same(floats, self.floats))


class Gatherer:
    """Gathers moments for the weights of a stage.

    Args:
        quantized: the stage of the quantized model.
        floats: that of the float model, or None where its inputs are not asked for.
        masks: for each batch, which tokens count: (samples, tokens), or None for all.
        samples: how many there are in all batches.
        rows: how many inputs of a layer are used at most; None for 64 for each column, within limits.
    """

    def __init__(
        self,
        quantized: View,
        floats: View | None,
        masks: Sequence[Tensor | None],
        samples: int,
        rows: int | None,
    ) -> None:
        self.quantized, self.floats, self.masks, self.samples, self.rows = quantized, floats, masks, samples, rows
        self._batch = 0
        self._runs: dict[Site, _Run] = {}
        self._last: _Read | None = None  # what the next weight may read, too

    def solved(self, sites: Sequence[Site], counts: Mapping[Site, int], choose: Choose) -> Iterator[Site]:
        """Choose the weights of some sites, in their order; gives each that is done."""
        if len(self.quantized.kept) == 1 and all(counts[site] == 1 for site in sites):
            yield from self._in_one_forward(sites, choose)
            return
        for group in self._groups(sites):
            self._gather(group, counts)
            for site in group:
                run = self._runs.pop(site)
                if run.product is not None and run.moments.count:
                    choose(site, run.product, run.moments)
                yield site
            self.quantized.stage.results.clear()  # of other weights

    def _groups(self, sites: Sequence[Site]) -> list[list[Site]]:
        """Weights that are chosen together: those that read one tensor."""
        reads: dict[Site, Tensor] = {}

        def meet(site: Site, product: Product, x: Tensor, weight: Tensor) -> None:
            reads.setdefault(site, x)

        self.quantized.run(0, meet)
        groups: list[list[Site]] = []
        for site in sites:
            last = reads.get(groups[-1][-1]) if groups else None
            here = reads.get(site)
            if last is not None and here is not None and _same(last, here):
                groups[-1].append(site)
            else:
                groups.append([site])
        return groups

    # All samples in one batch: the weights are chosen while the stage runs

    def _in_one_forward(self, sites: Sequence[Site], choose: Choose) -> Iterator[Site]:
        wanted, done = set(sites), list[Site]()
        self._runs = {site: _Run() for site in sites}
        if self.floats is not None:
            self.floats.run(0, lambda site, product, x, weight: self._see_floats(wanted, site, x))

        def meet(site: Site, product: Product, x: Tensor, weight: Tensor) -> Tensor | None:
            if site not in wanted or site in done:
                return None
            self._see(site, product, x)
            run = self._runs.pop(site)
            done.append(site)
            values = choose(site, product, run.moments).values
            return None if values is None else site.as_stored(values).to(weight.dtype)

        self.quantized.run(0, meet)
        self._last = None
        yield from done

    # Several batches: a forward of each, up to the weights

    def _gather(self, group: Sequence[Site], counts: Mapping[Site, int]) -> None:
        self._runs = {site: _Run() for site in group}
        wanted = set(group)

        def ended(site: Site) -> bool:
            run = self._runs[site]
            run.calls += 1
            return all(self._runs[each].calls >= counts[each] for each in group)

        def see(site: Site, product: Product, x: Tensor, weight: Tensor) -> None:
            if site in wanted:
                self._see(site, product, x)
                if ended(site):
                    raise Reached

        def see_floats(site: Site, product: Product, x: Tensor, weight: Tensor) -> None:
            if site in wanted:
                self._see_floats(wanted, site, x)
                if ended(site):
                    raise Reached

        for number in range(len(self.quantized.kept)):
            self._batch = number
            for view, meet in ((self.floats, see_floats), (self.quantized, see)):
                if view is not None:
                    view.run(number, meet)
                for run in self._runs.values():
                    run.calls = 0
            for run in self._runs.values():
                run.floats.clear()
            self._last = None
        self._batch = 0

    def _see_floats(self, wanted: set[Site], site: Site, x: Tensor) -> None:
        if site in wanted:
            self._runs[site].floats.append(x)

    def _see(self, site: Site, product: Product, x: Tensor) -> None:
        """Count an input in, with its partner in the float model."""
        run = self._runs[site]
        run.product = product
        floats = run.floats.pop(0) if run.floats else None
        last = self._last
        if last is not None and last.serves(run.moments, product, x, floats):
            run.moments = last.moments
            return
        if last is not None and run.moments is last.moments:
            run.moments = run.moments.split()
        self._add(run, product, x, floats)
        self._last = _Read(x, floats, product, run.moments)

    def _add(self, run: _Run, product: Product, x: Tensor, floats: Tensor | None) -> None:
        chosen = self._chosen(run, product, x)
        rows = product.rows(x, chosen)
        others = None if floats is None else product.rows(floats, chosen)
        keep = self._unmasked(product, x, chosen)
        if keep is not None:
            rows, others = rows[keep], None if others is None else others[keep]
        run.moments.add(rows, others)

    def _chosen(self, run: _Run, product: Product, x: Tensor) -> Tensor | None:
        """The positions that are used of each sample; None for all. They don't depend on how samples are batched."""
        samples, positions = product.positions(x)
        most = self.rows
        if most is None:
            columns = product.columns(x)
            most = max(FEWEST, min(MOST, FOR_EACH_COLUMN * columns), AT_LEAST * columns)
        each = -(-most // max(self.samples, 1))
        if positions <= each:
            return None
        drawn = torch.randint(positions, (samples, each), generator=run.generator)
        return drawn.to(x.device)

    def _unmasked(self, product: Product, x: Tensor, chosen: Tensor | None) -> Tensor | None:
        """Which rows are of tokens that count; None for all."""
        mask = self.masks[self._batch]
        if mask is None or not isinstance(product, Linear) or x.ndim < 3 or mask.ndim != 2 or x.shape[:2] != mask.shape:
            return None
        mask = mask.to(x.device) != 0
        inner = math.prod(x.shape[2:-1])
        mask = mask.unsqueeze(2).expand(-1, -1, inner).flatten(1)
        return (mask if chosen is None else mask.gather(1, chosen)).flatten()


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
