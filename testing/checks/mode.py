"""Reproducibility: repeated calls, evaluation after training, compiled and eager mode give the same numbers."""

import copy
from typing import Any

import torch
from torch import Tensor

from ..registry import register_check
from ..report import Failure
from ..subject import Case, Subject
from .grid import first, shown

__all__ = ["compiled", "determinism", "train_eval"]

_GRAPHS = 2  # that training may take: one during calibration, one after it


@register_check
def determinism(subject: Subject) -> None:
    """The same input gives the same output: in evaluation, without changing state; in training, from the same seed."""
    case = subject.settled()
    before = {name: each.clone() for name, each in case.module.state_dict().items()}
    torch.manual_seed(0)
    outputs = []
    for _ in range(8):
        outputs.append(case.quantize()[0])
    for again in outputs[1:]:
        wrong = outputs[0] != again
        if bool(wrong.any()):
            raise Failure(f"{first(outputs[0], wrong)} again, in evaluation", first(again, wrong, case))
    for name, each in case.module.state_dict().items():
        if not torch.equal(each, before[name]):
            raise Failure(f"{name} as it was before evaluation", shown(each))
    trained = []
    for _ in range(2):
        module = subject.build(subject.example)
        torch.manual_seed(7)
        trained.append(Case(subject, module.train(), case.x, case.context).run(case.x)[0])
    if not torch.equal(*trained):
        raise Failure("the same training output from the same seed", "another")


@register_check
def train_eval(subject: Subject) -> None:
    """Evaluation uses the grid of the last training step, even if parameters changed after an earlier evaluation."""
    case = subject.settled()
    module = case.module
    for seed in range(3):
        x = subject.tensor(seed) * (seed + 1)
        case.quantize(x)  # in evaluation: whatever is kept from here on must not go stale
        with torch.no_grad():
            for each in module.parameters():
                each.mul_(1.25)
        module.train()
        values, trained = case.run(x)
        module.eval()
        found, evaluated = case.quantize(x)
        for what, one, other in (
            ("scale", trained.scale, evaluated.scale),
            ("zero point", trained.zero_point, evaluated.zero_point),
        ):
            alike = one is other if one is None or other is None else torch.equal(one, other)
            if not alike:
                raise Failure(f"the {what} of the training step, {_said(one)}", f"{_said(other)} in evaluation")
        if trained.number_format != evaluated.number_format:
            expected = f"the levels of the training step, {trained.number_format}"
            raise Failure(expected, f"{evaluated.number_format} in evaluation")
        # a rounding may be random in training, but only between the neighbouring levels
        far = (values.detach() - found).abs() > case.gap(x, evaluated) * 1.001
        if bool(far.any()):
            raise Failure(f"{first(values.detach(), far)} in evaluation, as in training", first(found, far))
        if _repeats(case, x) and not torch.equal(values.detach(), found):
            wrong = values.detach() != found
            raise Failure(f"{first(values.detach(), wrong)} in evaluation, as in training", first(found, wrong))


@register_check
def compiled(subject: Subject) -> None:
    """With ``torch.compile(fullgraph=True)`` a layer trains and evaluates as in eager mode, in at most two graphs."""
    import torch._dynamo as dynamo
    from torch._dynamo.exc import TorchDynamoException

    eager = subject.layer()
    layer = copy.deepcopy(eager)
    dynamo.reset()
    try:
        with dynamo.config.patch(recompile_limit=_GRAPHS, fail_on_recompile_limit_hit=True):
            traced = torch.compile(layer, backend="aot_eager", fullgraph=True)
            for step in range(4):
                outputs = [_step(each, subject, step) for each in (eager, traced)]
                _alike(f"training step {step + 1}", *outputs)
        dynamo.reset()
        with dynamo.config.patch(recompile_limit=_GRAPHS, fail_on_recompile_limit_hit=True), torch.no_grad():
            eager.eval()
            layer.eval()
            traced = torch.compile(layer, backend="aot_eager", fullgraph=True)
            for seed in range(2):
                x = subject.layer_input(seed)
                _alike("evaluation", {"output": eager(x)}, {"output": traced(x)})
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise Failure(
            "one graph, compiled at most twice", f"{type(error).__name__}: {' '.join(lines[:2])[:300]}"
        ) from None
    finally:
        dynamo.reset()


def _step(layer: Any, subject: Subject, seed: int) -> dict[str, Tensor]:
    """One training step; output and gradients by name."""
    torch.manual_seed(seed)
    x = subject.layer_input(seed).requires_grad_()
    out = layer.train()(x)
    (out * torch.linspace(-1, 2, out.numel()).reshape(out.shape)).sum().backward()
    found = {"output": out.detach()}
    gradients = {"gradient of the input": x.grad}
    for name, each in layer.named_parameters():
        gradients[f"gradient of {name.removeprefix('_orig_mod.')}"] = each.grad
    layer.zero_grad(set_to_none=True)
    return {**found, **{name: each for name, each in gradients.items() if each is not None}}


def _alike(when: str, eager: dict[str, Tensor], traced: dict[str, Tensor]) -> None:
    for name in sorted(set(eager) | set(traced), key=lambda each: each != "output"):
        if name not in traced or name not in eager:
            raise Failure(
                f"{name} compiled as in eager mode, {when}", f"{'none' if name in eager else 'one'}, compiled"
            )
        one, other = eager[name], traced[name]
        allowed = 1e-6 * one.abs().max() if name == "output" else 1e-4 * one.abs().max() + 1e-5
        wrong = ~((one - other).abs() <= allowed)
        if bool(wrong.any()):
            raise Failure(f"{name} {first(one, wrong)}, as in eager mode, {when}", f"{first(other, wrong)} compiled")


def _repeats(case: Case, x: Tensor) -> bool:
    """Whether training is deterministic: copies agree, whatever the seed."""
    outputs = []
    for seed in range(5):
        module = copy.deepcopy(case.module).train()
        torch.manual_seed(seed)
        outputs.append(Case(case.subject, module, x, case.context).run(x)[0])
    return all(torch.equal(outputs[0], each) for each in outputs)


def _said(tensor: Tensor | None) -> str:
    return "none" if tensor is None else shown(tensor)
