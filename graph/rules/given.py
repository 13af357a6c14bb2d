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

    @staticmethod
    def by(settings: "Iterable[Given]") -> str:
        """The rules of several settings, as a message names them.

        Example:
            >>> Given.by([Given(4, ("nn.Linear",), (0,)), Given(True, ("it may be",))])
            'nn.Linear'
        """
        return ", ".join(Given.together((each for each in settings if each.rules), None).why)

    @classmethod
    def together(cls, several: "Iterable[Given]", value: object, *more: str) -> "Given":
        """One setting in place of several."""
        several = list(several)
        why = dict.fromkeys([*(text for each in several for text in each.why), *more])
        return cls(value, tuple(why), tuple(dict.fromkeys(number for each in several for number in each.rules)))
