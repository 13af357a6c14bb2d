"""Measuring the tensors inside of a recurrence: all steps count as one tensor."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ...qcore import Grid, GridQuant, TensorQuant
from ...qcore.scaling import RunningScaling, StoredScaling
from ...qcore.tracing import loop_operators, transformed, uncounted
from .sequence import Steps, steps_of
from .steps import Site

__all__ = ["Quantizers", "grid_of_steps", "measured_once", "quantizing", "settled_steps", "to_measure"]

Quantizers = Mapping[str, TensorQuant]  # by the names of the sites in a step


def quantizing(quantizers: Quantizers, grids: dict[str, Grid | None]) -> dict[str, Site]:
    """Sites that quantize; the last grid of each goes to ``grids``."""

    def site(slot: str, quant: TensorQuant) -> Site:
        def quantize(x: Tensor) -> Tensor:
            values, grids[slot] = quant.quantize(x)
            return values

        return quantize

    return {slot: site(slot, quant) for slot, quant in quantizers.items()}


def to_measure(quantizers: Quantizers) -> dict[str, StoredScaling]:
    """The scalings whose range is that of this forward, or is changed by it, by the sites."""
    found = {}
    for slot, quant in quantizers.items():
        if isinstance(quant, GridQuant) and isinstance(quant.scaling, StoredScaling) and _measures(quant.scaling):
            found[slot] = quant.scaling
    return found


def _measures(scaling: StoredScaling) -> bool:
    """Whether the range is that of the tensor at hand, or this forward in training adds to it."""
    adds = scaling.training and (isinstance(scaling, RunningScaling) or scaling.calibrating)
    return adds or not scaling.calibrated


def settled_steps(quantizers: Quantizers, x: Tensor) -> dict[str, Steps] | None:
    """The grids of states that are the same for all steps of this forward; None where only the modules will do.

    In the block of `measured_once` this measures what is to be measured.

    Args:
        quantizers: those of the loop.
        x: the input.
    """
    if x.is_meta or transformed() or any(quant.intercept is not None for quant in quantizers.values()):
        return None
    found = {}
    for slot, quant in quantizers.items():
        scaling = getattr(quant, "scaling", None)
        if isinstance(scaling, StoredScaling) and scaling.training:
            part = x.new_zeros(1, 1)
            scaling.prepare(part)
            scaling._measure_if_due(part)
        steps = steps_of(quant)
        if steps is None:
            return None
        found[slot] = steps
    return found


@contextmanager
def measured_once(quantizers: Quantizers, run: Callable[[dict[str, Site]], object]) -> Iterator[None]:
    """Have the quantizers of a loop measure, once in the block, all that its steps will pass them.

    What that is a dry run says, which quantizes with the ranges there are, and not at all where there are none. So a
    forward of the model counts once, whatever its length, and its first step is quantized like its last.

    Args:
        quantizers: those of the loop.
        run: runs the loop with given sites, on all sequences, in all directions.
    """
    scalings = to_measure(quantizers) if loop_operators() is None else {}
    if not scalings:
        yield
        return
    found: dict[StoredScaling, list[Tensor]] = {each: [] for each in scalings.values()}  # slots may share one

    def site(slot: str, quant: TensorQuant) -> Site:
        seen = found.get(scalings[slot]) if slot in scalings else None

        def record(x: Tensor) -> Tensor:
            if seen is not None:
                seen.append(x)
            return quant._quantize(x)[0] if quant.calibrated else x

        return record

    try:
        for each in found:
            each.start_loop(None)
        with torch.no_grad(), uncounted():
            run({slot: site(slot, quant) for slot, quant in quantizers.items()})
        for each, seen in found.items():
            alike = len({x.shape[-1] for x in seen}) == 1
            each.start_loop(torch.cat(seen if alike else [x.reshape(-1) for x in seen]))
        yield
    finally:
        for each in found:
            each.end_loop()


def grid_of_steps(quant: TensorQuant, steps: Steps) -> Grid:
    """The settled grid of a state as the record that tensors carry."""
    assert isinstance(quant, GridQuant)
    return quant._grid(steps.scale, steps.zero_point)
