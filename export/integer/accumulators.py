"""How many bits the accumulators of a model need: for any input, and for the one at hand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import ExportError, with_causes
from .extraction import integers_for
from .float_modules import OF_WEIGHTS
from .layers import LayerIntegers, LayerProduct
from .reference.entry import run_integers
from .reference.run import IntegerRun
from .sums import AccumulatorRange, products_of, worst_sums

__all__ = ["AccumulatorReport", "AccumulatorRow", "accumulator_report"]


@dataclass(frozen=True)
class AccumulatorRow:
    """The accumulators of one layer.

    Attributes:
        name: path of the layer; with the slot of the weight, where it has several.
        worst: the smallest and largest sum that any input of the grid's integers can reach, for each output channel,
            partial sums in any order included; None where the input has no grid.
        actual: what the example reached, or None.

    Example:
        >>> row = AccumulatorRow("fc", AccumulatorRange(torch.tensor([-8, -200]), torch.tensor([7, 100])), None)
        >>> row.worst_bits, row.channel, row.actual_bits
        (9, 1, None)
    """

    name: str
    worst: AccumulatorRange | None
    actual: AccumulatorRange | None

    @property
    def worst_bits(self) -> int | None:
        """Bits of two's complement that no input overflows."""
        return None if self.worst is None else self.worst.bits

    @property
    def actual_bits(self) -> int | None:
        """Bits that the example needed."""
        return None if self.actual is None else self.actual.bits

    @property
    def channel(self) -> int | None:
        """The output channel that needs most bits."""
        if self.worst is None:
            return None
        return int(torch.maximum(self.worst.high, -self.worst.low - 1).argmax())


@dataclass(frozen=True)
class AccumulatorReport:
    """The accumulators of a model's layers.

    Example:
        >>> worst = AccumulatorRange(torch.tensor([-8, -200]), torch.tensor([7, 100]))
        >>> actual = AccumulatorRange(torch.tensor([-3]), torch.tensor([5]))
        >>> report = AccumulatorReport([AccumulatorRow("fc", worst, actual)])
        >>> report.fits(16), report.fits(8), report.bits
        (True, False, 9)
        >>> print(report)
        layer        worst case    example  channel
        fc               9 bits     4 bits        1
    """

    rows: list[AccumulatorRow] = field(default_factory=list)

    def __getitem__(self, path: str) -> AccumulatorRow:
        return {row.name: row for row in self.rows}[path]

    @property
    def bits(self) -> int:
        """Bits that no layer overflows, whatever the input."""
        self._require_grids("bits")
        return max((row.worst_bits or 0 for row in self.rows), default=0)

    def fits(self, bits: int) -> bool:
        """Whether accumulators of so many bits suffice for every input."""
        return self.bits <= bits

    def certify(self, bits: int) -> "AccumulatorReport":
        """This report, if accumulators of so many bits suffice for every input.

        Raises:
            ExportError: they don't: each layer, its worst channel, and the sum that overflows.
        """
        self._require_grids(f"certify({bits})")
        causes = []
        for row in self.rows:
            if row.worst is None or (row.worst_bits or 0) <= bits:
                continue
            channel, worst = row.channel or 0, row.worst
            low, high = int(worst.low[channel]), int(worst.high[channel])
            reached = high if high.bit_length() >= (-low - 1).bit_length() else low
            causes.append(f"{row.name}: channel {channel} may reach {reached}, which takes {row.worst_bits} bits.")
        if causes:
            count = f"{len(causes)} layer{'s' * (len(causes) > 1)}"
            head = (
                f"accumulators of {bits} bits overflow in {count}. Use {self.bits} bits, or narrower weights or inputs:"
            )
            raise ExportError(with_causes(head, causes))
        return self

    def _require_grids(self, asked: str) -> None:
        causes = [
            f"{row.name}: its input is not quantized. Write input_quant=Int8Act."
            for row in self.rows
            if row.worst is None
        ]
        if causes:
            raise ExportError(with_causes(f"{asked}: no bound is known for every layer:", causes))

    def __str__(self) -> str:
        lines = [f"{'layer':12} {'worst case':>10} {'example':>10} {'channel':>8}"]
        for row in self.rows:
            worst, actual = (
                "unknown" if bits is None else f"{bits} bits" for bits in (row.worst_bits, row.actual_bits)
            )
            channel = "" if row.channel is None else row.channel
            lines.append(f"{row.name:12} {worst:>10} {actual:>10} {channel:>8}")
        return "\n".join(lines)


def accumulator_report(
    model: nn.Module, example: Tensor | tuple[object, ...], *, kwargs: Mapping[str, object] | None = None
) -> AccumulatorReport:
    """How many bits the accumulators of each layer need.

    The worst case is taken over all inputs on the layer's input grid, from the integers of its weight: for each output
    channel the sum of the largest products, with the bias where it adds to them. No partial sum, in whatever order,
    lies outside (after Colbert et al., "A2Q: Accumulator-Aware Quantization with Guaranteed Overflow Avoidance", 2023).

    Args:
        model: a model with quantized layers; it is left as it was.
        example: one tensor, or a tuple of all positional arguments.
        kwargs: keyword arguments.

    Returns:
        An `AccumulatorReport`: ``report.certify(24)`` raises where 24 bits don't suffice.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Uint4Act
        >>> layer = qnn.QuantLinear(3, 1, bias=False, weight_bit_width=4, input_quant=Uint4Act(scale=1.0))
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.7, -0.3, 0.1]]))
        >>> row = accumulator_report(nn.Sequential(layer), torch.ones(1, 3))["0"]
        >>> row.worst, row.worst_bits, row.actual_bits
        (AccumulatorRange(low=tensor([-45]), high=tensor([120])), 8, 4)
    """
    found = integers_for("accumulator_report", model, example, kwargs)
    run = run_integers(model, example, integers=found, accumulator_bits=53, kwargs=kwargs)
    in_floats = {each.path for each in found.floats if OF_WEIGHTS & set(each.operations)}
    return AccumulatorReport([row for layer in found.layers.values() for row in _rows(layer, run, in_floats)])


def _rows(layer: LayerIntegers, run: IntegerRun, in_floats: set[str]) -> Iterator[AccumulatorRow]:
    """A row for each weight that a layer multiplies something with, or may: its products may be floats."""
    matrices = [slot for slot, each in layer.parameters.items() if each.codes is not None and each.codes.ndim > 1]
    known = {slot: [each for each in products_of(layer) if each.weight == slot] for slot in matrices}
    alone = len(matrices) == 1
    for slot, products in known.items():
        grid = layer.quantizers[slot].grid
        path = grid.name.rpartition(f"{slot.partition('.')[0]}_quant")[0].removesuffix(".")
        if not products and path not in in_floats:
            continue  # a table, whose rows are looked up
        summed = run.products.get(grid.name)
        actual = run.sums.get(layer.name) if alone and products else None if summed is None else summed.range
        name = layer.name if alone else f"{layer.name}.{slot}".removeprefix(".")
        yield AccumulatorRow(name, _worst(layer, products), actual)


def _worst(layer: LayerIntegers, products: list[LayerProduct]) -> AccumulatorRange | None:
    """The range of all products with one weight; None where that of one is unknown."""
    found = [worst_sums(layer, each) for each in products]
    known = [each for each in found if each is not None]
    if not known or len(known) < len(found):
        return None
    low, high = (torch.stack([getattr(each, end) for each in known]) for end in ("low", "high"))
    return AccumulatorRange(low.amin(0), high.amax(0))
