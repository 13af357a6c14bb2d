"""A bar that shows how far a loop has come."""

import sys
from collections.abc import Generator, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

__all__ = ["tracked"]

Item = TypeVar("Item")


def tracked(
    items: Iterable[Item], label: str, *, unit: str = "batches", shown: bool = True
) -> Generator[Item, None, None]:
    """The items of a loop, with a bar on standard error while it runs: rich's where it is installed, else one line.

    Nothing is shown where standard error is no terminal, such as in a log. Close the generator, so that an exception in
    the loop ends the bar: ``with contextlib.closing(tracked(...)) as items``.

    Args:
        items: what is looped over; its length, where it has one, is the end of the bar.
        label: what stands before the bar.
        unit: what the items are.
        shown: whether there is a bar at all.

    Example:
        >>> list(tracked([1, 2], "squares"))
        [1, 2]
    """
    if not shown:
        yield from items
    elif find_spec("rich") is None:
        yield from _with_line(items, label, unit, _length(items))
    else:
        yield from _with_bar(items, label, unit, _length(items))


def _length(items: object) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None


def _with_line(items: Iterable[Item], label: str, unit: str, total: int | None) -> Iterator[Item]:
    if not sys.stderr.isatty():
        yield from items
        return
    end = "" if total is None else f" of {total}"
    done = 0
    for item in items:
        sys.stderr.write(f"\r{label}: {done}{end} {unit}")
        sys.stderr.flush()
        yield item
        done += 1
    sys.stderr.write(f"\r{label}: {done}{end} {unit}\n")


def _with_bar(items: Iterable[Item], label: str, unit: str, total: int | None) -> Iterator[Item]:
    console = import_module("rich.console").Console(stderr=True)
    progress = import_module("rich.progress")
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.completed}" + ("" if total is None else " of {task.total}") + f" {unit}"),
        progress.TimeRemainingColumn(),
    )
    silent = not (console.is_terminal or console.is_jupyter)
    with progress.Progress(*columns, console=console, transient=True, disable=silent) as bar:
        yield from bar.track(items, total=total, description=label)
