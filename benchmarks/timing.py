"""The time of a call, and the summary of many samples."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Summary", "Timed", "summarize"]

SHORTEST = 0.005  # the least duration of a sample, in seconds: short calls are repeated


class Timed:
    """A call that can be sampled: the CPU time of the calling thread, in seconds per call.

    The thread's own clock stands still while another process has the core. It sees everything that is computed, since
    there is one thread: autograd runs a backward on the CPU in the thread that asked for it. Python's garbage collector
    rests meanwhile, as in `timeit`: what it costs depends on all that is alive in the process.

    Args:
        call: what is timed. It is run a few times here, to find out how often to repeat it in a sample.
        shortest: the least duration of a sample, in seconds.
    """

    def __init__(self, call: Callable[[], object], shortest: float = SHORTEST) -> None:
        self.call = call
        self.calls = 1
        call()
        while (took := self() * self.calls) < shortest:
            self.calls = max(self.calls * 2, int(self.calls * shortest / max(took, 1e-7)))

    def __call__(self) -> float:
        """One sample."""
        call, calls = self.call, range(self.calls)
        collects = gc.isenabled()
        gc.disable()
        try:
            begun = time.thread_time()
            for _ in calls:
                call()
            return (time.thread_time() - begun) / self.calls
        finally:
            if collects:
                gc.enable()


@dataclass(frozen=True)
class Summary:
    """The median of some numbers and, as their spread, the quartiles."""

    median: float
    low: float  # a quarter of the numbers is smaller
    high: float  # a quarter of the numbers is larger
    rounds: int


def summarize(numbers: Sequence[float]) -> Summary:
    """The summary of one number or more."""
    if len(numbers) == 1:
        return Summary(numbers[0], numbers[0], numbers[0], 1)
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Summary(median, low, high, len(numbers))
