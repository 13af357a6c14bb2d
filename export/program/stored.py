"""Weights, biases and tables in a program: integers or codes that are stored, and the operators that make values."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..capture.record import Call, Recording
from .markers import Mark
from .names import Names
from .operators import FLOAT8, operators, type_of

__all__ = ["StoredValue", "stored_codes", "stored_values"]


def stored_codes(call: Call) -> Tensor:
    """The tensor that a program stores for a call: integers, 8-bit floats, or codes of a table.

    Its shape is that of the values, except for integers in groups that no operator takes: those are rows, one for each
    scale.
    """
    number_format, codes = call.grid.number_format, call.codes.detach().cpu()
    if number_format in FLOAT8:
        return codes.view(FLOAT8[number_format]).clone()
    if not _whole(call):
        return codes.clone()
    low, high = call.plain.bounds
    codes = codes.to(type_of(low, high, mixes=True))
    return call.grid.granularity.rows(codes).clone() if _in_rows(call) else codes.clone(memory_format=_CONTIGUOUS)


_CONTIGUOUS = torch.contiguous_format


def stored_values(recording: Recording, names: Names) -> "dict[str, StoredValue]":
    """By the name of the call, all that is stored; calls that store the same share it."""
    found: dict[str, StoredValue] = {}
    for calls in recording.calls.values():
        seen: list[Call] = []
        for call in calls:
            if not (call.stored or call.quantizer.follows_input):
                continue
            first = next((each for each in seen if _alike(each, call)), None)
            if first is None:
                seen.append(call)
                found[call.name] = StoredValue(call)
            else:
                found[call.name] = found[first.name]
    return found


class StoredValue:
    """What one call of a quantizer stores, made before the trace begins.

    Args:
        call: the call.

    Attributes:
        tensors: what is stored, by role: ``codes``, ``scale``, ``zero_point``, ``table``.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.tensors: dict[str, Tensor] = {"codes": stored_codes(call)}
        grid, plain, shape = call.grid, call.plain, call.codes.shape
        if not _whole(call):
            split = grid.granularity._split(shape)
            scale = grid.scale.detach().cpu().float()
            self.tensors["scale"] = (scale.reshape(-1, 1) if split else grid.along(scale, shape)).clone()
            if grid.number_format not in FLOAT8:
                self.tensors["table"] = torch.tensor(grid.number_format.levels, dtype=torch.float32)
            return
        if not self._single():
            flat = _in_rows(call)
            zero = plain.zero_point
            self.tensors["scale"] = plain.scale.reshape(-1) if flat else plain.scale.clone()
            self.tensors["zero_point"] = zero.reshape(-1) if flat else zero.clone()

    def emit(self, mark: Mark) -> Tensor:
        """The values, as a trace computes them from what is stored."""
        call = self.call
        held = {role: mark(each, Names.buffer(role, call.path, call.index)) for role, each in self.tensors.items()}
        return self._integers(held) if _whole(call) else self._levels(held)

    def _single(self) -> bool:
        plain = self.call.plain
        return plain.axis is None and not plain.zero_point.is_floating_point()

    def _integers(self, held: Mapping[str, Tensor]) -> Tensor:
        call, plain, codes = self.call, self.call.plain, held["codes"]
        kind = (*plain.bounds, self.tensors["codes"].dtype)
        if self._single():
            return operators().dequantize_per_tensor(codes, plain.scale.item(), int(plain.zero_point), *kind)
        given = (codes, held["scale"], held["zero_point"])
        if _in_rows(call):
            values = operators().dequantize_per_channel(*given, 0, *kind)
            return call.grid.granularity.unrows(values, torch.empty(call.codes.shape, device="meta"))
        if plain.block is None:
            return operators().dequantize_per_channel(*given, plain.axis, *kind)
        return operators().dequantize_per_channel_group(*given, *kind, plain.block, torch.float32)

    def _levels(self, held: Mapping[str, Tensor]) -> Tensor:
        codes, granularity, shape = held["codes"], self.call.grid.granularity, self.call.codes.shape
        levels = held["table"][codes.to(torch.int64)] if "table" in held else codes.to(torch.float32)
        if not granularity._split(shape):
            return levels * held["scale"]
        return granularity.unrows(granularity.rows(levels) * held["scale"], levels)


def _whole(call: Call) -> bool:
    """Whether values are integers minus a zero point, times a scale."""
    return call.grid.number_format.whole or call.grid.zero_point is not None


def _in_rows(call: Call) -> bool:
    """Whether integers are stored as rows, one for each scale, as no operator takes their groups as they are."""
    plain, shape = call.plain, call.codes.shape
    if plain.axis is None:
        return plain.zero_point.is_floating_point()
    if plain.axis == -1:
        return True
    if plain.block is None:
        return False
    plainly = len(shape) == 2 and plain.axis == 1 and plain.block > 1 and shape[1] % plain.block == 0
    return not plainly


def _alike(one: Call, other: Call) -> bool:
    same = replace(one.plain, name=other.name) == other.plain and torch.equal(one.codes, other.codes)
    return same and one.grid.number_format == other.grid.number_format
