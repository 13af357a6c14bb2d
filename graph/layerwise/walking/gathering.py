"""Gathering what the weights of a stage meet, and choosing them one after the other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....qcore.scaling.pooling import distributed
from ...errors import GraphError
from .chain import Reached
from .masking import Masks
from .moments import Moments, Sums
from .observing import Meet, Meeting
from .products import Product
from .sites import Site
from .stages import Kept, Stage
from .surveying import Met

__all__ = ["Gathered", "Gatherer", "View"]

FEWEST, MOST = 2048, 24576  # inputs of a layer that are used, spread over samples; between these, 64 for each column
FOR_EACH_COLUMN = 64
AT_LEAST = 8  # for each column, however many that are
UNPAIRED = "it got other inputs than in the float model, and aims at its own output"


@dataclass(frozen=True)
class Gathered:
    """What is known of the inputs of a weight.

    Attributes:
        product: what multiplies it.
        moments: of its inputs, in all processes.
        note: what a user should know.
    """

    product: Product
    moments: Moments
    note: str = ""


Choose = Callable[[Site, Gathered], Any]  # returns a `Choice`


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
    watched: Callable[[Meet], AbstractContextManager[None]]

    def run(self, number: int, meet: Meet, *, lasting: bool = False) -> None:
        """Run the stage for one batch.

        Args:
            number: of the batch.
            meet: sees what the weights meet.
            lasting: whether the stage would return the same again, so that it needn't run once more.
        """
        with self.watched(meet):
            out = self.stage(self.kept[number], number)
        if lasting:
            self.stage.results[number] = out


@dataclass
class _Run:
    """What is known of one weight so far."""

    met: Met
    moments: dict[tuple[int, int], Moments] = field(default_factory=dict)  # by segment
    floats: list[Tensor] = field(default_factory=list)  # inputs in the float model, which wait for their partners
    notes: list[str] = field(default_factory=list)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        self.moments = {each: Moments() for each in self.met.segments}

    def note(self, text: str) -> None:
        """Tell the user something, once."""
        if text not in self.notes:
            self.notes.append(text)

    def of_rows(self, site: Site, rows: tuple[int, int]) -> list[Moments]:
        """The moments of some rows of the weight."""
        inside = {each: found for each, found in self.moments.items() if rows[0] <= each[0] and each[1] <= rows[1]}
        if sum(stop - start for start, stop in inside) != rows[1] - rows[0]:
            raise GraphError(
                f"{site.path}: its layer multiplies rows {rows[0]} to {rows[1] - 1} of its weight for some data, and "
                "others for the first batch. Reorder the batches, so that one that uses parts comes first."
            )
        return list(inside.values())

    def gathered(self, site: Site, crossed: bool) -> Gathered:
        """All of it, from all processes."""
        product = self.met.whole_product()
        groups, _, inputs = product.matrix(site.parameter).shape
        apart = len(self.moments) > 1
        height = self.met.height // groups
        for each in self.moments.values():
            each.pool(1 if apart else groups, inputs, site.parameter.device, crossed)
        parts = [(each, (stop - start) // height if apart else 1) for (start, stop), each in self.moments.items()]
        return Gathered(product, Moments.stacked(parts), "; ".join(self.notes))


@dataclass(frozen=True)
class _Read:
    """What a weight read, and what that came to; the next weight may read the same."""

    product: Product
    x: Tensor
    floats: Tensor | None
    chosen: Tensor | None
    sums: Sums
    note: str

    def serves(self, product: Product, x: Tensor, floats: Tensor | None, chosen: Tensor | None) -> bool:
        """Whether that is what another weight reads."""
        return product == self.product and all(
            _same(*pair) for pair in ((self.x, x), (self.floats, floats), (self.chosen, chosen))
        )


class Gatherer:
    """Gathers moments for the weights of a stage.

    Args:
        quantized: the stage of the quantized model.
        floats: that of the float model, or None where its inputs are not asked for.
        masks: which tokens count.
        samples: how many there are in all batches.
        rows: how many inputs of a layer are used at most; None for 64 for each column, within limits.
    """

    def __init__(
        self,
        quantized: View,
        floats: View | None,
        masks: Masks,
        samples: int,
        rows: int | None,
    ) -> None:
        self.quantized, self.floats, self.masks, self.samples, self.rows = quantized, floats, masks, samples, rows
        self._batch = 0
        self._runs: dict[Site, _Run] = {}
        self._last: _Read | None = None

    def solve(self, sites: Sequence[Site], met: Mapping[Site, Met], choose: Choose) -> None:
        """Choose the weights of some sites, in their order."""
        if len(self.quantized.kept) == 1 and all(met[site].single for site in sites) and not distributed():
            self._in_one_forward(sites, met, choose)
            return
        for group in self._groups(sites, met):
            self._gather(group, met)
            for site in group:
                self._settle(site, choose)

    def _settle(self, site: Site, choose: Choose) -> Any:
        found = self._runs.pop(site).gathered(site, self.floats is not None)
        return choose(site, found) if found.moments.count else None

    def _groups(self, sites: Sequence[Site], met: Mapping[Site, Met]) -> list[list[Site]]:
        """Weights that are chosen together: those that read one tensor."""
        reads: dict[Site, Tensor] = {}

        def meet(meeting: Meeting) -> None:
            reads.setdefault(meeting.site, meeting.x)

        self.quantized.run(0, meet)
        groups: list[list[Site]] = []
        for site in sites:
            before = groups[-1][-1] if groups else None
            alike = before is not None and met[before].single and met[site].single
            if alike and before in reads and site in reads and _same(reads[before], reads[site]):
                groups[-1].append(site)
            else:
                groups.append([site])
        return groups

    # All samples in one batch: the weights are chosen while the stage runs

    def _in_one_forward(self, sites: Sequence[Site], met: Mapping[Site, Met], choose: Choose) -> None:
        self._runs = {site: _Run(met[site]) for site in sites}
        if self.floats is not None:
            self.floats.run(0, self._see_floats, lasting=True)

        def meet(meeting: Meeting) -> Tensor | None:
            site = meeting.site
            if site not in self._runs:
                return None
            self._see(meeting)
            choice = self._settle(site, choose)
            values = None if choice is None else choice.values
            return None if values is None else site.as_stored(values).to(meeting.weight.dtype)

        self.quantized.run(0, meet, lasting=True)
        self._last = None
        self._runs = {}

    # Several batches: a forward of each, up to the weights

    def _gather(self, group: Sequence[Site], met: Mapping[Site, Met]) -> None:
        self._runs = {site: _Run(met[site]) for site in group}
        short = all(met[site].single for site in group)
        waiting = set(group)

        def then_stop(see: Callable[[Meeting], None]) -> Meet:
            def meet(meeting: Meeting) -> None:
                if meeting.site in self._runs:
                    see(meeting)
                    waiting.discard(meeting.site)
                    if short and not waiting:
                        raise Reached

            return meet

        for number in range(len(self.quantized.kept)):
            self._batch = number
            for view, see in ((self.floats, self._see_floats), (self.quantized, self._see)):
                if view is not None:
                    waiting = set(group)
                    view.run(number, then_stop(see))
            for run in self._runs.values():
                run.floats.clear()
            self._last = None
        self._batch = 0

    def _see_floats(self, meeting: Meeting) -> None:
        if meeting.site in self._runs and meeting.product is not None:
            self._runs[meeting.site].floats.append(meeting.x)

    def _see(self, meeting: Meeting) -> None:
        """Count an input in, with its partner in the float model."""
        run, product, x = self._runs[meeting.site], meeting.product, meeting.x
        if product is None:
            raise GraphError(f"{meeting.site.path}: {meeting.why}, for some data.")
        floats = run.floats.pop(0) if run.floats else None
        if self.floats is not None and (floats is None or floats.shape != x.shape):
            run.note(UNPAIRED)
            floats = x
        chosen = self._chosen(run, product, x)
        last = self._last
        if last is None or not last.serves(product, x, floats, chosen):
            last = self._last = _Read(product, x, floats, chosen, *self._sums(product, x, floats, chosen))
        if last.note:
            run.note(last.note)
        for each in run.of_rows(meeting.site, meeting.rows):
            each.add(last.sums)

    def _sums(self, product: Product, x: Tensor, floats: Tensor | None, chosen: Tensor | None) -> tuple[Sums, str]:
        rows = product.rows(x, chosen)
        others = None if floats is None else rows if floats is x else product.rows(floats, chosen)
        keep, note = self.masks.of(self._batch, product, x, chosen)
        if keep is not None:
            rows, others = rows[keep], None if others is None else others[keep]
        return Sums.of(rows, others), note

    def _chosen(self, run: _Run, product: Product, x: Tensor) -> Tensor | None:
        """The positions that are used of each sample; None for all. They don't depend on how samples are batched."""
        if run.met.steps:  # samples are counted by another dimension, and steps come one by one
            return None
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


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
