"""What is at work around a forward pass: a compiler, an exporter, a transform; and whether derivatives are recorded."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor as _batched
from torch.jit._trace import is_tracing

__all__ = [
    "LoopOperators",
    "LoopStep",
    "constant",
    "counting",
    "current_step",
    "differentiated",
    "exporting",
    "is_tracing",
    "loop_operators",
    "loop_steps",
    "loops_become",
    "number",
    "recording",
    "transformed",
    "uncounted",
]

Function = TypeVar("Function", bound=Callable[..., object])


def constant(function: Function) -> Function:
    """Have a compiler call a function while it makes a graph, and take the result for a constant.

    What `torch.compiler.assume_constant_result` does, which imports the compiler: most of a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_mapped = torch._C._are_functorch_transforms_active


def exporting() -> bool:
    """Whether `torch.export` is at work; in torch 2.9 `torch.compiler.is_exporting` says so under any compiler."""
    return torch.compiler._is_exporting_flag


@constant  # a compiler knows which transform a function is in, and asks once
def transformed() -> bool:
    """Whether `torch.func`, forward-mode differentiation or `torch.jit.trace` is at work.

    They take torch's own operations, not autograd functions of the form that the fast ones have. Nor do they under
    ``torch.compile``: in torch 2.13 a compiled `torch.func.grad` of the traced form gave wrong numbers.
    """
    return _mapped() or forward_ad._current_level >= 0 or is_tracing()


def recording() -> bool:
    """Whether a derivative may be asked for: forward-mode differentiation takes no notice of `torch.no_grad`."""
    return torch.is_grad_enabled() or transformed()


def differentiated(grad: Tensor) -> bool:
    """Whether what a backward pass does to ``grad`` is itself recorded, or mapped over several gradients at once."""
    return recording() or _batched(grad)


def number(tensor: Tensor) -> float | None:
    """What a tensor holds; None where it holds nothing yet or can't be asked (under a compiler, torch.func.vmap)."""
    try:
        return None if tensor.is_meta else tensor.item()
    except RuntimeError:
        return None


_uncounted: ContextVar[bool] = ContextVar("uncounted", default=False)


@contextmanager
def uncounted() -> Iterator[None]:
    """A forward that only looks ahead: clocks of quantizers don't count it."""
    if torch.compiler.is_compiling():
        yield
        return
    before = _uncounted.get()
    _uncounted.set(True)
    try:
        yield
    finally:
        _uncounted.set(before)


def counting() -> bool:
    """Whether a forward in training counts: it doesn't only look ahead, and is the first step of its loop over time."""
    if torch.compiler.is_compiling():
        return True
    step = _step.get()
    return not _uncounted.get() and (step is None or step.number == 0)


# Loops over time: whoever numbers calls counts those of all steps as one, and exporters make operators of loops


class LoopStep(NamedTuple):
    """One step of a loop over time.

    Args:
        loop: what all steps of one loop have in common.
        number: from 0.
    """

    loop: object
    number: int


Tensors = tuple[Tensor, ...]


class LoopOperators(Protocol):
    """What an exporter makes of loops over time."""

    def scan(
        self,
        step: Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]],
        states: Tensors,
        inputs: Tensors,
        constants: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """One operator with the step as its body; see `bitwright.nn.recurrent.scan`."""
        ...

    def recurrence(
        self, mode: str, x: Tensor, states: Tensors, weights: Sequence[Tensor], bias: bool, bidirectional: bool
    ) -> Tensors:
        """One operator for each layer.

        Args:
            mode: as torch has it, ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``.
            x: (T, B, F).
            states: (L, B, H) each, over layers and directions.
            weights: for each layer and direction weight_ih, weight_hh and the two biases; no projections.
            bias: whether there are biases.
            bidirectional: whether there are two directions.

        Returns:
            The output, and the states at the end.
        """
        ...


_step: ContextVar[LoopStep | None] = ContextVar("step", default=None)
_operators: ContextVar[LoopOperators | None] = ContextVar("operators", default=None)


def current_step() -> LoopStep | None:
    """The step that is at work, of the innermost loop; None outside loops. Each pass through a body is a new object."""
    return _step.get()


@contextmanager
def loop_steps() -> Iterator[Callable[[int], object]]:
    """A loop over time: what it yields is called with the number of each step that begins.

    Example:
        >>> with loop_steps() as begin:
        ...     _ = begin(3)
        ...     current_step().number
        3
    """
    loop, before = object(), _step.get()
    try:
        yield lambda number: _step.set(LoopStep(loop, number))
    finally:
        _step.set(before)


@constant
@constant  # a compiler asks once: no exporter is at work then
def loop_operators() -> LoopOperators | None:
    """What loops over time become, where an exporter asks for operators; None where they run."""
    return _operators.get()


@contextmanager
def loops_become(operators: LoopOperators) -> Iterator[None]:
    """Have loops over time become operators for the length of the block."""
    before = _operators.set(operators)
    try:
        yield
    finally:
        _operators.reset(before)
