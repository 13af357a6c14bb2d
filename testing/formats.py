"""Running the rules of number formats."""

import time
from collections.abc import Iterable

import torch

from ..qcore import NumberFormat, SettingError
from .checks.levels import MOST_BITS, RULES, Rule
from .kit import said
from .registry import named
from .report import NotApplicable, QuantizerCheckError, Report, Result

__all__ = ["check_format"]


def check_format(number_format: NumberFormat, *, skip: Iterable[str] = (), raises: bool = True) -> Report:
    """Check that a number format, shipped or your own, obeys the contract of `NumberFormat`.

    It is tried at its levels, between them, beside them and beyond the ends. `check_quantizer` does the quick part of
    this for the levels of a quantizer.

    Args:
        number_format: the format, with 16 bits at most.
        skip: names of rules to leave out; ``traces`` and ``exports`` take a second or two.
        raises: whether to raise an error if a rule is broken; otherwise the report is only returned.

    Returns:
        A `Report`, like that of `check_quantizer`.

    Raises:
        QuantizerCheckError: a rule is broken and ``raises`` is set; the text is the report.
        SettingError: something that is no number format, one of more bits, or an unknown name of a rule.

    Example:
        >>> from bitwright.qcore import E2M1
        >>> print(check_format(E2M1, skip=["traces", "exports"]).table())
        e2m1fn (number format): 7 checks, 7 passed
          passed   is_a_value
          passed   has_levels
          passed   encodes
          passed   goes_to_nearest
          passed   rounds
          passed   has_one_result
          passed   has_edges
    """
    if not isinstance(number_format, NumberFormat) or number_format.learned or number_format.bits > MOST_BITS:
        expected = f"a number format such as E4M3 or Integers(8), of {MOST_BITS} bits at most"
        raise SettingError("number_format", number_format, expected)
    unwanted = named("skip", skip, RULES)
    results = tuple(_result(name, rule, number_format) for name, rule in RULES.items() if name not in unwanted)
    report = Report(str(number_format), "number format", results)
    if raises and not report.ok:
        raise QuantizerCheckError(report)
    return report


def _result(name: str, rule: Rule, number_format: NumberFormat) -> Result:
    """Run one rule; its exceptions become results."""
    start = time.perf_counter()
    status, message = "passed", ""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rule(number_format)
    except NotApplicable as reason:
        status, message = "skipped", str(reason)
    except Exception as error:
        status, message = "failed", said(error)
    return Result(name, status, message, time.perf_counter() - start)
