"""The results of checking a quantizer."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Failure", "NotApplicable", "QuantizerCheckError", "Refused", "Report", "Result"]


class Failure(AssertionError):  # noqa: N818 - a finding about someone's quantizer, no error of a program
    """Raised by a check: the quantizer broke a rule.

    Args:
        expected: what the rule demands.
        found: what the quantizer did.
        facts: further facts that explain the failure, one per line, such as ``{"scale": "0.5"}``.

    Example:
        >>> print(Failure("integers from -8 to 7", "8", {"scale": "0.5"}))
        expected integers from -8 to 7; found 8
        scale: 0.5
    """

    def __init__(self, expected: str, found: str, facts: dict[str, str] | None = None) -> None:
        self.expected, self.found, self.facts = expected, found, facts or {}
        said = [f"expected {expected}; found {found}", *(f"{name}: {fact}" for name, fact in self.facts.items())]
        super().__init__("\n".join(said))


class NotApplicable(Exception):  # noqa: N818 - no error: a check says that it has nothing to say
    """The rule does not apply to this quantizer; the text says why.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> from bitwright.testing import check_quantizer
        >>> print(check_quantizer(Int8WeightPerTensor, checks=["scale_gradient"]))
        Int8WeightPerTensor (weight): 1 checks, 1 skipped
          skipped  scale_gradient    nothing in it is learned
    """


class Refused(Exception):  # noqa: N818 - no error: a clear refusal is as good as a pass
    """An exporter refused the quantizer instead of writing a wrong file; the text is the exporter's error.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> from bitwright.testing import check_quantizer
        >>> check_quantizer(Int8Act(bit_width=20), checks=["export_qdq"])["export_qdq"].status
        'refused'
    """


@dataclass(frozen=True)
class Result:
    """The outcome of one check.

    Attributes:
        check: its name.
        status: ``passed``, ``failed``, ``refused`` (by an exporter, as it should) or ``skipped``.
        message: the reason, unless it passed.
        seconds: how long it took.
        counterexample: for a failed property, the smallest failing input.

    Example:
        >>> Result("zero", "failed", "expected 0 for 0; found 0.5").ok
        False
    """

    check: str
    status: str
    message: str = ""
    seconds: float = 0.0
    counterexample: Tensor | None = None

    @property
    def ok(self) -> bool:
        """Whether the check did not fail."""
        return self.status != "failed"


@dataclass(frozen=True)
class Report:
    """All results for one quantizer; ``str()`` shows what did not pass, ``table()`` everything.

    Example:
        >>> results = Result("zero", "passed"), Result("value_range", "failed", "found 8")
        >>> report = Report("MyAct", "activation", results)
        >>> report.ok, report.failed, report["zero"].status
        (False, ('value_range',), 'passed')
        >>> print(report)
        MyAct (activation): 2 checks, 1 failed, 1 passed
          failed   value_range       found 8
    """

    quantizer: str
    role: str
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(result.ok for result in self.results)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(result.check for result in self.results if not result.ok)

    def __getitem__(self, check: str) -> Result:
        """The result of a check by its name."""
        for result in self.results:
            if result.check == check:
                return result
        raise KeyError(check)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def table(self) -> str:
        """Every result, as text."""
        return "\n".join([self._headline(), *map(_line, self.results)])

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(_line(each) for each in self.results if each.status != "passed")])

    def _headline(self) -> str:
        statuses = [result.status for result in self.results]
        counts = ", ".join(f"{statuses.count(each)} {each}" for each in sorted(set(statuses)))
        return f"{self.quantizer} ({self.role}): {len(statuses)} checks, {counts}"


class QuantizerCheckError(AssertionError):
    """A quantizer failed its checks; the text is the report.

    Attributes:
        report: the `Report`.

    Example:
        >>> report = Report("MyAct", "activation", (Result("value_range", "failed", "found 8"),))
        >>> QuantizerCheckError(report).report.failed
        ('value_range',)
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(str(report))

    def __reduce__(self) -> tuple[type["QuantizerCheckError"], tuple[Report]]:
        return QuantizerCheckError, (self.report,)


def _line(result: Result) -> str:
    indent = "\n" + " " * 29
    return f"  {result.status:8} {result.check:17} {result.message.replace(chr(10), indent)}".rstrip()
