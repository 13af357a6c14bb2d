"""One forward of a model on integers, and what was found on the way."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ....nn.contexts.intercepting import intercepted
from ....qcore import (
    BitwrightError,
    BitwrightWarning,
    Grid,
    HalfEven,
    IntQuant,
    QuantTensorError,
    TensorQuant,
    TruncQuant,
    values_of,
)
from ....qcore.aliases import Arguments
from ....qcore.tensor_quant import Intercept
from ....qcore.tracing import current_step
from ...capture.grid import Entering, IntegerGrid, QuantizedTensor
from ...capture.numbering import Counts, counted, numbered
from ...errors import ExportError
from ..float_modules import FloatModule
from ..requantize import ByMultiplier, Requantization, requantization
from ..sums import AccumulatorRange
from .journal import BY_VALUE, Journal, ProductSums
from .pooling import averaging_integers
from .tensor import IntegerTensor
from .terms import Term, compact
from .tracker import FloatTracker

__all__ = ["IntegerRun", "part_of", "run_lowered"]

Take = Callable[[str, Tensor, Tensor, IntegerGrid, Callable[[Tensor], Tensor]], Tensor]


@dataclass
class IntegerRun:
    """What an integer-only run found.

    Attributes:
        outputs: what the model returned, its tensors as float32 values.
        codes: the integers of every activation, int64, by the name of its quantizer; with the steps as first dimension
            where a loop over time calls it.
        sums: for each layer, the smallest and largest sum that its accumulators held.
        products: the same for each parameter, by the name of its quantizer.
        accumulators: what `run_integers` found in the accumulators of each layer in the end, int64 and exact; with the
            bias where it adds to the products.
        floats: for each module, the operations between the first quantizer and the outputs that were computed on values
            in place of integers, with how often; empty for a model that needs no floats there.
        float_modules: the same and what was computed before the first quantizer, as `FloatModule` records: each says
            whether a quantizer follows.
        entering: for each activation whose quantizer took integers, what these were.
        grids: for each module, the grids of its input and output, None for floats.
        slots: for each layer, the names of its quantizers' calls by slot, ``weight`` and so on.

    Example:
        >>> run = IntegerRun(torch.ones(1), floats={"act": {"sigmoid": 1}})
        >>> print(run)
        0 tensors of integers, 0 layers with sums; computed in floats: sigmoid in act
        >>> run.integer_only
        False
    """

    outputs: object
    codes: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, AccumulatorRange] = field(default_factory=dict)
    products: dict[str, ProductSums] = field(default_factory=dict)
    accumulators: dict[str, Tensor] = field(default_factory=dict)
    floats: dict[str, dict[str, int]] = field(default_factory=dict)
    float_modules: tuple[FloatModule, ...] = ()
    entering: dict[str, Entering] = field(default_factory=dict)
    grids: dict[str, tuple[IntegerGrid | None, IntegerGrid | None]] = field(default_factory=dict)
    slots: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def integer_only(self) -> bool:
        """Whether everything after the first quantizer was computed with integers."""
        return not self.floats

    def __str__(self) -> str:
        counts = (len(self.codes), "tensor"), (len(self.sums), "layer")
        tensors, layers = (f"{count} {what}{'' if count == 1 else 's'}" for count, what in counts)
        text = f"{tensors} of integers, {layers} with sums"
        if self.integer_only:
            return f"{text}; nothing computed in floats"
        where = (f"{', '.join(names)} in {layer or 'the model'}" for layer, names in self.floats.items())
        return f"{text}; computed in floats: {'; '.join(where)}"


def run_lowered(
    model: nn.Module,
    quantizers: dict[str, TensorQuant],
    found: dict[str, QuantizedTensor],
    args: tuple[object, ...],
    kwargs: Mapping[str, object] | None,
    requantize: Requantization | None = None,
    accumulator_bits: int = 32,
    take: Take | None = None,
    keep: bool = False,
    dynamic: bool = False,
) -> IntegerRun:
    """`run_integers` for a model in evaluation mode.

    Args:
        model: the model.
        quantizers: by path.
        found: what each quantizer's call does, by name.
        args: positional arguments.
        kwargs: keyword arguments.
        requantize: as a callable.
        accumulator_bits: width of the accumulators.
        take: called at each activation with its name, the values of its input, integers, grid and rounding; returns
            the integers to go on with.
        keep: whether the sums of each layer are kept.
        dynamic: whether quantizers that ``found`` leaves out, as their scale follows the input, compute in floats.
    """
    run = IntegerRun(None)
    journal = Journal(accumulator_bits, keep)
    tracker = FloatTracker(journal, (args, kwargs or {}))
    known, counts, modules = found, Counts(), dict(model.named_modules())
    collected: dict[str, list[Tensor]] = {}
    loops: set[str] = set()
    requantize = requantize or requantization("scale")

    def intercept(path: str) -> Intercept:
        def call(quantizer: TensorQuant, x: Tensor, *context: object) -> tuple[Tensor, None]:
            name = counted(counts, path)
            part = part_of(known, name, path)
            if part is None and dynamic:
                with tracker.paused():
                    return quantizer._quantize(_value(x), *context)[0], None
            if part is None:
                raise ExportError(
                    f"{name}: the integers hold nothing for this quantizer. They have {', '.join(known)}. Take them "
                    "from this model, with an example that takes the same path: integers(model, example)."
                )
            _note(run.slots.setdefault(journal.call, {}), _slot(modules[journal.layer], quantizer, path), part)
            with tracker.paused():
                if part.grid.levels is not None:
                    return _levels(quantizer, x, context, part), None
                if part.codes is not None:
                    stored = _tensor(part, part.codes.to(x.device), journal)
                    tracker.stored(stored)
                    return stored, None
                tracker.quantized(x)
                codes, rounding = _requantized(quantizer, x, part.grid, requantize, context)
                if isinstance(x, IntegerTensor) and rounding is not None:
                    run.entering[name] = _entering(x, rounding)
                elif isinstance(x, IntegerTensor):
                    journal.compute_in_float(f"{type(quantizer).__name__}._quantize")
                    tracker.places[journal.noted[-1]] = "between"
                if current_step() is not None:
                    loops.add(name)
                if take is not None:
                    values = _value(x)
                    codes = take(name, values, codes, part.grid, HalfEven() if rounding is None else rounding)
                collected.setdefault(name, []).append(codes)
                return _tensor(part, codes, journal), None

        return call

    def passed(name: str, given: object, output: object) -> None:
        run.grids[name] = (_grid_of(given), _grid_of(output))

    with (
        torch.no_grad(),
        intercepted(quantizers, intercept),
        averaging_integers(model),
        journal.following(model, passed),
        tracker,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", BitwrightWarning)  # no data yet: taking the integers said so
        try:
            outputs = model(*args, **(kwargs or {}))
        except (BitwrightError, AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            if isinstance(error, BitwrightError) and not isinstance(error, QuantTensorError):
                raise
            raise ExportError(_asks_too_much(error, model, modules)) from error
    tracker.returned(outputs)
    run.codes = {name: torch.stack(each) if name in loops else each[0] for name, each in collected.items()}
    run.float_modules = tracker.modules(modules)
    run.outputs = _pytree.tree_map(_values, outputs)
    run.sums, run.products = journal.sums, journal.products
    run.floats, run.accumulators = journal.floats, journal.accumulators
    return run


def _levels(quantizer: TensorQuant, x: Tensor, context: Arguments, part: QuantizedTensor) -> Tensor:
    """The values of what lies on levels that are no integers: what comes of them is computed in floats."""
    if part.codes is not None:
        return part.grid.values(part.codes.to(x.device))
    return quantizer._quantize(_value(x), *context)[0]


def _tensor(part: QuantizedTensor, codes: Tensor, journal: Journal) -> IntegerTensor:
    scale, zero_point = part.grid.spread(codes)
    stored = None if part.codes is None else part.grid.name
    return IntegerTensor((Term(codes.to(torch.int64) - zero_point, scale),), journal, part.grid, stored=stored)


def part_of(found: Mapping[str, QuantizedTensor], name: str, path: str) -> QuantizedTensor | None:
    """What a quantizer's call does; a parameter that is quantized again has the integers of its first call.

    Args:
        found: by name.
        name: of the call.
        path: of the quantizer.
    """
    part, first = found.get(name), found.get(path)
    return first if part is None and first is not None and first.codes is not None else part


def _note(slots: dict[str, str], slot: str, part: QuantizedTensor) -> None:
    """Note the call of a slot's quantizer, once; a further one adds its number."""
    name = part.grid.name
    if name not in slots.values():
        slots[next(each for each in map(partial(numbered, slot), count()) if each not in slots)] = name


def _requantized(
    quantizer: TensorQuant, x: Tensor, grid: IntegerGrid, requantize: Requantization, context: Arguments
) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """The integers of an activation, and the rounding; arithmetic of a quantizer's own is done on values (None)."""
    if isinstance(quantizer, IntQuant) and type(quantizer)._quantize is IntQuant._quantize:
        return requantize(x, grid, quantizer.rounding), quantizer.rounding
    if isinstance(quantizer, TruncQuant) and isinstance(x, IntegerTensor):
        return ByMultiplier()(x, grid, quantizer.rounding.rounding), quantizer.rounding.rounding  # by 1, and a shift
    values, own = quantizer._quantize(_value(x), *context)
    assert isinstance(own, Grid)
    return own.to_int(values).to(torch.int64), None


def _entering(x: IntegerTensor, rounding: object) -> Entering:
    scales, axes = [], set[int]()
    for term in x.terms:
        scale = compact(term.scale.detach())
        axes |= {dim for dim, size in enumerate(scale.shape) if size > 1}
        scales.append(scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1))
    axis = None if not axes else axes.pop() if len(axes) == 1 else -1
    axis = BY_VALUE if x.journal.scaled_by_value else axis
    name = getattr(rounding, "__name__", type(rounding).__name__)
    return Entering(tuple(each.cpu().clone() for each in scales), axis, x.low, x.high, name)


def _value(x: Tensor) -> Tensor:
    """The floats that a tensor stands for."""
    return x.value if isinstance(x, IntegerTensor) else x


def _values(each: object) -> object:
    if not isinstance(each, Tensor):
        return each
    return each.value if isinstance(each, IntegerTensor) else values_of(each)


def _slot(owner: nn.Module, quantizer: TensorQuant, path: str) -> str:
    """What a quantizer is to the layer that calls it: ``weight``, ``bias``, ``act`` ..."""
    own = (name for name, each in owner.named_children() if each is quantizer)
    return next(own, path.rpartition(".")[2]).removesuffix("_quant")


def _grid_of(x: object) -> IntegerGrid | None:
    return x.grid_ if isinstance(x, IntegerTensor) else None


def _asks_too_much(error: Exception, model: nn.Module, modules: dict[str, nn.Module]) -> str:
    """Which module did not take integers for the tensors of the model, and what to do."""
    paths = {id(module): path for path, module in modules.items()}
    where, frame = type(model).__name__, error.__traceback__
    while frame is not None:
        path = paths.get(id(frame.tb_frame.f_locals.get("self")))
        if path:
            where = f"{path} ({type(modules[path]).__name__})"
        frame = frame.tb_next
    return (
        f"{where}: its forward failed on the integers that stand for its input: {type(error).__name__}: {error}. In a "
        "run on integers no tensor is a QuantTensor, and none has a scale. Compute with the tensor itself, and leave "
        "scales to a quantizer: QuantIdentity(return_quant_tensor=True) behind the module."
    )
