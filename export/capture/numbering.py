"""Names for the calls of a model's modules in one forward; a call in a loop has one name for all steps."""

from ...qcore.tracing import LoopStep, current_step

__all__ = ["Counts", "counted", "numbered"]


class Counts(dict[str, int]):
    """How often each module was called in one forward, by path.

    Every step of a loop over time counts from where the loop began, so that the same call has the same number in all
    steps: it is one node of a file.

    Example:
        >>> from bitwright.qcore.tracing import loop_steps
        >>> counts, names = Counts(), []
        >>> names.append(counted(counts, "act"))
        >>> with loop_steps() as begin:
        ...     for step in range(3):
        ...         _ = begin(step)
        ...         names.append(counted(counts, "act"))
        >>> names.append(counted(counts, "act"))
        >>> names
        ['act', 'act.1', 'act.1', 'act.1', 'act.2']
    """

    def __init__(self) -> None:
        super().__init__()
        self._loops: dict[object, tuple[LoopStep, dict[str, int]]] = {}

    def next(self, path: str) -> int:
        """How many calls came before this one, which is counted."""
        step = current_step()
        if step is not None:
            self._follow(step)
        index = self.get(path, 0)
        self[path] = index + 1
        return index

    def _follow(self, step: LoopStep) -> None:
        latest, before = self._loops.setdefault(step.loop, (step, dict(self)))
        if latest is not step:
            self._loops[step.loop] = (step, before)
            self.clear()
            self.update(before)


def numbered(path: str, index: int) -> str:
    """The name of one call of a module: its path, with a number from the second call on."""
    return path if index == 0 else f"{path}.{index}"


def counted(counts: Counts, path: str) -> str:
    """The name of the next call of a module, which is counted."""
    return numbered(path, counts.next(path))
