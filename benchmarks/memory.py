"""How much memory a call needs."""

import os
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_bytes"]


def peak_bytes(call: Callable[[], object]) -> int:
    """The peak of torch's CPU allocator during a call, in bytes beyond what was allocated before it.

    The profiler records every allocation and every release, including those inside kernels.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        call()
    assert recording.profiler is not None
    assert recording.profiler.kineto_results is not None
    events: list[Any] = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
