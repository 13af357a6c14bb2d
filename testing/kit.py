"""Running the checks on a quantizer."""

import time
import warnings
from collections.abc import Iterable

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import Flaky
from torch import Tensor

from ..qcore.declare.inject import QuantizerType
from .checks import declaration as declaration_checks
from .checks import export as export_checks
from .checks import gradient as gradient_checks
from .checks import grid as grid_checks
from .checks import input as input_checks
from .checks import levels as level_checks
from .checks import mode as mode_checks
from .checks import state as state_checks
from .registry import CHECKS, Check, selected
from .report import Failure, NotApplicable, QuantizerCheckError, Refused, Report, Result
from .subject import Case, Draw, Subject

__all__ = ["check_quantizer"]

FAMILIES = (
    declaration_checks,
    level_checks,
    grid_checks,
    gradient_checks,
    input_checks,
    state_checks,
    mode_checks,
    export_checks,
)
for _family in FAMILIES:  # the order of reports: quick and basic checks first
    for _name in _family.__all__:
        CHECKS[_name] = CHECKS.pop(_name)


def check_quantizer(
    quantizer: QuantizerType,
    *,
    checks: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    role: str | None = None,
    shape: tuple[int, ...] | None = None,
    channel_axis: int = 0,
    examples: int = 25,
    raises: bool = True,
) -> Report:
    """Check that a quantizer class obeys the contract of quantizers.

    Args:
        quantizer: the class, shipped or your own.
        checks: names of the checks to run; by default all of `CHECKS`.
        skip: names of checks to leave out, because the quantizer breaks these rules on purpose.
        role: ``"weight"``, ``"activation"`` or ``"bias"``; by default that of the shipped quantizer it derives from.
        shape: the shape of all inputs, for a quantizer that takes no other (groups of 32, say); by default small.
        channel_axis: for weights, the dimension of output channels.
        examples: the number of inputs that Hypothesis tries per property; the same inputs at each call.
        raises: whether to raise an error if a check fails; otherwise the report is only returned.

    Returns:
        A `Report`: ``report.ok``, ``report.failed``, ``report["zero"].message``, ``print(report.table())``.

    Raises:
        QuantizerCheckError: a check failed and ``raises`` is set; the text is the report.
        QuantizerError: not a quantizer class, or one that no layer can resolve.
        SettingError: an unknown name of a check.

    Example:
        >>> from bitwright.quantizers import Int4Act
        >>> print(check_quantizer(Int4Act, checks=["grid_membership", "value_range", "idempotence"]))
        Int4Act (activation): 3 checks, 3 passed
        >>> class Clamped:  # a rounding of one's own, with an own idea of the range
        ...     def __call__(self, x):
        ...         return x.round().clamp(-4, 4)
        >>> report = check_quantizer(Int4Act(rounding=Clamped), checks=["value_range"], raises=False)
        >>> print(report)
        Int4Act(rounding=Clamped) (activation): 1 checks, 1 failed
          failed   value_range       expected 7 for values at or beyond that end of the range; found 4 for 7
                                     smallest input: [[7]], float32
                                     scale: 1
    """
    subject = Subject(quantizer, role, shape, channel_axis)
    wanted = selected(checks, skip)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantizers rightly warn about how they are used here
        results = tuple(_result(check, subject, examples) for check in wanted)
    report = Report(repr(quantizer), subject.role, results)
    if raises and not report.ok:
        raise QuantizerCheckError(report)
    return report


def _result(check: Check, subject: Subject, examples: int) -> Result:
    """Run one check; its exceptions become results."""
    start = time.perf_counter()
    status, message, counterexample = "passed", "", None
    try:
        torch.manual_seed(0)
        if check.searched:
            counterexample, message = _search(check, subject, examples)
            status = "failed" if message else "passed"
        else:
            check.function(subject)
    except NotApplicable as reason:
        status, message = "skipped", str(reason)
    except Refused as reason:
        status, message = "refused", str(reason)
    except Exception as error:
        status, message = "failed", said(error)
    return Result(check.name, status, message, time.perf_counter() - start, counterexample)


def _search(check: Check, subject: Subject, examples: int) -> tuple[Tensor | None, str]:
    """Try a property on many cases; return the smallest input for which it fails, if any, with the failure."""
    try:
        check.function(subject.simplest())
    except NotApplicable:
        raise
    except Exception:
        pass
    latest: list[Case] = []

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]  # it is a kind of enumeration
        verbosity=Verbosity.quiet,
    )
    @given(subject.draws())
    def attempt(drawn: Draw) -> None:
        torch.default_generator.manual_seed(0)  # torch.manual_seed takes 1 ms: it writes down who called
        latest.clear()
        case = subject.case(drawn)
        latest.append(case)
        check.function(case)

    try:
        attempt()
    except Exception as error:
        if not latest:
            return None, said(error)
        found = latest[0].x, "\n".join([said(error), *_facts(latest[0])])
        singles = (_attempt(check, subject, drawn) for drawn in subject.single())
        return next((single for single in singles if single[1]), found)  # Hypothesis can't shrink further
    return _sweep(check, subject)


def _sweep(check: Check, subject: Subject) -> tuple[Tensor | None, str]:
    """Try a property on every tie of the range; reduce a failure to one element if possible."""
    for drawn in subject.sweeps():
        if _attempt(check, subject, drawn)[1]:
            for piece in subject.pieces(drawn):
                found = _attempt(check, subject, piece)
                if found[1]:
                    return found
            return _attempt(check, subject, drawn)
    return None, ""


def _attempt(check: Check, subject: Subject, drawn: Draw) -> tuple[Tensor | None, str]:
    """The input of one case, with its failure, if any."""
    torch.default_generator.manual_seed(0)
    case = subject.case(drawn)
    try:
        check.function(case)
    except Exception as error:
        return case.x, "\n".join([said(error), *_facts(case)])
    return None, ""


def _facts(case: Case) -> list[str]:
    """The input and the grid of a failure."""
    lines = [f"smallest input: {_numbers(case.x)}, {str(case.x.dtype).removeprefix('torch.')}"]
    if case.grid is not None:
        lines.append(f"scale: {_numbers(case.grid.scale)}")
        if case.grid.zero_point is not None:
            lines.append(f"zero point: {_numbers(case.grid.zero_point)}")
    return lines


def _numbers(x: Tensor) -> str:
    """A tensor as nested lists, with enough digits to distinguish float32 numbers."""
    if x.ndim == 0:
        return f"{x.item():.9g}"
    return f"[{', '.join(_numbers(each) for each in x.detach())}]"


def said(error: BaseException) -> str:
    """What an exception in a check says in the report."""
    if isinstance(error, Failure):
        return str(error)
    if isinstance(error, Flaky):
        return "expected the same outcome for the same input; found now one, now another"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text[:400]}" if text else f"raised {type(error).__name__}"
