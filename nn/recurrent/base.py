"""What quantized recurrent layers and cells share."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...qcore import BiasQuant, Grid, GridQuant, QuantizerError, TensorQuant, path_of
from ...qcore.granularity import Granularity, PerAxis
from ...qcore.grid import along_axis
from ...qcore.scaling import StoredScaling
from ...qcore.tracing import exporting
from ..layer import QuantLayer
from ..slots import Described, Slot, checked_flag
from .measuring import Quantizers
from .scan import Tensors
from .steps import RecurrentStep, Sites

__all__ = ["Recurrent", "families"]


def families(sites: Sequence[str], weight: str, bias: str) -> tuple[Slot, ...]:
    """The slots of a class: one for each family of slots that its instances have.

    Args:
        sites: those inside of a step.
        weight: one of the weights.
        bias: one of the biases.

    Example:
        >>> [slot.name for slot in families(["gate", "hidden"], "weight_ih", "bias_ih")]
        ['weight', 'bias', 'input', 'gate', 'hidden']
    """
    return (
        Slot("weight", weight),
        Slot("bias", bias, follows=("input", "weight")),
        Slot("input"),
        *map(Slot, sites),
    )


class Recurrent(QuantLayer):
    """What quantized recurrent layers and cells share: slots for each matrix and for the inside of a step.

    Attributes:
        return_quant_tensor: whether the output carries its grid.
    """

    _kind: ClassVar[type[RecurrentStep]]
    bias: bool
    hidden_size: int
    return_quant_tensor: bool
    input_quant: TensorQuant | None
    hidden_quant: Any
    gate_quant: Any
    _seen: Grid | None = None  # of the last input

    # Construction

    def _attach(self, given: Mapping[str, object]) -> None:
        """Resolve the slots; called by constructors after torch's own."""
        self.fill_slots(**self._prepared(given))

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        super()._convert(self._prepared({"return_quant_tensor": False, **given}), device, dtype)

    def _prepared(self, given: Mapping[str, object]) -> dict[str, object]:
        """Set what the slots depend on; returns the keywords that are for them."""
        rest = dict(given)
        self.return_quant_tensor = checked_flag(self, "return_quant_tensor", rest.pop("return_quant_tensor"))
        self.slots = self._slots()
        families = {name for slot in self.slots for name in slot.names}
        for name in ("bias", "projection"):
            if f"{name}_quant" in rest and name not in families:
                self._refuse_missing(name, rest.pop(f"{name}_quant"))
        return rest

    def _refuse_missing(self, name: str, quantizer: object) -> None:
        """Refuse a quantizer of something that this layer has not."""
        if quantizer is None:
            return
        what = "there is no bias. Write bias=True" if name == "bias" else "there is no projection. Write proj_size=..."
        raise QuantizerError(
            f"{Described(self)}: {name}_quant={quantizer!r} is given, but {what}, or leave {name}_quant out."
        )

    def _slots(self) -> tuple[Slot, ...]:
        """The slots of this layer."""
        raise NotImplementedError

    def _sites(self) -> tuple[str, ...]:
        """The slots inside of a step."""
        return self._kind.slots

    def _step(self, sites: Sites) -> RecurrentStep:
        """What a step computes, with something at its sites."""
        return self._kind(sites, self.bias)

    def _inside(self, suffix: str) -> Quantizers:
        """The quantizers inside of a step, by the names of the sites."""
        found = {slot: getattr(self, f"{slot}{suffix}_quant") for slot in self._sites()}
        return {slot: quant for slot, quant in found.items() if quant is not None}

    # Checks

    def _output_slot(self) -> str:
        """The slot that quantizes the output."""
        raise NotImplementedError

    def _check_slots(self) -> None:
        self._check_output()
        for slot in self.slots:
            quant = getattr(self, f"{slot.name}_quant", None)
            if quant is None:
                continue
            if slot.follows is not None and quant.follows_input:
                self._check_followed(slot)
            granularity = getattr(quant, "granularity", None)
            if slot.parameter is None and granularity is not None:
                self._check_axis(slot, granularity)

    def _check_output(self) -> None:
        if not self.return_quant_tensor:
            return
        slot = self._output_slot()
        quant = getattr(self, f"{slot}_quant")
        if quant is None:
            found, remedy = "which is None", "Int8Act"
        elif not _has_one_grid(quant):
            found, remedy = "and that of each step has a scale of its own", "Int8Act"
        else:
            return
        raise QuantizerError(
            f"{Described(self)}: return_quant_tensor=True needs outputs on one grid, that of {slot}_quant, {found}. "
            f"Write hidden_quant={remedy}."
        )

    def _check_followed(self, slot: Slot) -> None:
        """Refuse a bias on the scale of products with a state that has none."""
        assert slot.follows is not None
        source, weight = slot.follows
        quant = getattr(self, f"{source}_quant", None)
        name = f"{Described(self)}: the scale of {slot.name}_quant follows those of {source}_quant and {weight}_quant"
        own = "or choose a bias with a scale of its own: bias_quant=Int8BiasOwnScale"
        if source != "input" and quant is None:
            raise QuantizerError(f"{name}, and {source}_quant is None. Write hidden_quant=Int8Act, {own}.")
        if quant is not None and source != "input" and not _has_one_grid(quant):
            raise QuantizerError(
                f"{name}, and {source}_quant has another scale at each step. Write hidden_quant=Int8Act, {own}."
            )
        granularity = getattr(getattr(self, f"{weight}_quant"), "granularity", None)
        if granularity is not None and not granularity.single and granularity.axis not in (0, -2):
            raise QuantizerError(
                f"{name}, and the products that one output sums have several scales. Write "
                f"weight_quant=Int8WeightPerChannel, {own}."
            )

    def _check_axis(self, slot: Slot, granularity: Granularity) -> None:
        """Refuse scales for the entries of a batch, or for steps."""
        usual = -1 if slot.name == "input" else 1
        if granularity.axis not in (None, -1, usual):
            raise QuantizerError(
                f"{Described(self)}: {slot.name}_axis={granularity.axis} would give each "
                f"{'part of the input' if slot.name == 'input' else 'sequence of a batch'} a scale of its own. Write "
                f"{slot.name}_axis={usual} for one scale for each feature, or {slot.name}_axis=None for one scale."
            )

    # Forward

    def _take_input(self, x: Tensor, grid: Grid | None) -> tuple[Tensor, Grid | None]:
        """The input, quantized, and its grid."""
        if self.input_quant is not None:
            x, grid = self.input_quant.quantize(x)
        if exporting():
            grid = self._seen if grid is None else grid  # torch.export carries plain tensors: the grid is recorded
        elif not torch.compiler.is_compiling():
            vars(self)["_seen"] = grid  # past nn.Module's bookkeeping
        return x, grid

    def _products(self, part: str, suffix: str, grid: Grid | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that a tensor on a grid meets, quantized.

        Args:
            part: ``"ih"`` for the input, ``"hh"`` for the state.
            suffix: of the parameters' names.
            grid: of that tensor, or None.
        """
        name = f"weight_{part}{suffix}"
        quant = getattr(self, f"{name}_quant")
        if quant is None:
            weight, weights = self.tensor_of(name), None
        else:
            context = self._context(quant, f"bias_{part}{suffix}", grid)
            weight, weights = self._take(name, quant, context, grid)
        return weight, self._bias(f"bias_{part}{suffix}", grid, weights)

    def _bias(self, name: str, grid: Grid | None, weights: Grid | None) -> Tensor | None:
        if not self.bias:
            return None
        quant = getattr(self, f"{name}_quant")
        if quant is None:
            return self.tensor_of(name)
        return self._take(name, quant, (grid, weights) if quant.follows_input else (), grid)[0]

    def _context(self, quant: TensorQuant, bias: str, grid: Grid | None) -> tuple[object, ...]:
        """What a weight's quantizer gets besides: the scales below which the bias would be clipped.

        A transform gets the grid of what the weight is multiplied with, too, and a bias on the scale of the products.
        """
        if not isinstance(quant, GridQuant) or quant.transform is None:
            return self._floor_context(quant, bias, grid)
        found = self._floor_context(quant, bias, grid)
        added = self.bias and getattr(getattr(self, f"{bias}_quant", None), "follows_input", False)
        return (False, found[1] if found else None, grid, self.tensor_of(bias) if added else None)

    def _floor_context(self, quant: TensorQuant, bias: str, grid: Grid | None) -> tuple[object, ...]:
        follower = getattr(self, f"{bias}_quant", None)
        if grid is None or grid.scale.numel() != 1 or not isinstance(follower, BiasQuant):
            return ()
        if not isinstance(quant, GridQuant) or type(quant)._quantize is not GridQuant._quantize:
            return ()
        bits = getattr(quant.transform, "accumulator_bit_width", None)
        floor = follower.floor(self.tensor_of(bias), grid, not quant.granularity.single, bits)
        return () if floor is None else (False, floor)

    def _follows_state(self, suffix: str) -> bool:
        """Whether a bias is quantized on the grid of the products with the state."""
        quant = getattr(self, f"bias_hh{suffix}_quant", None)
        return quant is not None and quant.follows_input

    def _grid_of_state(self, slot: str, x: Tensor) -> Grid | None:
        """The grid of the states, before there is one; in the block that measures it."""
        quant = getattr(self, f"{slot}_quant")
        if not isinstance(quant, GridQuant):
            return None
        zeros = torch.zeros(1, self._state_size(), dtype=x.dtype, device=x.device)
        if quant.intercept is None:
            return quant._quantize(zeros)[1]
        warned, quant._warned = quant._warned, True  # what stands in for it decides whether it needs a range
        try:
            return quant.grid(zeros)
        finally:
            quant._warned = warned

    def _constants(self, suffix: str, grid: Grid | None, quantized: bool = True) -> Tensors:
        """What every step gets: the weights of the state and their bias, and those of the projection.

        Args:
            suffix: of the parameters' names.
            grid: of the state.
            quantized: whether the bias is; before there is a grid, it is not.
        """
        if quantized:
            weight, bias = self._products("hh", suffix, grid)
        else:
            weight = self.take(f"weight_hh{suffix}")[0]
            bias = self.tensor_of(f"bias_hh{suffix}") if self.bias else None
        return (weight, *(() if bias is None else (bias,)), *self._projection(suffix))

    def _projection(self, suffix: str) -> Tensors:
        """The weight that projects the hidden state, if there is one."""
        return ()

    def _spread(self, grid: Grid, ndim: int, copies: int = 1) -> Grid:
        """The grid of the hidden state as that of an output, whose last dimension has the features, once or twice."""
        if grid.granularity.single:
            return grid

        def along(numbers: Tensor) -> Tensor:
            return along_axis(numbers.reshape(-1).repeat(copies), ndim - 1, ndim)

        zero_point = None if grid.zero_point is None else along(grid.zero_point)
        return grid.replace(scale=along(grid.scale), zero_point=zero_point, granularity=PerAxis(ndim - 1))

    def _state_size(self) -> int:
        """How many features the hidden state has."""
        return self.hidden_size

    def _pair(self, hx: Any) -> Sequence[Tensor]:
        """The states that a caller gave, as many as there are."""
        if len(self._kind.states) == 1:
            if not isinstance(hx, Tensor):
                raise ValueError(f"{path_of(self)}: hx is one state, a tensor, and not a {type(hx).__name__}.")
            return (hx,)
        if isinstance(hx, Tensor) or len(hx) != 2:
            raise ValueError(f"{path_of(self)}: hx is a pair of states, (h, c).")
        return tuple(hx)

    def _as_torchs(self, states: Tensors) -> Any:
        """The states as torch's layers take and return them: a pair, or one tensor."""
        return states if len(self._kind.states) > 1 else states[0]

    # State

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_seen": None}

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        return f"{extra}, return_quant_tensor=True" if self.return_quant_tensor else extra


def _has_one_grid(quant: TensorQuant) -> bool:
    """Whether all steps of a sequence lie on one grid."""
    stored = isinstance(quant, GridQuant) and isinstance(quant.scaling, StoredScaling)
    return stored or not getattr(quant, "dynamic", True)
