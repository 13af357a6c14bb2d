"""Spaces of features that may be rotated: what writes them, what reads them, and by which blocks."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from math import gcd

import torch
from torch import Tensor

from ..regions.scales import Scales
from .features import Features
from .norms import Norm
from .parts import Matrix, Reading

__all__ = ["Space", "Turn", "spaces_of"]


@dataclass(frozen=True)
class Turn:
    """A part of a parameter that a rotation multiplies along one dimension, block by block.

    Attributes:
        layer: the path of the layer, or of the parameter.
        parameter: the path.
        dim: the dimension.
        start: of the part, along that dimension.
        stop: behind it.
        rows: the part along dimension 0, where ``dim`` is 1: the outputs of a matrix.
    """

    layer: str
    parameter: str
    dim: int
    start: int
    stop: int
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Space:
    """Features that are rotated together.

    Attributes:
        name: what a report calls it.
        kind: "stream", or "values" where it lies between the values and the output of attention.
        size: of the rotation.
        writers: the parts of parameters that write the features.
        readers: those that read them.
        readings: the matrices that read them, with the norm before each.
        norms: what normalizes them.
    """

    name: str
    kind: str
    size: int
    writers: tuple[Turn, ...]
    readers: tuple[Turn, ...]
    readings: tuple[Reading, ...]
    norms: tuple[Norm, ...]

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Everything that is multiplied."""
        return self.writers + self.readers

    @property
    def centered(self) -> bool:
        """Whether a norm subtracts the mean, which what writes must do then."""
        return any(norm.centered for norm in self.norms)


def spaces_of(features: Features) -> tuple[list[Space], list[str]]:
    """The spaces of a model that can be rotated, and why residual streams can't be."""
    classes = features.classes
    rows = _distinct(classes.of(row) for row in features.rows)
    parts = Scales()
    parts.channels((classes.count,), 0)
    for row in rows:
        parts.link(row, row[:1].expand_as(row))
    component = parts.classes().of(torch.arange(classes.count))
    summed = {int(each) for ids in features.summed for each in component[classes.of(ids)].unique()}
    found: dict[int, Space] = {}
    reasons: dict[int, str] = {}
    read = {int(each) for row in rows for each in component[row[:1]]}
    for number in sorted(read | summed):
        space = _space(features, number, component, [row for row in rows if component[row[0]] == number])
        if isinstance(space, Space):
            found[number] = space
        else:
            reasons[number] = space
    _drop_shared(features, component, found, reasons)
    for name in {space.name for space in found.values()}:
        for count, number in enumerate([each for each in found if found[each].name == name][1:], 2):
            found[number] = replace(found[number], name=f"{name} {count}")
    order = sorted(found, key=lambda number: (found[number].kind != "stream", number))
    writers: dict[int, str] = {}
    for writing in features.writings:
        for number in component[classes.of(writing.ids)].unique().tolist():
            writers.setdefault(number, writing.layer)
    why = [f"what {writers[each]} writes: {reasons[each]}" for each in sorted(reasons) if each in summed & set(writers)]
    return [found[number] for number in order], why


def _distinct(rows: Iterable[Tensor]) -> list[Tensor]:
    return list({tuple(row.tolist()): row for row in rows}.values())


def _drop_shared(features: Features, component: Tensor, found: dict[int, Space], reasons: dict[int, str]) -> None:
    """A norm whose gain is folded for some of its calls only can't be folded at all."""
    while True:
        before = len(found)
        for norm, row in features.normed:
            number = int(component[features.classes.of(row)[0]])
            if number in found or not norm.gain:
                continue
            for other in [each for each in found if any(shared.gain == norm.gain for shared in found[each].norms)]:
                reasons[other] = f"{norm.path} is called elsewhere, too"
                del found[other]
        if len(found) == before:
            return


def _space(features: Features, number: int, component: Tensor, rows: list[Tensor]) -> Space | str:
    """A space, or why there is none."""
    classes = features.classes
    members = (component == number).nonzero().flatten()
    why = features.why_held(members)
    if why is not None:
        return why
    values = any(component[classes.of(row)[0]] == number for row in features.values)
    blocks = _blocks(rows) if rows else None
    if blocks is None:
        return "its parts are in no common order"
    writers: dict[Turn, None] = {}
    for writing in features.writings:
        runs = _runs(classes.of(writing.ids), blocks, component, number)
        if runs is None:
            return f"{writing.layer} writes its parts in another order"
        for start, stop in runs:
            first = writing.start + start
            writers[Turn(writing.layer, writing.parameter, writing.dim, first, writing.start + stop)] = None
    readings: dict[Matrix, Reading] = {}
    for reading in features.readings:
        if component[classes.of(reading.ids)[0]] == number:
            known = readings.setdefault(reading.matrix, reading)
            if known.norm != reading.norm:
                return f"{reading.matrix.layer} is called behind several norms"
    norms = [(norm, row) for norm, row in features.normed if component[classes.of(row)[0]] == number]
    if not writers or not readings:
        return "nothing writes it" if not writers else "no linear layer reads it"
    if any(norm.centered for norm, _ in norms):
        if blocks.shape[0] != 1 or any(len(row) != blocks.numel() for _, row in norms):
            return "its mean is subtracted from parts"
        if any(not norm.centered for norm, _ in norms) or any(each.norm is None for each in readings.values()):
            return "its mean is subtracted for some of what reads it"
    sizes = {matrix: len(reading.ids) for matrix, reading in readings.items()}
    readers = [
        Turn(matrix.layer, matrix.weight, 0, 0, size)
        if matrix.transposed
        else Turn(matrix.layer, matrix.weight, 1, 0, size, (matrix.start, matrix.stop))
        for matrix, size in sizes.items()
    ]
    name = next(iter(readings)).layer
    return Space(
        f"values of {name}" if values else "stream",
        "values" if values else "stream",
        blocks.shape[1],
        tuple(writers),
        tuple(readers),
        tuple(readings.values()),
        tuple(dict.fromkeys(norm for norm, _ in norms)),
    )


def _blocks(rows: list[Tensor]) -> Tensor | None:
    """The largest blocks that all rows consist of, each class in one of them only: (blocks, size)."""
    longest = reduce(gcd, (len(row) for row in rows))
    for size in [each for each in range(longest, 1, -1) if longest % each == 0]:
        blocks = torch.cat([row.reshape(-1, size) for row in rows]).unique(dim=0)
        if blocks.numel() == len(blocks.unique()):
            return blocks
    return None


def _runs(row: Tensor, blocks: Tensor, component: Tensor, number: int) -> list[tuple[int, int]] | None:
    """Where a parameter's classes are whole blocks; None if some are in another order."""
    size = blocks.shape[1]
    firsts = {block[0]: block for block in blocks.tolist()}
    inside, found, at = (component[row] == number).nonzero().flatten().tolist(), list[tuple[int, int]](), 0
    numbers = row.tolist()
    while at < len(inside):
        start = inside[at]
        if numbers[start : start + size] != firsts.get(numbers[start]):
            return None
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], start + size
        else:
            found.append((start, start + size))
        at += size
    return found
