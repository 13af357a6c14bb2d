"""What a walk is given, checked; and what it must not leave half done."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ...errors import GraphError

__all__ = ["check_options", "devices_of", "uninterrupted"]


def check_options(asked: str, blocks: object, rows: object, wait_on: object, checkpoint: object = None) -> None:
    """Refuse options that mean nothing.

    Raises:
        GraphError: it says what to write instead.
    """
    if blocks is not None and (isinstance(blocks, str) or not isinstance(blocks, Sequence)):
        raise GraphError(f"{asked}: blocks={blocks!r} is no list of paths. Write blocks=[{blocks!r}].")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise GraphError(f"{asked}: rows={rows!r} is not possible: expected a whole number from 1 on, or None.")
    if wait_on not in ("device", "cpu") and not (isinstance(wait_on, str | Path) and Path(wait_on).is_dir()):
        raise GraphError(f"{asked}: wait_on={wait_on!r} is neither 'device' nor 'cpu' nor a folder that exists.")
    if checkpoint is not None and not isinstance(checkpoint, str | Path):
        raise GraphError(f"{asked}: checkpoint={checkpoint!r} is no path of a file. Write checkpoint='walk.pt'.")


def devices_of(model: nn.Module) -> list[int]:
    """The GPUs of a model, whose random generators are kept as they are."""
    indices = {each.device.index for each in model.parameters() if each.is_cuda}
    return sorted(index for index in indices if index is not None)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: what is written there is written as a whole."""
    unheard = (None, signal.SIG_IGN)  # handled outside of Python, or by nobody
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in unheard:
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
