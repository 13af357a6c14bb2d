"""The process of a `RemoteStation`: reads calls as lines of JSON, and answers each with a line.

Run by its station: ``python -m benchmarks.worker``.
"""

import json
import logging
import os
import sys
import warnings
from typing import IO

import torch

from .libraries import OWN_PROCESS
from .station import Station
from .workload import WorkloadError

__all__ = ["serve"]


def serve(calls: IO[str], answers: IO[str]) -> None:
    """Answer calls of a station's methods until there are no more."""
    station = Station((OWN_PROCESS,))
    for line in calls:
        method, *args = json.loads(line)
        try:
            answer = {"returned": getattr(station, method)(*args)}
        except WorkloadError as error:  # the station raises it
            answer = {"raised": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the output of libraries must not get between the answers
    serve(sys.stdin, answers)
