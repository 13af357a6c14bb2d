"""Measuring a workload: rounds in which every library takes its turn."""

import random
import time
from dataclasses import dataclass
from typing import Protocol

from .timing import Summary, summarize
from .workload import Workload, WorkloadError

__all__ = ["BRIEF", "FULL", "QUICK", "Effort", "Measurement", "Place", "measure"]


class Place(Protocol):
    """What `Station` and `RemoteStation` have in common."""

    libraries: tuple[str, ...]

    def versions(self) -> dict[str, str]: ...
    def begin(self, workload: str, libraries: list[str]) -> None: ...
    def prepared(self) -> dict[str, str]: ...
    def sample(self, library: str) -> float: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Effort:
    """The number of rounds: as many as fit into a time, within bounds."""

    seconds: float
    least: int
    most: int

    def suffices(self, rounds: int, since: float) -> bool:
        """Whether there were enough rounds."""
        return rounds >= self.most or (rounds >= self.least and time.monotonic() - since >= self.seconds)


FULL = Effort(4.0, 7, 31)  # for budgets
BRIEF = Effort(1.5, 5, 21)  # for everything else
QUICK = Effort(0.0, 3, 3)


@dataclass(frozen=True)
class Measurement:
    """The result of one workload.

    Attributes:
        compared: for each library its numbers against float's of the same process and round, as the workload says.
        base: float's own numbers, in the first process.
        failures: the error of each library that failed.
        seconds: of wall time that measuring took, preparation included.
    """

    compared: dict[str, Summary]
    base: Summary | None
    failures: dict[str, str]
    seconds: float


def measure(key: str, workload: Workload, places: list[Place], effort: Effort) -> Measurement:
    """Measure a workload in all places, round by round.

    In a round each library gives one sample, in random order, and is compared with float's sample of the same round and
    place: a temporary slowdown of the machine affects both.
    """
    begun = time.monotonic()
    teams = [_Team(place, workload) for place in places if set(workload.libraries) & set(place.libraries)]
    for team in reversed(teams):  # another process first: it prepares meanwhile
        team.place.begin(key, team.libraries)
    for team in teams:
        team.get_ready()
    order = random.Random(0)
    rounds, since = 0, time.monotonic()
    while any(team.samples for team in teams) and not effort.suffices(rounds, since):
        for team in teams:
            team.play(order)
        rounds += 1
        if not workload.repeats:
            break
    for team in teams:
        team.place.end()
    compared, failures = {}, {}
    for team in teams:
        compared |= team.compared(workload)
        failures |= team.failures
    return Measurement(compared, teams[0].base(workload), failures, time.monotonic() - begun)


class _Team:
    """Float and the libraries that share a place with it.

    Invariant: all in ``samples`` have as many; nobody is left in it once float has failed.
    """

    def __init__(self, place: Place, workload: Workload) -> None:
        self.place = place
        self.libraries = [library for library in workload.libraries if library in place.libraries]
        self.samples: dict[str, list[float]] = {library: [] for library in ("float", *self.libraries)}
        self.failures: dict[str, str] = {}

    def get_ready(self) -> None:
        """Wait until all are prepared."""
        for library, error in self.place.prepared().items():
            self._drop(library, error)

    def play(self, order: random.Random) -> None:
        """One round."""
        for library in order.sample(list(self.samples), len(self.samples)):
            try:
                number = self.place.sample(library)
            except WorkloadError as error:  # a failure is a result, too
                self._drop(library, str(error))
            else:
                if library in self.samples:
                    self.samples[library].append(number)

    def _drop(self, library: str, error: str) -> None:
        lost = self.libraries if library == "float" else [library]
        self.failures |= {each: error for each in lost if each not in self.failures}
        for each in (library, *lost):
            self.samples.pop(each, None)

    def compared(self, workload: Workload) -> dict[str, Summary]:
        """Each library's numbers beside float's."""
        found = {}
        for library in self.samples:
            if library != "float":
                pairs = zip(self.samples[library], self.samples["float"], strict=True)
                found[library] = summarize([workload.compare(one, base) * workload.scale for one, base in pairs])
        return found

    def base(self, workload: Workload) -> Summary | None:
        """Float's own numbers: in the workload's unit, in seconds or bytes where it is a ratio."""
        numbers = self.samples.get("float")
        in_unit = workload.scale if workload.unit else 1.0
        return summarize([number * in_unit for number in numbers]) if numbers else None
