"""What an integer-only run notes on the way: which layer runs, how large its sums get, what was computed in floats."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ....qcore import TensorQuant
from ....qcore.aliases import Arguments, Keywords, Operator
from ...capture.grid import IntegerGrid
from ...capture.numbering import Counts, counted
from ...errors import ExportError
from ..sums import AccumulatorRange

__all__ = ["BY_VALUE", "Journal", "ProductSums", "operation_name"]

BY_VALUE = -2  # the axis of scales that depend on the values of integers: no dimension
EXACT = 2**53  # float64 holds every integer up to here, so that sums of products are exact whatever their order


def operation_name(operation: Operator) -> str:
    """What users call an operator of torch: ``aten::_native_batch_norm_legit_no_training`` is ``batch_norm``."""
    name = operation._schema.name.partition("::")[2].removesuffix("_legit_no_training")
    return name.removeprefix("_").removeprefix("native_")


@dataclass
class ProductSums:
    """What was summed with one parameter.

    Attributes:
        range: the smallest and largest sum.
        grids: of the integers that it was multiplied with, by name.
        bias: name of the bias's quantizer, or None.

    Example:
        >>> ProductSums(AccumulatorRange(torch.tensor([-3]), torch.tensor([5]))).range.bits
        4
    """

    range: AccumulatorRange
    grids: dict[str, IntegerGrid] = field(default_factory=dict)
    bias: str | None = None


class Journal:
    """The notes of one run.

    Args:
        accumulator_bits: width of the accumulators; a sum that they don't hold is an error.
        keep: whether the sums of each layer are kept.

    Attributes:
        sums: by layer.
        products: what was summed with each parameter, by the name of its quantizer.
        accumulators: the sums that are kept, by the name of the layer's call.
        floats: for each layer, what was computed on values in place of integers, with how often.
        noted: the same in order, as pairs of layer and operation.
        scaled_by_value: whether what some integers are worth depended on their values, as behind a leaky ReLU.

    Example:
        >>> journal = Journal(accumulator_bits=8)
        >>> journal.note_sums(torch.tensor([[100, -128]]), 1)
        >>> journal.sums[""].bits
        8
    """

    def __init__(self, accumulator_bits: int = 32, keep: bool = False) -> None:
        self.accumulator_bits, self.keep = accumulator_bits, keep
        self.accumulators: dict[str, Tensor] = {}
        self.sums: dict[str, AccumulatorRange] = {}
        self.products: dict[str, ProductSums] = {}
        self.floats: dict[str, dict[str, int]] = {}
        self.noted: list[tuple[str, str]] = []
        self.scaled_by_value = False
        self._running: list[tuple[str, str]] = []

    @property
    def layer(self) -> str:
        """Path of the innermost module that is running."""
        return self._running[-1][0] if self._running else ""

    @property
    def call(self) -> str:
        """The same, with a number from the second call of that module on."""
        return self._running[-1][1] if self._running else ""

    @contextmanager
    def following(self, module: nn.Module, passed: Callable[[str, object, object], None]) -> Iterator[None]:
        """While open, the journal knows which module runs; quantizers count as part of their layer.

        Args:
            module: the model.
            passed: called when a module returns: with its name, its first argument and its result.
        """
        counts = Counts()

        def enter(path: str) -> None:
            self._running.append((path, counted(counts, path)))

        def leave(_: object, args: Arguments, kwargs: Keywords, output: object) -> None:
            passed(self.call, next(iter((*args, *kwargs.values())), None), output)
            self._running.pop()

        handles = []
        for name, each in module.named_modules():
            if not isinstance(each, TensorQuant):
                handles.append(each.register_forward_pre_hook(lambda *_, name=name: enter(name)))
                handles.append(each.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            self._running.clear()
            for handle in handles:
                handle.remove()

    def note_sums(self, codes: Tensor, axis: int | None) -> None:
        """Note sums, with channels along an axis, and refuse those that the accumulators don't hold."""
        if codes.numel() == 0:
            return
        found = _range(codes, axis)
        self.sums[self.layer] = _joined(self.sums.get(self.layer), found)
        low, high = found.low, found.high
        reach = 2 ** (self.accumulator_bits - 1)
        over = (low < -reach) | (high > reach - 1)
        if bool(over.any()):
            channel = int(over.nonzero()[0])
            worst = int(low[channel]) if int(low[channel]) < -reach else int(high[channel])
            needed = self.sums[self.layer].bits
            where = "" if axis is None else f" in channel {channel}"
            raise ExportError(
                f"{self.layer or 'the model'}: the accumulator overflows: a sum reaches {worst}{where}, and "
                f"{self.accumulator_bits} bits hold {-reach} to {reach - 1}. Write accumulator_bits={needed} or "
                "more, or lower the bit width of weight or input."
            )

    def note_product(self, weight: str, bias: str | None, grid: IntegerGrid, sums: Sequence[Tensor], axis: int) -> None:
        """Note sums of products with a parameter.

        Args:
            weight: name of its quantizer.
            bias: name of the bias's quantizer, or None.
            grid: of the integers that it is multiplied with.
            sums: without the bias and with it.
            axis: of the channels.
        """
        for codes in sums:
            if codes.numel() == 0:
                continue
            found, former = _range(codes, axis), self.products.get(weight)
            summed = ProductSums(found) if former is None else former
            summed.range = _joined(None if former is None else former.range, found)
            summed.grids[grid.name], summed.bias = grid, bias or summed.bias
            self.products[weight] = summed

    def require_exact(self, codes: Tensor, reach: Tensor | int) -> None:
        """Refuse sums of products that float64 would round: ``codes`` times weights of magnitudes up to ``reach``."""
        largest = int(codes.abs().max()) * int(reach) if codes.numel() else 0
        if largest >= EXACT:
            raise ExportError(
                f"{self.layer or 'the model'}: sums of products may reach {largest}, more than 53 bits. Lower the bit "
                "width of weight or input."
            )

    def compute_in_float(self, what: Operator | str) -> None:
        """Note an operation on values."""
        name = what if isinstance(what, str) else operation_name(what)
        counts = self.floats.setdefault(self.layer, {})
        counts[name] = counts.get(name, 0) + 1
        self.noted.append((self.layer, name))


def _range(codes: Tensor, axis: int | None) -> AccumulatorRange:
    """The smallest and largest of some sums, for each channel."""
    flat = codes.reshape(1, -1) if axis is None else codes.movedim(axis, 0).flatten(1)
    return AccumulatorRange(flat.amin(1), flat.amax(1))


def _joined(one: AccumulatorRange | None, other: AccumulatorRange) -> AccumulatorRange:
    """The range of both: for each channel, where they have as many."""
    if one is None:
        return other
    if one.low.shape != other.low.shape:
        low, high = (torch.cat([getattr(one, end), getattr(other, end)]) for end in ("low", "high"))
        return AccumulatorRange(low.amin().reshape(1), high.amax().reshape(1))
    return AccumulatorRange(torch.minimum(one.low, other.low), torch.maximum(one.high, other.high))
