"""What the weights of a model meet: in what order, in which products, how often, and in which parts."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from torch import distributed as dist

from ....nn.recurrent.base import Recurrent
from ....qcore.scaling.pooling import distributed
from .observing import Meeting
from .products import Product, Stacked
from .sites import Site

__all__ = ["Met", "Survey"]


@dataclass
class Met:
    """Where a weight was met.

    Attributes:
        height: how many rows the weight has.
        steps: whether its layer goes through sequences, so that some data may meet it more often than other.
        calls: how often, in the forward where that was most often.
        product: what multiplies it, the same at each call; None where nothing does.
        parts: the rows that come in at once.
        why: where it can't be chosen: why.

    Example:
        >>> met = Met(12, parts={(0, 4), (4, 12)})
        >>> met.segments, met.groups
        (((0, 4), (4, 12)), 3)
    """

    height: int
    steps: bool = False
    calls: int = 0
    product: Product | None = None
    parts: set[tuple[int, int]] = field(default_factory=set)
    why: str = ""

    def see(self, meeting: Meeting) -> None:
        """Take a meeting in."""
        if meeting.product is None:
            self.why = self.why or meeting.why
            return
        self.parts.add(meeting.rows)
        if self.product is not None and type(self.product) is not type(meeting.product):
            self.why = "it is multiplied in several ways"
        self.product = meeting.product

    @property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """The rows that always come in together."""
        cuts = sorted({0, self.height, *(end for part in self.parts for end in part)})
        return tuple(pairwise(cuts))

    @property
    def groups(self) -> int:
        """How many groups of rows a `Stacked` product needs, so that each has inputs of its own; 1 for a whole."""
        return self.height // math.gcd(*(stop - start for start, stop in self.segments))

    @property
    def single(self) -> bool:
        """Whether the weight is met once in a forward, as a whole."""
        return self.calls == 1 and not self.steps and len(self.segments) == 1

    def whole_product(self) -> Product:
        """The product that makes matrices of the whole weight."""
        assert self.product is not None
        return self.product if len(self.segments) == 1 else Stacked(self.groups)

    def why_not(self) -> str | None:
        """Why no algorithm may choose the weight."""
        if self.why:
            return self.why
        covered = all(any(a <= start and stop <= b for a, b in self.parts) for start, stop in self.segments)
        return None if covered else "its layer uses only some of its rows"

    def join(self, other: "Met") -> None:
        """Take in what another process saw."""
        self.calls = max(self.calls, other.calls)
        self.parts |= other.parts
        self.why = self.why or other.why
        self.product = self.product or other.product


class Survey:
    """What was seen of all weights, forward by forward.

    Attributes:
        met: by weight, in the order in which a forward meets them.
    """

    def __init__(self) -> None:
        self.met: dict[Site, Met] = {}
        self._forward: dict[Site, int] = {}
        self._ordered: list[Site] = []

    def see(self, meeting: Meeting) -> None:
        """Take a meeting in."""
        site = meeting.site
        self._forward[site] = self._forward.get(site, 0) + 1
        if site not in self.met:
            self.met[site] = Met(site.parameter.shape[0], isinstance(site.layer, Recurrent))
        self.met[site].see(meeting)

    def end(self) -> None:
        """A forward has ended: what it met for the first time comes behind what it met before that."""
        for site, calls in self._forward.items():
            self.met[site].calls = max(self.met[site].calls, calls)
        new = [site for site in self._forward if site not in self._ordered]
        if new:
            self._ordered = _merged(self._ordered, self._forward)
            self.met = {site: self.met[site] for site in self._ordered}
        self._forward = {}

    def drop(self, site: Site) -> None:
        """Leave a weight out."""
        del self.met[site]

    def pool(self, sites: Iterable[Site]) -> None:
        """Take in what other processes saw, so that all of them know the same."""
        if not distributed():
            return
        named = {site.path: site for site in sites}
        own = [(site.path, met) for site, met in self.met.items()]
        every: list[list[tuple[str, Met]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(every, own)
        joined: dict[Site, Met] = {}
        order: list[Site] = []
        for each in every:
            order = _merged(order, [named[path] for path, _ in each])
            for path, met in each:
                if named[path] in joined:
                    joined[named[path]].join(met)
                else:
                    joined[named[path]] = met
        self.met = {site: joined[site] for site in order}


def _merged(order: Iterable[Site], forward: Iterable[Site]) -> list[Site]:
    """Weights in an order, and those of another: each that is new behind the one before it."""
    found, place = list(order), 0
    for site in forward:
        if site not in found:
            found.insert(place, site)
        place = found.index(site) + 1
    return found
