"""A setting, and where it is from."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Given"]


@dataclass(frozen=True)
class Given:
    """A setting, and where it is from.

    Attributes:
        value: of the setting.
        why: the rules that it is from, as typed, and why `quantize` decides so.
        rules: the numbers of the rules; none for what `quantize` decides itself.

    Example:
        >>> Given.together([Given(4, ("nn.Linear",), (0,)), Given(True, ("it may be",))], 5)
        Given(value=5, why=('nn.Linear', 'it may be'), rules=(0,))
    """

    value: object
    why: tuple[str, ...]
    rules: tuple[int, ...] = ()

    @classmethod
    def together(cls, several: "Iterable[Given]", value: object, *more: str) -> "Given":
        """One setting in place of several."""
        several = list(several)
        why = dict.fromkeys([*(text for each in several for text in each.why), *more])
        return cls(value, tuple(why), tuple(dict.fromkeys(number for each in several for number in each.rules)))
