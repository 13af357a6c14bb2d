"""Measuring the tensors inside of a recurrence: all steps count as one tensor."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ...qcore import Grid, IntQuant, TensorQuant
from ...qcore.scaling import StoredScaling
from ...qcore.tracing import loop_operators
from .steps import Site

__all__ = ["Quantizers", "measured_once", "quantizing", "to_measure"]

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
        if isinstance(quant, IntQuant) and isinstance(quant.scaling, StoredScaling) and quant._measures():
            found[slot] = quant.scaling
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
        with torch.no_grad():
            run({slot: site(slot, quant) for slot, quant in quantizers.items()})
        for each, seen in found.items():
            alike = len({x.shape[-1] for x in seen}) == 1
            each.start_loop(torch.cat(seen if alike else [x.reshape(-1) for x in seen]))
        yield
    finally:
        for each in found:
            each.end_loop()
