"""Recurrent layers and attention: training steps and evaluation, against torch's own layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Uint8Act

from .networks import WARM_UP
from .timing import Timed
from .workload import Sampler, Workload

__all__ = ["SEQUENCES"]

SIZES = {"256": (50, 32, 40, 256), "64": (100, 16, 40, 64)}  # steps, batch, input and hidden features
EMBEDDED = {"128": (16, 64, 128), "256": (8, 128, 256)}  # batch, length, embedding
HEADS = 4
EVERYTHING: dict[str, Any] = {"input_quant": Int8Act}
NO_STATES: dict[str, Any] = {"hidden_quant": None}
EVERY_SLOT: dict[str, Any] = {
    "input_quant": Int8Act,
    "scores_quant": Int8Act,
    "attention_quant": Uint8Act,
    "context_quant": Int8Act,
    "output_quant": Int8Act,
}


class Step:
    """Forward and backward, to the input and the parameters."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
        self.model, self.call = model, call
        self.x = x.requires_grad_()
        self.grad = torch.randn_like(call(model, x))

    def __call__(self) -> None:
        self.call(self.model, self.x).backward(self.grad)
        for tensor in (self.x, *self.model.parameters()):
            tensor.grad = None


def prepared(make: Callable[[str], nn.Module], call: Any, shape: tuple[int, ...], library: str) -> tuple[Any, Tensor]:
    """A layer whose scales are learned, after one batch, and its input."""
    torch.manual_seed(0)
    model, x = make(library).train(), torch.randn(shape)
    with torch.no_grad():
        call(model, x)
    qnn.finish_calibration(model)
    return model, x


def step(make: Callable[[str], nn.Module], call: Any, shape: tuple[int, ...], library: str) -> Sampler:
    """Times a training step."""
    run = Step(prepared(make, call, shape, library)[0], call, torch.randn(shape))
    for _ in range(WARM_UP):
        run()
    return Timed(run)


def evaluation(make: Callable[[str], nn.Module], call: Any, shape: tuple[int, ...], library: str) -> Sampler:
    """Times a forward in evaluation."""
    model, x = prepared(make, call, shape, library)
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            call(model, x)

    return Timed(forward)


def recurrent(kind: str, settings: dict[str, Any], inputs: int, hidden: int, library: str) -> nn.Module:
    """A recurrent layer; the cell of an LSTM is quantized where its hidden state is."""
    if library == "float":
        return getattr(nn, kind)(inputs, hidden)
    cell = {"cell_quant": Int8Act} if kind == "LSTM" and settings is EVERYTHING else {}
    return getattr(qnn, f"Quant{kind}")(inputs, hidden, **settings, **cell)


def attention(embedded: int, settings: dict[str, Any], library: str) -> nn.Module:
    """Multi-head self-attention."""
    if library == "float":
        return nn.MultiheadAttention(embedded, HEADS, batch_first=True)
    return qnn.QuantMultiheadAttention(embedded, HEADS, batch_first=True, **settings)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """The outputs of all steps."""
    return model(x)[0]


def attended(model: nn.Module, x: Tensor) -> Tensor:
    """The result of self-attention."""
    return model(x, x, x, need_weights=False)[0]


OWN = ("bitwright",)


def _recurrent(kind: str, size: str, settings: dict[str, Any], what: str, timed: Callable[..., Sampler]) -> Workload:
    steps, batch, inputs, hidden = SIZES[size]
    make = partial(recurrent, kind, settings, inputs, hidden)
    title = f"Quant{kind}({inputs}, {hidden}), {steps} steps, batch {batch}, {what}"
    return Workload(title, OWN, partial(timed, make, outputs, (steps, batch, inputs)))


def _attention(size: str, settings: dict[str, Any], what: str, timed: Callable[..., Sampler]) -> Workload:
    batch, length, embedded = EMBEDDED[size]
    make = partial(attention, embedded, settings)
    title = f"QuantMultiheadAttention({embedded}, {HEADS}), length {length}, batch {batch}, {what}"
    return Workload(title, OWN, partial(timed, make, attended, (batch, length, embedded)))


SEQUENCES = {
    f"{kind.lower()}-{size}-{name}": _recurrent(kind, size, settings, what, timed)
    for kind in ("LSTM", "GRU")
    for size in SIZES
    for name, settings, what, timed in (
        ("step", EVERYTHING, "training step, all W8A8 and learned", step),
        ("weights-step", NO_STATES, "training step, weights only", step),
        ("eval", EVERYTHING, "evaluation, all W8A8", evaluation),
    )
} | {
    f"attention-{size}-{name}": _attention(size, settings, what, timed)
    for size in EMBEDDED
    for name, settings, what, timed in (
        ("step", EVERY_SLOT, "training step, all slots", step),
        ("usual-step", {}, "training step, the usual slots", step),
        ("eval", EVERY_SLOT, "evaluation, all slots", evaluation),
    )
}
