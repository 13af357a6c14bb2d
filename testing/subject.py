"""The subject of checks: a quantizer in its role, and a quantizer with an input."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor, nn

from ..nn import (
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantConvTranspose1d,
    QuantConvTranspose2d,
    QuantConvTranspose3d,
    QuantIdentity,
    QuantLinear,
)
from ..nn.slots import Slot, fill_slot
from ..qcore import (
    BiasQuant,
    Granularity,
    Grid,
    GridQuant,
    NumberFormat,
    PerAxis,
    PerBlock,
    PerGroup,
    PerTensor,
    QuantizerError,
    SettingError,
    TensorQuant,
    settings,
)
from ..qcore.declare.inject import ROLE, QuantizerType
from ..quantizers import Int8Act
from .places import Places
from .report import NotApplicable
from .strategies import Placement, place, placements, scales, shapes, single_places, sweep

__all__ = ["ROLES", "Case", "Draw", "Subject", "first_of_each", "with_life"]

ROLES = {"weight": (4, 8), "activation": (3, 4), "bias": (6,)}  # with the shape of a tensor in that role
_SLOTS = {
    "weight": Slot("weight", "weight"),
    "activation": Slot("act", prefix=""),
    "bias": Slot("bias", "bias", follows=("input", "weight")),
}
_LAYERS = {
    (2, 0): (QuantLinear, nn.Linear),
    (3, 0): (QuantConv1d, nn.Conv1d),
    (4, 0): (QuantConv2d, nn.Conv2d),
    (5, 0): (QuantConv3d, nn.Conv3d),
    (3, 1): (QuantConvTranspose1d, nn.ConvTranspose1d),
    (4, 1): (QuantConvTranspose2d, nn.ConvTranspose2d),
    (5, 1): (QuantConvTranspose3d, nn.ConvTranspose3d),
}


class Draw(NamedTuple):
    """What Hypothesis draws for one case.

    Attributes:
        shape: of the input.
        unit: the scale that the quantizer should have, approximately.
        placement: where the input's values lie.
        pinned: whether one value lies at the end of the range.

    Example:
        >>> place = Placement(torch.tensor([0.5], dtype=torch.float64), torch.tensor([0]))
        >>> Draw((1,), 0.25, place, pinned=False).placement.steps
        tensor([0.5000], dtype=torch.float64)
    """

    shape: tuple[int, ...]
    unit: float
    placement: Placement
    pinned: bool


class Subject:
    """A quantizer class with its role: makes modules, layers, and inputs for them.

    Args:
        quantizer: the class.
        role: ``"weight"``, ``"activation"`` or ``"bias"``; by default that of the shipped quantizer it derives from.
        shape: the shape of all inputs; by default small shapes of all lengths.
        channel_axis: for weights, the dimension of output channels.

    Raises:
        QuantizerError: not a quantizer class, or one that can't be resolved.
        SettingError: an invalid role or shape.

    Example:
        >>> from bitwright.quantizers import Int4WeightPerChannel
        >>> subject = Subject(Int4WeightPerChannel)
        >>> subject.role, subject.bounds, subject.fixed_grid
        ('weight', (-7, 7), False)
    """

    def __init__(
        self,
        quantizer: object,
        role: str | None = None,
        shape: tuple[int, ...] | None = None,
        channel_axis: int = 0,
    ) -> None:
        if not isinstance(quantizer, QuantizerType):
            raise QuantizerError(
                f"check_quantizer({quantizer!r}): not a quantizer class. Pass a class such as Int8Act, or a subclass."
            )
        if role is not None and role not in ROLES:
            raise SettingError("role", role, f"one of {', '.join(map(repr, ROLES))}")
        self.quantizer = quantizer
        self.channel_axis = channel_axis
        self.role = role or self._guessed()
        probe = self.build(shape or ROLES[self.role])
        self.follows_input = probe.follows_input
        self.known = isinstance(probe, (GridQuant, BiasQuant))
        self.granularity: Granularity = getattr(probe, "granularity", None) or PerTensor()
        self.axis = self.granularity.axis
        self.given, self.example = shape, tuple(shape or _shape_for(self.granularity, ROLES[self.role]))

    def _guessed(self) -> str:
        """The role that it declares, else by its parts."""
        declared = settings(self.quantizer).get(ROLE)
        if declared is not None and declared.declared in ROLES:
            return declared.declared
        provided = {"channel_axis": 0, "channels": 4, "shape": ROLES["weight"], "device": None, "dtype": None}
        module = _filled(self.quantizer, "bias", provided)  # the slot that takes every kind
        if module.follows_input:
            return "bias"
        return "activation" if hasattr(getattr(module, "scaling", None), "calibrating") else "weight"

    # Modules and inputs

    def build(self, shape: tuple[int, ...]) -> TensorQuant:
        """A module fresh from its declaration, for tensors of a shape."""
        provided: dict[str, object] = {"device": torch.device("cpu"), "dtype": torch.float32}
        if self.role != "activation":
            axis = self.channel_axis if self.role == "weight" else 0
            provided |= {"channel_axis": axis, "channels": shape[axis], "shape": tuple(shape)}
        return _filled(self.quantizer, self.role, provided)

    def context(self, shape: tuple[int, ...], unit: float) -> tuple[Grid, ...]:
        """The grids of input and weight, for a bias that follows them."""
        if not self.follows_input:
            return ()
        steps = 2.0 ** (torch.arange(shape[0]) % 3)
        return Grid(torch.tensor(unit)), Grid(steps.reshape(-1, 1), granularity=PerAxis(0))

    def range_to_cover(self, shape: tuple[int, ...], unit: float) -> Tensor:
        """A tensor that reaches both ends of the range at the scale ``unit``, in every channel where there is room."""
        low, high = self.bounds
        shift = low + 3 * (high - low) // 8 if self.zero_points else 0
        ends = self.places.steps(torch.tensor([high - shift, low - shift])) * unit
        along = self.shared_dimension(len(shape))
        if self.role == "activation" and self.given is None and along != self.axis and self.granularity.broadcasts:
            shape = tuple(side + 1 if dim == along else side for dim, side in enumerate(shape))
        picks = (torch.arange(shape[along]) % 2).reshape([-1 if dim == along else 1 for dim in range(len(shape))])
        return ends[picks].expand(shape).float().clone()

    def settle(self, module: TensorQuant, x: Tensor, *context: Grid) -> None:
        """Let a module see data once, as training does, and switch it to evaluation."""
        with torch.no_grad():
            if self.role != "activation":
                module.initialize(x)
            module.train().quantize(x.clone(), *context)
        module.eval()

    def case(self, drawn: Draw) -> "Case":
        """A module with approximately the drawn scale, and the input at the drawn places."""
        module = self.build(drawn.shape)
        context = self.context(drawn.shape, drawn.unit)
        seen = self.range_to_cover(drawn.shape, drawn.unit)
        self.settle(module, seen, *context)
        grid = self._grid(module, seen, context)
        x = place(drawn.placement, grid)
        if drawn.pinned:
            shift = 0.0 if grid.zero_point is None else grid.zero_point.reshape(-1)
            at = first_of_each(x, grid.granularity)
            end = (grid.number_format.high - shift) * grid.scale.reshape(-1)
            x.view(-1)[at] = end.to(x.dtype).expand(at.shape)
        x = with_life(x, grid.granularity, grid.along(grid.scale, x.shape))
        return Case(self, module, x, context)

    def draws(self) -> SearchStrategy[Draw]:
        """The strategy for the parts of cases."""
        shape = shapes(len(self.example)) if self.given is None else st.just(self.given)
        return shape.flatmap(
            lambda shape: st.builds(Draw, st.just(shape), scales(), placements(shape, *self.bounds), st.booleans())
        )

    def simplest(self) -> "Case":
        """One case, without Hypothesis: the places -2, -1, 0, 1 ... of the range."""
        low, high = self.bounds
        steps = torch.arange(torch.Size(self.example).numel()) % min(high - low + 1, 5) + max(low, -2)
        placement = Placement(steps.double().reshape(self.example), torch.zeros(self.example, dtype=torch.int64))
        return self.case(Draw(self.example, 0.5, placement, False))

    def sweeps(self) -> Iterator[Draw]:
        """Every tie of the range and its neighbouring numbers, at scales for which quotients round."""
        if self.given is None:
            row = sweep(*self.bounds)
            for unit in (0.1, 0.3, 1 / 3, 1.1):
                yield self.laid_out(row, unit)

    def single(self) -> Iterator[Draw]:
        """One element at scale 1, simple ones first."""
        if self.given is None:
            for row in single_places(*self.bounds):
                yield self.laid_out(row, 1.0)

    def pieces(self, drawn: Draw) -> Iterator[Draw]:
        """The draws of one element, beside one at the end of the range, that a draw of a row consists of."""
        end = torch.tensor([self.bounds[1]], dtype=torch.float64)
        steps, nudges = (each.reshape(-1) for each in drawn.placement)
        for step, nudge in zip(steps, nudges, strict=True):
            for pinned in (False, True):
                kept = Placement(step[None], nudge[None])
                if pinned:
                    kept = Placement(torch.cat([end, step[None]]), torch.cat([nudges[:1] * 0, nudge[None]]))
                yield self.laid_out(kept, drawn.unit)

    def laid_out(self, row: Placement, unit: float) -> Draw:
        """A row of places as a tensor with one channel; for biases one channel each, in groups as many as needed."""
        dims = len(self.example)
        along = self.shared_dimension(dims)
        if isinstance(self.granularity, PerGroup) and 1 < self.granularity.group_size < len(row.steps):
            row = _in_groups(row, self.granularity.group_size)
        shape = tuple(len(row.steps) if dim == along else 1 for dim in range(dims))
        return Draw(shape, unit, Placement(row.steps.reshape(shape), row.nudges.reshape(shape)), len(row.steps) > 1)

    def shared_dimension(self, dims: int) -> int:
        """A dimension along which values share a scale, the last if there are several."""
        block = self.granularity.block((1 << 10,) * dims)
        return max(range(dims), key=lambda dim: (block[dim], dim))

    def tensor(self, seed: int = 0, shape: tuple[int, ...] | None = None) -> Tensor:
        """An ordinary input: normal numbers, more of them positive."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape or self.example, generator=generator) + 0.5

    def settled(self, x: Tensor | None = None) -> "Case":
        """A module that has seen an ordinary input, with that input."""
        x = self.tensor() if x is None else x
        module, context = self.build(tuple(x.shape)), self.context(tuple(x.shape), 2**-7)
        self.settle(module, x, *context)
        return Case(self, module, x, context)

    # A layer with the quantizer

    def layer(self, seed: int = 0) -> nn.Module:
        """A quantized layer with the quantizer, and random weights."""
        if self.role == "activation":
            return QuantIdentity(act_quant=self.quantizer)
        kind, arguments = self._arguments()
        if self.role == "bias":
            given: dict[str, object] = {"bias_quant": self.quantizer, "input_quant": Int8Act(scale=2**-6)}
        else:
            given = {"bias": False, "weight_quant": self.quantizer}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = kind(*arguments, **given)
        with torch.no_grad():
            getattr(layer, self.role).copy_(self.tensor(seed))
        return layer

    def float_layer(self, seed: int = 0) -> nn.Module:
        """The corresponding layer of torch."""
        if self.role == "activation":
            return nn.Identity()
        quantized = self.layer(seed)
        kind, arguments = self._arguments(quantized=False)
        layer = kind(*arguments, bias=self.role == "bias")
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(getattr(quantized, name))
        return layer

    def layer_input(self, seed: int = 0) -> Tensor:
        """An input for the layer."""
        if self.role == "activation":
            return self.tensor(seed)
        if self.role == "bias" or len(self.example) == 2:
            return self.tensor(seed, (3, 4 if self.role == "bias" else self.example[1]))
        kernel = self.example[2:]
        return self.tensor(seed, (2, self.example[1 - self.channel_axis], *(side + 2 for side in kernel)))

    def quantizer_of(self, layer: nn.Module) -> TensorQuant:
        """The module of the layer that is checked."""
        return getattr(layer, f"{_SLOTS[self.role].name}_quant")

    def _arguments(self, quantized: bool = True) -> tuple[Any, tuple[object, ...]]:
        """The layer class for a tensor of the example's shape, and its positional arguments."""
        if self.role == "bias":
            return (QuantLinear if quantized else nn.Linear), (4, self.example[0])
        found = _LAYERS.get((len(self.example), self.channel_axis))
        if found is None:
            raise NotApplicable(
                f"no layer has weights of shape {self.example} with output channels in dimension {self.channel_axis}"
            )
        kind = found[0] if quantized else found[1]
        if len(self.example) == 2:
            return kind, (self.example[1], self.example[0])
        inputs, outputs = (self.example[index] for index in ((1, 0) if self.channel_axis == 0 else (0, 1)))
        return kind, (inputs, outputs, self.example[2:])

    # What the quantizer does

    def _grid(self, module: TensorQuant, x: Tensor, context: tuple[Grid, ...]) -> Grid:
        with torch.no_grad():
            grid = module.quantize(x.clone(), *context)[1]
        assert grid is not None
        return grid

    @cached_property
    def _probed(self) -> tuple[Grid, Grid]:
        """The grids of an ordinary tensor and of a much larger one, from one calibrated module."""
        case = self.settled()
        with torch.no_grad():
            return self._grid(case.module, case.x, case.context), self._grid(case.module, case.x * 64, case.context)

    @property
    def number_format(self) -> NumberFormat:
        """The levels of its grids."""
        return self._probed[0].number_format

    @cached_property
    def places(self) -> Places:
        """The same in order, counted."""
        return Places(self.number_format)

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer; of other levels, their places."""
        return self.places.low, self.places.high

    @property
    def zero_points(self) -> bool:
        """Whether its grids have zero points."""
        return self._probed[0].zero_point is not None

    @property
    def fixed_grid(self) -> bool:
        """Whether the grid is fixed in evaluation once the quantizer has seen data."""
        return torch.equal(self._probed[0].scale, self._probed[1].scale)


@dataclass(eq=False)
class Case:
    """A quantizer module that has seen data, in evaluation, and an input for it.

    Attributes:
        subject: the quantizer class in its role.
        module: the resolved quantizer.
        x: the input; a slice of one channel is never all zero.
        context: the grids that a bias follows.
        grid: what `quantize` returned last.

    Example:
        >>> from bitwright.quantizers import Int4Act
        >>> case = Subject(Int4Act).settled()
        >>> values, grid = case.quantize()
        >>> bool(case.codes(values, grid).max() <= 7)
        True
    """

    subject: Subject
    module: TensorQuant
    x: Tensor
    context: tuple[Grid, ...] = ()
    grid: Grid | None = field(default=None, init=False)

    def quantize(self, x: Tensor | None = None) -> tuple[Tensor, Grid]:
        """Values and grid of an input (by default `x`) in evaluation, without gradients."""
        with torch.no_grad():
            return self.run(self.x if x is None else x)

    def run(self, x: Tensor) -> tuple[Tensor, Grid]:
        """The same in the current mode of the module, and with gradients if ``x`` requires them."""
        handed = x.clone(memory_format=torch.preserve_format)  # the quantizer may change its input
        values, grid = self.module.quantize(handed, *self.context)
        assert grid is not None, "the quantizer returned no grid"
        granularity = grid.granularity
        if not granularity.broadcasts:  # checks divide by scales: one for each value
            scale, zero_point = (
                None if each is None else grid.along(each, values.shape).expand(values.shape)
                for each in (grid.scale, grid.zero_point)
            )
            grid = grid.replace(scale=scale, zero_point=zero_point, granularity=PerBlock((1,) * values.ndim))
        self.grid = grid
        return values, grid

    @property
    def granularity(self) -> Granularity:
        """Which values share a scale."""
        assert self.grid is not None
        return getattr(self.module, "granularity", None) or self.grid.granularity

    def rounded(self, x: Tensor) -> Tensor:
        """What is divided by the scale and rounded: the input, or what the quantizer's transform makes of it."""
        transform = getattr(self.module, "transform", None)
        if transform is None:
            return x
        if hasattr(transform, "limit"):
            raise NotApplicable(f"{type(transform).__name__} changes values once more when their scale is known")
        return transform(x, None)

    def each_way(self) -> list[tuple[Tensor, Grid]]:
        """Values and grid in evaluation, without and with gradients, which take two paths through the code."""
        plain = self.quantize()
        values, grid = self.run(self.x.clone().requires_grad_())
        return [plain, (values.detach(), grid)]

    def codes(self, values: Tensor, grid: Grid) -> Tensor:
        """The integers, or places of levels, that values represent: whole numbers if the values lie on the grid.

        They are float64; see `Places`.
        """
        steps = Places(grid.number_format).of(values.detach().double() / grid.scale.double())
        return steps if grid.zero_point is None else steps + grid.zero_point

    def gap(self, values: Tensor, grid: Grid) -> Tensor:
        """How far apart the values of a grid are around some values: the scale, for integers."""
        return Places(grid.number_format).gap(values.detach().double() / grid.scale.double()) * grid.scale.double()


def first_of_each(x: Tensor, granularity: Granularity) -> Tensor:
    """The positions, among all elements, of the first that each scale is for.

    Example:
        >>> first_of_each(torch.zeros(2, 3), PerAxis(0))
        tensor([0, 3])
    """
    return granularity.rows(torch.arange(x.numel()).reshape(x.shape))[:, 0]


def with_life(x: Tensor, granularity: Granularity, scale: Tensor) -> Tensor:
    """The tensor, with one step added where all that share a scale are zero; zeros have their own check.

    Example:
        >>> with_life(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), PerAxis(0), torch.ones(2, 1))
        tensor([[1., 0.],
                [3., 4.]])
    """
    if x.numel() == 0:
        return x
    x = x.clone(memory_format=torch.contiguous_format)
    at = first_of_each(x, granularity)[(granularity.rows(x) == 0).all(1)]
    x.view(-1)[at] = scale.expand(x.shape).reshape(-1)[at].to(x.dtype)
    return x


def _shape_for(granularity: Granularity, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape for a role's tensors that has the dimensions that scales need, and groups of more than one kind."""
    axis = granularity.axis
    if axis is not None and axis >= len(shape):
        return *shape, *(2,) * (axis - 1)
    if isinstance(granularity, PerGroup) and granularity.fits(len(shape)) and granularity.group_size > 1:
        at, size = granularity.group_axis % len(shape), granularity.group_size
        return tuple(max(side, size + size // 4) if dim == at else side for dim, side in enumerate(shape))
    return shape


def _in_groups(row: Placement, size: int) -> Placement:
    """The places in groups, each after a first one that is pinned to the end of the range."""
    chunks = []
    for each, filler in zip(row, (0.0, 0), strict=True):
        parts = [torch.cat([each.new_full((1,), filler), part]) for part in each.split(size - 1)]
        chunks.append(torch.cat(parts))
    return Placement(*chunks)


class _Layer(nn.Module):
    """Represents the layer in messages."""


_Layer.__name__ = "check_quantizer"


def _filled(quantizer: QuantizerType, role: str, provided: dict[str, object]) -> TensorQuant:
    module = fill_slot(_Layer(), _SLOTS[role], quantizer, {}, provided)
    assert module is not None
    return module
