"""The number format itself: its levels and codes, where numbers go, and that it is a value.

`check_format` runs the rules one by one; `number_format`, a check of quantizers, all those that are quick.
"""

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ...export.optional import installed
from ...qcore import ROUNDINGS, HalfEven, NumberFormat
from ..places import Places
from ..registry import register_check
from ..report import Failure, NotApplicable
from ..subject import Subject
from .grid import first, shown

__all__ = ["number_format"]

MOST_BITS = 16  # of formats whose levels are tried one by one
_EVEN = HalfEven()
_FIXED = ("half_even", "half_up", "floor", "ceil", "toward_zero")
Rule = Callable[[NumberFormat], None]


@register_check
def number_format(subject: Subject) -> None:
    """The levels obey the rules of number formats, see `check_format`."""
    levels = subject.number_format
    if levels.learned or levels.bits > MOST_BITS:
        raise NotApplicable(f"{levels}: too many levels, or they change in training")
    for rule in QUICK.values():
        rule(levels)


def has_levels(levels: NumberFormat) -> None:
    """There are two levels or more that are finite; `low`, `high`, `has_zero` and `bits` follow from them."""
    found = levels.levels
    finite = sorted({level for level in found if math.isfinite(level)})
    if not isinstance(found, tuple) or len(finite) < 2:
        raise Failure("a tuple of levels, two of them finite", repr(found)[:200])
    if len(found) > 2**levels.bits:
        raise Failure(f"at most {2**levels.bits} levels, as a code has {levels.bits} bits", str(len(found)))
    for name, expected in (
        ("low", finite[0]),
        ("high", finite[-1]),
        ("has_zero", 0.0 in finite and levels.has_zero),  # counted from a zero point, the level 0 is none
        ("signed", finite[0] < 0),
        ("symmetric", finite[0] == -finite[-1]),
    ):
        if getattr(levels, name) != expected:
            raise Failure(f"{name} = {expected}, as the levels say", repr(getattr(levels, name)))


def encodes(levels: NumberFormat) -> None:
    """Every level has a code, which stands for that level; codes fit into the bits and the type that it names."""
    known = _levels(levels)
    codes = levels.encode(known)
    if codes.dtype != levels.dtype:
        raise Failure(f"codes of {levels.dtype}", str(codes.dtype))
    back = levels.decode(codes, torch.float64)
    _all_equal(known, back, "a level from its code")
    if not levels.whole:
        if not bool(((codes.long() >= 0) & (codes.long() < 2**levels.bits)).all()):
            raise Failure(f"codes from 0 to {2**levels.bits - 1}", shown(codes.double()))
        listed = torch.tensor(levels.levels, dtype=torch.float64)
        _all_equal(listed, levels.decode(torch.arange(len(listed)), torch.float64), "the level in its place")
    x = _numbers(levels, torch.float32)
    reached = levels.nearest(x, _EVEN)
    _all_equal(reached, levels.decode(levels.encode(reached)), "a value from its code")


def goes_to_nearest(levels: NumberFormat) -> None:
    """A number goes to the nearest level, what lies beyond the ends to them, infinity too; NaN stays."""
    for dtype in (torch.float32, torch.float64):
        x = _numbers(levels, dtype)
        saturating = getattr(levels, "saturating", True)
        if not saturating:
            x = x[(x >= levels.low) & (x <= levels.high)]
        found = levels.nearest(x, _EVEN)
        if found.dtype != dtype or found.shape != x.shape:
            raise Failure(f"{dtype} of shape {tuple(x.shape)}, as given", f"{found.dtype} {tuple(found.shape)}")
        lower, upper = _around(levels, x)
        middle = (lower + upper) / 2
        tie = (x.double() - middle).abs() <= 2.0**-50 * middle.abs()
        near = torch.where(x.double() < middle, lower, upper)
        wrong = (found != near.to(dtype)) & ~(tie & ((found == lower.to(dtype)) | (found == upper.to(dtype))))
        if bool(wrong.any()):
            raise Failure(f"{first(near, wrong)}, the nearest level to {first(x, wrong)}", first(found, wrong))
        _all_equal(found, levels.nearest(found, _EVEN), "a level as it is")
        special = levels.nearest(torch.tensor([math.nan, -math.inf, math.inf], dtype=dtype), _EVEN)
        if not special[0].isnan():
            raise Failure("NaN for NaN", shown(special[0]))
        if saturating:
            ends = torch.tensor([levels.low, levels.high], dtype=dtype)
            _all_equal(ends, special[1:], "the ends for infinity")


def rounds(levels: NumberFormat) -> None:
    """Every shipped rounding goes to one of the two levels around a number: floor to the lower, ceil to the upper."""
    x = _numbers(levels, torch.float32)
    x = x[(x > levels.low) & (x < levels.high)]
    known = _levels(levels)
    x = x[~torch.isin(x, known[known.float().double() != known].float())]  # beside a level that float32 can't hold
    lower, upper = (each.float() for each in _around(levels, x))
    zero = torch.where(x < 0, upper, lower)
    astride = (lower < 0) & (upper > 0)  # without a level 0, none of the two is nearer to it
    directed = {"floor": lower, "ceil": upper, "toward_zero": zero}
    for name in (*_FIXED, "stochastic"):
        found = levels.nearest(x, ROUNDINGS[name]())
        wrong = (found != lower) & (found != upper)
        if name in directed:
            wrong |= (found != directed[name]) & ~(astride & (name == "toward_zero"))
        if bool(wrong.any()):
            expected = directed.get(name, lower)
            raise Failure(f"{first(expected, wrong)} for {first(x, wrong)}, rounding {name}", first(found, wrong))


def has_one_result(levels: NumberFormat) -> None:
    """`inplace` gives what `nearest` gives, and so does `covered` between the ends; a ReLU before it costs nothing."""
    for dtype in (torch.float32, torch.float64):
        x = _numbers(levels, dtype)
        inside = x[(x >= levels.low) & (x <= levels.high)]
        for name in _FIXED:
            rounding = ROUNDINGS[name]()
            _all_equal(levels.nearest(x, rounding), levels.inplace(x.clone(), rounding), f"{name} in place")
            _all_equal(levels.nearest(inside, rounding), levels.covered(inside.clone(), rounding), f"{name} covered")
        if levels.has_zero:
            expected = levels.nearest(x.clamp_min(0), _EVEN)
            _all_equal(expected, levels.nearest(x, _EVEN, relu=True), "with a ReLU before")
            _all_equal(expected, levels.inplace(x.clone(), _EVEN, relu=True), "with a ReLU before, in place")


def has_edges(levels: NumberFormat) -> None:
    """Between `edges` nothing is clipped, and all levels lie there; `inside` says where."""
    low, high = levels.edges(_EVEN)
    known = _levels(levels).float()
    if not (low < levels.low and levels.high < high):
        raise Failure(f"edges beyond {levels.low:.9g} and {levels.high:.9g}", f"{low:.9g}, {high:.9g}")
    inside = levels.inside(known, _EVEN)
    if not bool(inside.all()):
        raise Failure("every level inside", f"{first(known, ~inside)} outside")
    beyond = levels.inside(torch.tensor([low - abs(low), high + abs(high)]) * 1.001, _EVEN)
    if bool(beyond.any()):
        raise Failure("nothing inside beyond the edges", shown(beyond.float()))


def is_a_value(levels: NumberFormat) -> None:
    """It is equal, and hashed alike, when copied, pickled or printed and read; it differs from other things."""
    for how, make in (("a pickle", lambda: pickle.loads(pickle.dumps(levels))), ("a copy", lambda: copy.copy(levels))):
        try:
            made = make()
        except Exception as error:
            raise Failure(f"a number format from {how}", f"{type(error).__name__}: {error}") from None
        if not (made == levels and hash(made) == hash(levels) and type(made) is type(levels)):
            raise Failure(f"an equal number format from {how}", repr(made))
    if levels == _Other() or not levels:
        raise Failure("a value that is true and differs from others", repr(levels))
    if str(levels) != str(copy.copy(levels)) or " at 0x" in str(levels):
        raise Failure("a text that says what the levels are, for saved states", str(levels))


class _Other(NumberFormat):
    """Another format."""


# What takes a second


def traces(levels: NumberFormat) -> None:
    """`nearest` compiles into one graph that computes the same numbers."""
    import torch._dynamo as dynamo

    x = _numbers(levels, torch.float32)
    dynamo.reset()
    try:
        found = torch.compile(levels.nearest, backend="aot_eager", fullgraph=True)(x, _EVEN)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Failure("one graph", f"{type(error).__name__}: {' '.join(lines[:2])[:300]}") from None
    finally:
        dynamo.reset()
    _all_equal(levels.nearest(x, _EVEN), found, "compiled")


def exports(levels: NumberFormat) -> None:
    """`nearest` goes to ONNX, and onnxruntime computes the same numbers."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if not installed(package):
            raise NotApplicable(f"needs the package {package}: pip install bitwright[onnx]")
    if not getattr(levels, "saturating", True):
        raise NotApplicable(f"{levels}: runtimes saturate")
    from onnxruntime import InferenceSession

    x = _numbers(levels, torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _Nearest(levels).eval()
            program: Any = torch.onnx.export(model, (x,), dynamo=True, opset_version=21, verbose=False)
    except Exception as error:
        raise Failure("an exported file", f"{type(error).__name__}: {str(error)[:300]}") from None
    session = InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    _all_equal(levels.nearest(x, _EVEN), torch.as_tensor(found), "in onnxruntime")


class _Nearest(torch.nn.Module):
    def __init__(self, levels: NumberFormat) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return self.levels.nearest(x, _EVEN)


def _by_name(rules: Iterable[Rule]) -> dict[str, Rule]:
    return {rule.__name__: rule for rule in rules}


QUICK = _by_name([is_a_value, has_levels, encodes, goes_to_nearest, rounds, has_one_result, has_edges])
RULES = {**QUICK, **_by_name([traces, exports])}


# Numbers to try


def _levels(levels: NumberFormat) -> Tensor:
    """The finite levels in order, float64."""
    places = Places(levels)
    return places.steps(torch.arange(places.low, places.high + 1))


def _numbers(levels: NumberFormat, dtype: torch.dtype) -> Tensor:
    """Levels, what lies half-way and a quarter of the way between them, the neighbours of these, and numbers beyond."""
    known = _levels(levels)
    known = known[:: max(1, len(known) // 512)] if len(known) > 512 else known
    share = torch.tensor([0.0, 0.5, 0.25])
    between = (known[:-1, None] + known.diff()[:, None] * share).reshape(-1)
    beyond = torch.cat([known[:1] * factor - known.diff()[:1] for factor in (1, 2, 1e3)])
    above = torch.cat([known[-1:] * factor + known.diff()[-1:] for factor in (1, 2, 1e3)])
    x = torch.cat([between, known[-1:], beyond, above]).to(dtype)
    ends = torch.full_like(x, math.inf)
    x = torch.cat([x, torch.nextafter(x, ends), torch.nextafter(x, -ends)])
    x = torch.where(x.abs() < 2.0**-140, 2.0**-120 * x.sign(), x)  # what is next to 0 underflows where it is divided
    return torch.cat([x, x.new_tensor([0.0, -0.0])])


def _around(levels: NumberFormat, x: Tensor) -> tuple[Tensor, Tensor]:
    """The levels below and above numbers, float64: the same where a number is a level, or lies beyond the ends."""
    known = _levels(levels)
    numbers = x.double().clamp(known[0], known[-1])
    below = (torch.bucketize(numbers, known, right=True) - 1).clamp(0, len(known) - 1)
    above = torch.where(known[below] == numbers, below, (below + 1).clamp_max(len(known) - 1))
    exact = x.dtype == torch.float32  # a level that float32 can't hold is the nearest that it can
    lower, upper = known[below], known[above]
    if exact:
        same = (lower.float() == x) | (upper.float() == x)
        at = torch.where(lower.float() == x, lower, upper)
        lower, upper = torch.where(same, at, lower), torch.where(same, at, upper)
    return lower, upper


def _all_equal(expected: Tensor, found: Tensor, what: str) -> None:
    """Two results are equal, NaN included."""
    if found.shape != expected.shape:
        raise Failure(f"{what}, of shape {tuple(expected.shape)}", f"{tuple(found.shape)}")
    wrong = (expected != found) & ~(expected.isnan() & found.isnan())
    if bool(wrong.any()):
        raise Failure(f"{first(expected, wrong)}, {what}", first(found, wrong))
