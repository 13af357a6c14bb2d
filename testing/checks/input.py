"""Inputs of every kind: dtypes, memory formats, empty, constant and non-finite tensors."""

import torch
from torch import Tensor

from ..registry import register_check
from ..report import Failure, NotApplicable
from ..subject import Case, Subject
from .grid import first, shown

__all__ = [
    "constant_input",
    "dtype",
    "empty_input",
    "half_precision",
    "infinity",
    "input_unchanged",
    "memory_format",
    "non_finite_input",
]


@register_check
def dtype(subject: Subject) -> None:
    """Output and gradient have the dtype, shape and device of the input."""
    for kind in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        case = subject.settled(subject.tensor())
        x = subject.tensor(1).to(kind).requires_grad_()
        values, _ = case.run(x)
        for what, found in (("values", values), ("values without gradients", case.quantize(x)[0])):
            if (found.dtype, found.shape) != (kind, x.shape):
                raise Failure(f"{what} like the input, {_short(x)}", _short(found))
        if values.requires_grad:
            values.sum().backward()
        if x.grad is not None and x.grad.dtype != kind:
            raise Failure(f"a gradient like the input, {_short(x)}", _short(x.grad))


@register_check
def memory_format(subject: Subject) -> None:
    """The output keeps the strides of the input, channels-last included; its values don't depend on them."""
    if len(subject.example) < 2 or (subject.given is not None and len(subject.given) != 4):
        raise NotApplicable(f"a tensor of shape {subject.example} has one memory format")
    shape = subject.given or (*subject.example, 3, 2)[:4]
    if subject.axis is not None and subject.axis >= 4:
        raise NotApplicable(f"axis {subject.axis} is beyond images")
    x = subject.tensor(0, shape)
    outputs = []
    for wanted, each in (("channels_last", x.to(memory_format=torch.channels_last)), ("contiguous", x)):
        torch.manual_seed(0)
        for values, _ in subject.settled(each).each_way():
            if values.stride() != each.stride():
                raise Failure(f"strides {each.stride()}, {wanted}", f"{values.stride()}")
            outputs.append(values)
    if not torch.equal(torch.stack(outputs[:2]), torch.stack(outputs[2:])):
        raise Failure("the same values in every memory format", "others")


@register_check
def half_precision(subject: Subject) -> None:
    """Half precision gives float32's result, to its own precision; no intermediate result overflows."""
    for kind, largest in ((torch.float16, 3e4), (torch.bfloat16, 1e30), (torch.float16, 1e-4)):
        ordinary = subject.tensor()
        x = (ordinary * (largest / ordinary.abs().max())).to(kind)
        half, wide = subject.settled(x), subject.settled(x.float())
        half.context = wide.context = subject.context(tuple(x.shape), largest / 100)
        found, _ = half.quantize()
        expected, grid = wide.quantize()
        last = torch.finfo(kind).smallest_normal * torch.finfo(kind).eps
        near = wide.gap(expected, grid) * 1.001 + expected.abs() * 2**-7 + last
        wrong = ~((found.float() - expected).abs() <= near)
        if bool(wrong.any()):
            raise Failure(f"about {first(expected, wrong)}, as in float32 ({kind})", first(found.float(), wrong, half))


@register_check
def empty_input(subject: Subject) -> None:
    """An empty tensor is returned unchanged, and the state stays finite."""
    if subject.given is not None or subject.follows_input:
        shape = subject.example
        if subject.follows_input and subject.given is None:
            raise NotApplicable("a bias has one element for each output")
        raise NotApplicable(f"every tensor has the shape {shape}")
    along = len(subject.example) - 1 if subject.axis == 0 or subject.role == "weight" else 0
    shape = tuple(0 if dim == along else side for dim, side in enumerate(subject.example))
    if subject.axis is not None and subject.axis % len(shape) == along:
        raise NotApplicable("there is one scale for each element")
    module = subject.build(shape)
    case = Case(subject, module, torch.zeros(shape))
    module.initialize(case.x)
    for mode in (True, False):
        module.train(mode)
        x = torch.zeros(shape, requires_grad=True)
        values, grid = case.run(x)
        if values.shape != x.shape:
            raise Failure(f"values of shape {shape}", f"{tuple(values.shape)}")
        if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
            raise Failure("a positive, finite scale", shown(grid.scale))
        if values.requires_grad:
            values.sum().backward()
    _state_is_finite(case)


@register_check
def constant_input(subject: Subject) -> None:
    """A constant input, zero included, gives finite values and gradients and a positive, finite scale."""
    for number in (0.0, 1.0, -2.5, 1e-30):
        module = subject.build(subject.example)
        case = Case(subject, module, torch.full(subject.example, number), subject.context(subject.example, 2**-7))
        module.initialize(case.x)
        for mode in (True, False):
            module.train(mode)
            x = case.x.clone().requires_grad_()
            values, grid = case.run(x)
            facts = {"input": f"all {number:g}", "mode": "training" if mode else "evaluation"}
            if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
                raise Failure("a positive, finite scale", shown(grid.scale), facts)
            if not bool(values.isfinite().all()):
                raise Failure("finite values", f"{values.reshape(-1)[0].item()}", facts)
            learned = [each for each in module.parameters() if each.requires_grad]
            if values.requires_grad:
                for each in torch.autograd.grad(values.sum(), [x, *learned], allow_unused=True):
                    if each is not None and not bool(each.isfinite().all()):
                        raise Failure("finite gradients", first(each, ~each.isfinite()), facts)
        _state_is_finite(case)


@register_check
def non_finite_input(subject: Subject) -> None:
    """One NaN or infinity spoils neither the state nor the finite values; NaN does not become a number."""
    for number in (float("nan"), float("inf"), float("-inf")):
        case = subject.settled()
        x = subject.tensor(1)
        x.reshape(-1)[0] = number
        if subject.role != "activation":
            case.module.initialize(x)
        for mode in (True, False):
            case.module.train(mode)
            values, grid = case.run(x)
            facts = {"input": f"one element is {number}", "mode": "training" if mode else "evaluation"}
            if not bool((grid.scale.isfinite() & (grid.scale > 0)).all()):
                raise Failure("a positive, finite scale", shown(grid.scale), facts)
            if not bool(values.reshape(-1)[1:].isfinite().all()):
                raise Failure("finite values for the finite elements", "others", facts)
            if number != number and not bool(values.reshape(-1)[0].isnan()):
                raise Failure("NaN for NaN", f"{values.reshape(-1)[0].item()}", facts)
        _state_is_finite(case)


@register_check
def infinity(subject: Subject) -> None:
    """Infinity goes to the end of the range; it stays where the format says that it does not saturate."""
    case = subject.settled()
    if not getattr(subject.number_format, "saturating", True):
        raise NotApplicable(f"{subject.number_format} doesn't saturate")
    for number, end in ((float("-inf"), subject.places.low), (float("inf"), subject.places.high)):
        x = subject.tensor(1)
        x.view(-1)[0] = number
        for values, grid in (case.quantize(x), case.run(x.requires_grad_())):
            place = case.codes(values, grid).reshape(-1)[:1]
            if bool(grid.scale.isfinite().all()) and not abs(place.item() - end) < 1.5 + 1e-6 * abs(end):
                expected = f"{subject.places.steps(torch.tensor(end)).item():.9g} steps for {number}"
                raise Failure(expected, f"{subject.places.steps(place).item():.9g}")


@register_check
def input_unchanged(subject: Subject) -> None:
    """The input is unchanged: nothing is computed in place."""
    case = subject.settled()
    for mode in (True, False):
        case.module.train(mode)
        for wants_grad in (True, False):
            x = subject.tensor(1) * 4
            kept = x.clone()
            with torch.set_grad_enabled(wants_grad):
                values, _ = case.module.quantize(x.requires_grad_(wants_grad), *case.context)
            changed = x.detach() != kept
            if bool(changed.any()):
                raise Failure(f"the input's {first(kept, changed)} as it was", first(x.detach(), changed))
            if values.data_ptr() == x.data_ptr():
                raise Failure("values in memory of their own", "the input's memory")


def _state_is_finite(case: Case) -> None:
    for name, each in case.module.state_dict().items():
        if each.is_floating_point() and not bool(each.isfinite().all()):
            raise Failure(f"finite state in {name}", shown(each))


def _short(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.")
