"""Can a model go out to a target? Asked before it is trained, and of rules before there is a model."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn

from ... import nn as qnn
from ...nn.contexts.intercepting import quantizers_of
from ...qcore import describe
from ...qcore.errors import nearest
from ...qcore.models import require_model, shown
from ..arguments import checks_keywords
from ..errors import ExportError
from .doors import TARGETS
from .examples import shown_by_examples
from .report import SupportReport, SupportRow
from .rules import Problem, called, layer_problems, problems
from .target import Target
from .use import Use, use_of, uses_of

__all__ = ["supports"]

Rules = Mapping[object, object] | Iterable[tuple[object, object]]


@checks_keywords
def supports(
    model: nn.Module | Rules, target: str | Target, examples: Tensor | tuple[object, ...] | None = None
) -> SupportReport:
    """What keeps a model from going out to a target, and what to write instead; nothing changes.

    The exports decide by the same records and rules what they refuse before they trace. What only data can show, such
    as the range of a zero point or which tensors the layers get, is part of the answer with ``examples``.

    Args:
        model: a model with quantized layers, trained or not; or rules as `bitwright.graph.quantize` takes them, where
            each setting is checked as that of a linear layer, or of an activation.
        target: a name: ``"onnx-qcdq"``, ``"onnx-qdq"``, ``"onnx-integer"`` and so on, see `TARGETS`; or a `Target`.
        examples: arguments of the model, which is evaluated on them: with them the answer is all that an export finds
            before it traces, and the accumulators of a target that limits these are checked, too.

    Returns:
        A `SupportReport`: ``report.ok``, ``print(report)``, ``report.require()``.

    Raises:
        ExportError: an unknown target, something that is neither a model nor rules, or rules with examples.

    Example:
        >>> model = nn.Sequential(qnn.QuantLinear(8, 4, weight_bit_width=20), qnn.QuantReLU())
        >>> print(supports(model, "onnx-qdq"))
        QDQ can't take 1 of 2 quantizers:
          0.weight_quant: 20 bits, signed; QDQ stores 2 to 16 (bit_width: keyword weight_bit_width). Write \
weight_bit_width=16 or less.
        >>> supports({nn.Linear: dict(weight_bit_width=4)}, "onnx-qdq").ok
        True
    """
    record = _target(target)
    if not _are_rules(model):
        require_model("supports", model, ExportError)
    if isinstance(model, nn.Module):
        uses = uses_of(model)
        rows = [
            SupportRow(called(model, path), "", problem.what, "", problem.remedy)
            for path, problem in layer_problems(model, record).items()
        ]
    else:
        uses, rows = [*_uses_of_rules(model)], []
    rows = [_row(use, problem) for use in uses for problem in problems(use, record)] + rows
    if examples is not None:
        if not isinstance(model, nn.Module):
            raise ExportError("supports: rules can't be evaluated on examples. Leave these out, or pass a model.")
        rows += shown_by_examples(model, record, examples, rows)
    return SupportReport(record.name, len(uses), tuple(rows))


def _target(target: str | Target) -> Target:
    if isinstance(target, Target):
        return target
    if isinstance(target, str) and target in TARGETS:
        return TARGETS[target]
    close = nearest(target, TARGETS) if isinstance(target, str) else None
    hint = f"Did you mean {close!r}?" if close else f"There are {', '.join(map(repr, TARGETS))}, and Target(...)."
    raise ExportError(f"supports(target={target!r}): there is no such target. {hint}")


def _row(use: Use, problem: Problem) -> SupportRow:
    return SupportRow(use.path, problem.setting, problem.what, _set_by(use, problem.setting), problem.remedy)


def _set_by(use: Use, setting: str) -> str:
    """Where a setting was made: a keyword, or a class with its line."""
    if use.quantizer.quantizer is None:
        return f"{type(use.quantizer).__name__}, made by hand"
    for name in (*_IMPLIED_BY.get(setting, ()), setting):
        try:
            return describe(use.quantizer).find(name).set_by
        except (KeyError, LookupError):
            continue
    return repr(use.quantizer.quantizer)


_IMPLIED_BY = {"granularity": ("axis", "group_size"), "number_format": ("bit_width",), "restriction": ("scaling",)}


def _are_rules(given: object) -> bool:
    """Whether something is a mapping, or a list of pairs."""
    listed = isinstance(given, list | tuple) and all(isinstance(each, tuple) and len(each) == 2 for each in given)
    return isinstance(given, Mapping) or listed


def _uses_of_rules(rules: Rules) -> Iterator[Use]:
    """The quantizers that rules ask for, each made for a small layer."""
    for where, settings in rules.items() if isinstance(rules, Mapping) else rules:
        name = getattr(where, "__name__", None) or str(where)
        if isinstance(settings, Mapping):
            for kind, layer in _layers(settings):  # which lives while its quantizers are looked at: they know it weakly
                for path, quantizer in quantizers_of(layer).items():
                    yield use_of(f"{name}.{path if kind is None else kind}", quantizer)
        elif settings is not None:
            raise ExportError(
                f"supports: the rule for {name} is {shown(settings)}. Write a dict of settings, such as "
                "dict(weight_bit_width=4), or None for what stays float."
            )


def _layers(settings: Mapping[str, object]) -> Iterator[tuple[str | None, nn.Module]]:
    """Layers with the quantizers that settings ask for, and what these are called if not by their slot."""
    layer = {key: item for key, item in settings.items() if key.startswith(("weight_", "bias_", "input_", "output_"))}
    rest = {key: item for key, item in settings.items() if key not in layer}
    if layer:
        yield None, qnn.QuantLinear(64, 64, **layer)  # type: ignore[arg-type]
    for kind in sorted((key.removesuffix("_quant") for key in rest if key.endswith("_quant")), key=len, reverse=True):
        own = {key.removeprefix(f"{kind}_"): rest.pop(key) for key in list(rest) if key.startswith(f"{kind}_")}
        quantizer = own.pop("quant")
        if quantizer is not None:
            yield f"{kind}_quant", qnn.QuantIdentity(act_quant=quantizer, **own)  # type: ignore[arg-type]
    if rest:
        yield None, qnn.QuantIdentity(**rest)  # type: ignore[arg-type]
