"""What a pass did to every layer, and why it left others."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Entry", "Report", "listed"]


@dataclass(frozen=True)
class Entry:
    """What a pass did to one layer.

    Attributes:
        path: the layer, or the layers of a group, by path.
        action: what was done: "folded into conv1"; "left" if nothing.
        reason: why it was left, or what a user should know about the action.
        figures: numbers that belong to it, by name.

    Example:
        >>> print(Entry("bn2", "left", "no example reaches it"))
        bn2  left: no example reaches it
    """

    path: str
    action: str
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether the pass changed anything here."""
        return self.action != "left"

    @property
    def text(self) -> str:
        """All but the path, in one line."""
        return (f"{self.action}: {self.reason}" if self.reason else self.action) + _shown(self.figures)

    def __str__(self) -> str:
        return f"{self.path}  {self.text}"


@dataclass(frozen=True)
class Report:
    """What a pass did: an entry for every layer that it looked at, in the order of the model.

    The text lists the changes first line by line, then what was left and why.

    Attributes:
        call: the function that made it.
        entries: one for each layer or group of layers.
        figures: numbers of the model as a whole, by name.

    Example:
        >>> report = Report("fold_batch_norms", (Entry("bn1", "folded into conv1"), Entry("bn12", "left", "unused")))
        >>> print(report)
        fold_batch_norms: 1 changed, 1 left
          bn1   folded into conv1
          bn12  left: unused
        >>> report["bn12"].reason
        'unused'
        >>> [entry.path for entry in report.changed]
        ['bn1']
    """

    call: str
    entries: tuple[Entry, ...]
    figures: Mapping[str, float] = field(default_factory=dict, kw_only=True)

    @property
    def changed(self) -> tuple[Entry, ...]:
        """The entries of what the pass changed."""
        return tuple(entry for entry in self.entries if entry.changed)

    @property
    def left(self) -> tuple[Entry, ...]:
        """The entries of what the pass left as it was."""
        return tuple(entry for entry in self.entries if not entry.changed)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain dicts and lists, for JSON."""
        entries = [
            {"path": each.path, "action": each.action, "reason": each.reason, "figures": dict(each.figures)}
            for each in self.entries
        ]
        found: dict[str, Any] = {"call": self.call, "entries": entries}
        return found | {"figures": dict(self.figures)} if self.figures else found

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, path: str) -> Entry:
        for entry in self.entries:
            if entry.path == path:
                return entry
        raise KeyError(path)

    def __str__(self) -> str:
        width = max((len(entry.path) for entry in self.entries), default=0)
        lines = [f"  {entry.path:{width}}  {entry.text}" for entry in (*self.changed, *self.left)]
        counts = f"{self.call}: {len(self.changed)} changed, {len(self.left)} left"
        return "\n".join([counts + _shown(self.figures), *lines])


def listed(entries: Iterable[Entry], most: int = 6) -> str:
    """Entries as sentences, for an error.

    Example:
        >>> listed([Entry("bn1", "left", "no example reaches it"), Entry("bn2", "left", "it is called twice")], most=1)
        'bn1: no example reaches it. And 1 more.'
    """
    said = [f"{entry.path or 'the model'}: {entry.reason}." for entry in entries]
    return " ".join(said if len(said) <= most else [*said[:most], f"And {len(said) - most} more."])


def _shown(figures: Mapping[str, float]) -> str:
    return f" ({', '.join(f'{name} {number:.4g}' for name, number in figures.items())})" if figures else ""
