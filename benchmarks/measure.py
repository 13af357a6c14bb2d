"""Measuring a workload: rounds in which every library takes its turn."""

import random
import time
from dataclasses import dataclass
from typing import Protocol

from .timing import Summary, summarize
from .workload import Workload

__all__ = ["FULL", "QUICK", "Effort", "Measurement", "Place", "measure"]


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
    """How many rounds: as many as fit into some seconds, within bounds."""

    seconds: float
    least: int
    most: int

    def suffices(self, rounds: int, since: float) -> bool:
        """Whether enough rounds were made."""
        return rounds >= self.most or (rounds >= self.least and time.monotonic() - since >= self.seconds)


FULL = Effort(4.0, 7, 31)
QUICK = Effort(0.0, 3, 3)


@dataclass(frozen=True)
class Measurement:
    """What came out for one workload.

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
    place: what slows a machine down for a while slows both.
    """
    begun = time.monotonic()
    taking_part = {place: [each for each in workload.libraries if each in place.libraries] for place in places}
    taking_part = {place: libraries for place, libraries in taking_part.items() if libraries}
    for place, libraries in reversed(taking_part.items()):  # the other process first: it prepares meanwhile
        place.begin(key, libraries)
    failures = {}
    samples: dict[Place, dict[str, list[float]]] = {}
    for place, libraries in taking_part.items():
        failed = place.prepared()
        ready = [] if "float" in failed else [each for each in ("float", *libraries) if each not in failed]
        samples[place] = {library: [] for library in ready}
        failures |= {library: failed.get(library, failed.get("float", "")) for library in libraries if library not in ready}
    order = random.Random(0)
    rounds, since = 0, time.monotonic()
    while not effort.suffices(rounds, since) and any(samples.values()):
        for place, numbers in samples.items():
            for library in order.sample(list(numbers), len(numbers)):
                try:
                    numbers[library].append(place.sample(library))
                except Exception as error:  # a failure is a result, too
                    failures[library] = str(error)
                    del numbers[library]
        rounds += 1
        if not workload.repeats:
            break
    for place in taking_part:
        place.end()
    compared, base = _summaries(workload, list(samples.values()))
    return Measurement(compared, base, failures, time.monotonic() - begun)


def _summaries(workload: Workload, samples: list[dict[str, list[float]]]) -> tuple[dict[str, Summary], Summary | None]:
    """Of each library's comparisons, and of float's own numbers in the first place."""
    compared = {}
    for numbers in samples:
        for library in numbers:
            if library != "float":
                pairs = zip(numbers[library], numbers["float"], strict=True)
                compared[library] = summarize([workload.compare(one, base) * workload.scale for one, base in pairs])
    base = next((numbers["float"] for numbers in samples if numbers.get("float")), None)
    in_unit = workload.scale if workload.unit else 1.0
    return compared, None if base is None else summarize([each * in_unit for each in base])
