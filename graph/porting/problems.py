"""What doesn't fit between a file and a model."""

from collections.abc import Iterable, Sequence

from ..errors import GraphError

__all__ = ["CheckpointError", "in_words"]

_SHOWN = 20  # problems in one message


class CheckpointError(GraphError):
    """A file and a model don't fit; the model is as it was.

    Attributes:
        problems: one sentence or two for each thing that doesn't fit, with what to write instead.

    Example:
        >>> error = CheckpointError("load_brevitas", ["fc1.bias: the file has none."])
        >>> print(error)
        load_brevitas: 1 thing doesn't fit, and nothing was loaded.
          fc1.bias: the file has none.
        >>> error.problems
        ('fc1.bias: the file has none.',)
    """

    def __init__(self, call: str, problems: Iterable[str]) -> None:
        self.call = call
        self.problems = tuple(problems)
        count = len(self.problems)
        counted = "1 thing doesn't" if count == 1 else f"{count} things don't"
        more = [f"And {count - _SHOWN} more: see `problems` of this error."] if count > _SHOWN else []
        lines = [f"{call}: {counted} fit, and nothing was loaded.", *self.problems[:_SHOWN], *more]
        super().__init__("\n  ".join(lines))

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[str, tuple[str, ...]]]:
        return CheckpointError, (self.call, self.problems)


def in_words(names: Sequence[str]) -> str:
    """Names in a sentence.

    Example:
        >>> in_words(["weight"]), in_words(["weight", "bias"]), in_words(["a", "b", "c"])
        ('weight', 'weight and bias', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
