"""How quantizers disturb the gradients that come through them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...nn.contexts.intercepting import intercepted, quantizers_of
from ...nn.contexts.switching import unquantized
from ...qcore import Grid, TensorQuant
from ...qcore.models import require_model
from ...qcore.tensor_quant import Intercept
from ..errors import GraphError
from ..explaining.explanation import decibels
from ..measuring.batches import batches_of
from ..measuring.signal import SignalToNoise
from .study import Loss, Outputs, Study, differentiable, listed_batches
from .table import aligned
from .trials import sharing_copy, working

__all__ = ["GradientNoise", "gradient_noise", "gradient_ratios"]


@dataclass(frozen=True)
class GradientNoise:
    """What `gradient_noise` found: print it, or take it as data.

    Attributes:
        ratios: by the path of each quantizer, the signal-to-noise ratio in dB of the gradient that comes through it.

    Example:
        >>> print(GradientNoise({"fc.weight_quant": 12.34}))
        quantizer        gradient
        fc.weight_quant      12.3
    """

    ratios: Mapping[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, ...]:
        """The paths of the quantizers, those that disturb gradients most first."""
        return tuple(sorted(self.ratios, key=lambda path: self.ratios[path]))

    def __getitem__(self, path: str) -> float:
        return self.ratios[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ratios)

    def __len__(self) -> int:
        return len(self.ratios)

    def as_dict(self) -> dict[str, float]:
        """The ratios as a plain dict, for JSON."""
        return dict(self.ratios)

    def __str__(self) -> str:
        rows = [{"quantizer": path, "gradient": decibels(ratio)} for path, ratio in self.ratios.items()]
        return "\n".join(aligned(["quantizer", "gradient"], rows))


def gradient_noise(
    q: nn.Module,
    data: object,
    *,
    loss: Loss | None = None,
    outputs: Outputs | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GradientNoise:
    """How far the straight-through gradient is from the float model's, for each quantizer alone.

    With one quantizer on and everything else float, the loss is differentiated by the tensor that the quantizer takes,
    and the gradient is compared with that of the float model: the ratio of its power to that of the difference. Low
    ratios say which quantizers will make training hard. The model stays as it is.

    Args:
        q: a quantized model; ranges of activations have to be calibrated.
        data: one batch, or an iterable of batches, as for `sensitivity`.
        loss: what the model is trained with, called with what the model returned and the batch as given. None is a sum
            of the outputs with random signs.
        outputs: takes the tensors that count from what the model returns, where it is not all of them.
        seed: of the random signs.
        progress: show a bar where standard error is a terminal.

    Raises:
        GraphError: not a model, one without quantizers, or no data.

    Example:
        >>> import bitwright.nn as qnn
        >>> model = nn.Sequential(qnn.QuantLinear(8, 8, weight_bit_width=3), nn.ReLU(), qnn.QuantLinear(8, 2))
        >>> found = gradient_noise(model, torch.randn(16, 8))
        >>> list(found), found["0.weight_quant"] < 30
        (['0.weight_quant', '2.weight_quant'], True)
    """
    require_model("gradient_noise", q, GraphError)
    batches = listed_batches(data)
    calls = batches_of("gradient_noise", q, data if batches is None else batches)
    copied = sharing_copy("gradient_noise", q)
    quantizers = quantizers_of(copied)
    if not quantizers:
        raise GraphError(
            f"gradient_noise: this {type(q).__name__} has no quantizers. Pass a quantized model: quantize(model, W8A8)."
        )
    study = Study(
        copied, {}, calls, batches or [data], outputs, loss, seed=seed, progress=progress, asked="gradient_noise"
    )
    found = gradient_ratios(study, copied, {path: {path: quant} for path, quant in quantizers.items()})
    return GradientNoise({path: ratio.decibels for path, ratio in found.items()})


def gradient_ratios(
    study: Study, model: nn.Module, units: Mapping[str, Mapping[str, TensorQuant]]
) -> dict[str, SignalToNoise]:
    """The gradients through quantizers that work, against those of the float model.

    Args:
        study: the batches and the loss.
        model: what they are put through.
        units: by any name, the quantizers that work at a time, by names of theirs.
    """
    together = {(unit, name): quant for unit, own in units.items() for name, quant in own.items()}
    found = {unit: SignalToNoise() for unit in units}
    floats: dict[tuple[str, str], list[Tensor]] = {}
    steps = [(number, unit) for number in range(len(study.calls)) for unit in units]
    for step, (number, unit) in enumerate(study.tracked(steps, "gradients")):
        if step % len(units) == 0:
            floats = _gradients(study, model, together, number, work=False)
        own = {(unit, name): quant for name, quant in units[unit].items()}
        for key, gradients in _gradients(study, model, own, number, work=True).items():
            found[unit].add(floats[key], gradients)
    return found


def _gradients(
    study: Study, model: nn.Module, quantizers: Mapping[tuple[str, str], TensorQuant], number: int, work: bool
) -> dict[tuple[str, str], list[Tensor]]:
    """The gradients of the loss of a batch by what each quantizer takes, in every call."""
    named = {str(index): key for index, key in enumerate(quantizers)}
    probes: dict[str, list[Tensor]] = {name: [] for name in named}

    def before(name: str, x: Tensor) -> Tensor:
        probe = torch.zeros_like(x, requires_grad=True)
        probes[name].append(probe)
        return x + probe

    def pass_through(name: str) -> Intercept:
        def passing(quant: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, Grid | None]:
            return before(name, x), None

        return passing

    args, kwargs = study.calls[number]
    by_name = {name: quantizers[key] for name, key in named.items()}
    block: Any = working(by_name, before) if work else intercepted(by_name, pass_through)
    with differentiable(model), unquantized(model), block:
        loss = study.loss_of(model(*args, **kwargs), number)
    flat = [(name, probe) for name, own in probes.items() for probe in own]
    found: dict[tuple[str, str], list[Tensor]] = {key: [] for key in quantizers}
    if not loss.requires_grad:
        return {named[name]: [torch.zeros_like(each) for each in own] for name, own in probes.items()}
    gradients = torch.autograd.grad(loss, [probe for _, probe in flat], allow_unused=True) if flat else ()
    for (name, probe), gradient in zip(flat, gradients, strict=True):
        found[named[name]].append(torch.zeros_like(probe) if gradient is None else gradient)
    return found
