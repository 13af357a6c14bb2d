"""Where workloads run: in this process, or in another one with another environment."""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .catalog import WORKLOADS
from .environment import versions
from .libraries import OWN_PROCESS
from .workload import Sampler, WorkloadError

__all__ = ["RemoteStation", "Station"]

ROOT = Path(__file__).parents[1]


def keep_freed_memory() -> None:
    """Bring the process's heap to the state that it has in training.

    glibc gives freed memory back to the system until a block was freed that is larger than what is now free. Without
    one, as no real network is, a step that frees two blocks of 4 MB waits for 2048 fresh pages every time.
    """
    torch.zeros(6 << 20)  # 24 MB


class Station:
    """Prepares one workload at a time in this process, and takes samples of it.

    Attributes:
        libraries: those that it can run, apart from float.
    """

    def __init__(self, libraries: tuple[str, ...]) -> None:
        self.libraries = libraries
        self._samplers: dict[str, Sampler] = {}
        self._asked: tuple[str, list[str]] = ("", [])
        keep_freed_memory()

    def versions(self) -> dict[str, str]:
        """The versions of what is installed here."""
        return versions()

    def begin(self, workload: str, libraries: list[str]) -> None:
        """Start to prepare a workload, float included; `prepared` waits for it."""
        self._asked = workload, ["float", *libraries]

    def prepared(self) -> dict[str, str]:
        """The libraries that failed, each with its error."""
        workload, libraries = self._asked
        failures = {}
        for library in libraries:
            try:
                self._samplers[library] = WORKLOADS[workload].prepare(library)
            except Exception as error:  # whatever a library raises is its result
                failures[library] = f"{type(error).__name__}: {error}"
        gc.collect()
        gc.freeze()  # so that collecting the garbage of a sample takes no time
        return failures

    def sample(self, library: str) -> float:
        """One number. Garbage is collected before the sample, not during it.

        Raises:
            WorkloadError: the library failed.
        """
        gc.collect()
        gc.disable()
        try:
            return self._samplers[library]()
        except Exception as error:
            raise WorkloadError(f"{type(error).__name__}: {error}") from error
        finally:
            gc.enable()

    def end(self) -> None:
        """Forget the workload."""
        self._samplers.clear()
        if "torch._dynamo" in sys.modules:  # importing it takes longer than most workloads
            torch._dynamo.reset()
        gc.unfreeze()
        gc.collect()


class RemoteStation:
    """A `Station` in another process, under another interpreter; see `worker`."""

    def __init__(self, python: str) -> None:
        self.libraries: tuple[str, ...] = (OWN_PROCESS,)
        command = [python, "-m", f"{__package__}.worker"]
        self._worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def versions(self) -> dict[str, str]:
        """The versions of what is installed there."""
        return self._call("versions")

    def begin(self, workload: str, libraries: list[str]) -> None:
        """Start to prepare a workload, float included; the other process works on it until `prepared` returns."""
        self._call("begin", workload, libraries)
        self._send("prepared")

    def prepared(self) -> dict[str, str]:
        """The libraries that failed, each with its error."""
        return self._reply()

    def sample(self, library: str) -> float:
        """One number.

        Raises:
            WorkloadError: the library failed.
        """
        return self._call("sample", library)

    def end(self) -> None:
        """Forget the workload."""
        self._call("end")

    def close(self) -> None:
        """End the process."""
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()

    def _call(self, method: str, *args: Any) -> Any:
        self._send(method, *args)
        return self._reply()

    def _send(self, method: str, *args: Any) -> None:
        assert self._worker.stdin is not None
        print(json.dumps([method, *args]), file=self._worker.stdin, flush=True)

    def _reply(self) -> Any:
        assert self._worker.stdout is not None
        line = self._worker.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {OWN_PROCESS} ended: its error is above")
        reply = json.loads(line)
        if "raised" in reply:
            raise WorkloadError(reply["raised"])
        return reply["returned"]
