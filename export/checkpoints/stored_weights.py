"""The quantized weights of a model as codes: which parameter, which grid, and why one can't be given so."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...nn.layer import QuantLayer
from ...nn.weight_layer import WeightLayer
from ...qcore import BiasQuant, Grid, GridQuant, HalfEven, HalfUp, TensorQuant
from ...qcore.grid_quant import FLOAT_BITS, resting
from ...qcore.models import require_model
from ..errors import ExportError

__all__ = ["Coded", "StoredWeight", "checked_model", "joined", "stored_weights"]


class Coded(NamedTuple):
    """A weight as codes.

    Args:
        codes: integers, or codes of other levels, in the smallest type that holds them.
        grid: where they stand.
        dtype: of the weight.

    Example:
        >>> Coded(torch.tensor([3], dtype=torch.int8), Grid(torch.tensor(0.5))).values()
        tensor([1.5000])
    """

    codes: Tensor
    grid: Grid
    dtype: torch.dtype = torch.float32

    def values(self) -> Tensor:
        """What the codes stand for, in the weight's type."""
        return self.grid.from_int(self.codes).to(self.dtype)


class StoredWeight(NamedTuple):
    """A parameter that a layer quantizes as a weight.

    Args:
        path: of the layer.
        layer: it.
        slot: the name of the slot.
        quant: the quantizer in it.
        parameter: its name in the layer.

    Example:
        >>> import bitwright.nn as qnn
        >>> weight = next(stored_weights(nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=3))))
        >>> weight.name, weight.key, weight.coded().codes.abs().max()
        ('0.weight_quant', '0.weight', tensor(3, dtype=torch.int8))
    """

    path: str
    layer: QuantLayer
    slot: str
    quant: TensorQuant
    parameter: str

    @property
    def name(self) -> str:
        """The path of the quantizer."""
        return joined(self.path, f"{self.slot}_quant")

    @property
    def key(self) -> str:
        """The name of the parameter in the model's state dict."""
        return joined(self.path, self.parameter)

    @property
    def tensor(self) -> nn.Parameter:
        """The parameter."""
        found = self.layer._parameters[self.parameter]
        assert found is not None
        return found

    def as_seen(self) -> Tensor:
        """The parameter as its quantizer sees it."""
        return self.layer.tensor_of(self.slot).detach()

    def as_stored(self, values: Tensor) -> Tensor:
        """The way back from `as_seen`, for the parameter or numbers like it."""
        return self.layer._as_stored(values) if isinstance(self.layer, WeightLayer) else values

    @property
    def fixable(self) -> bool:
        """Whether the grid can be fixed: the quantizer serves this weight alone, and as it is."""
        served = {each.data_ptr() for each in self.quant._parameters_served()}
        return len(served) < 2 and getattr(self.quant, "transform", None) is None

    @torch.no_grad()
    def coded(self) -> Coded:
        """The weight as evaluation quantizes it; nothing is measured or drawn at random.

        Raises:
            ExportError: the text says why it has no codes.
        """
        quant = self.quant
        if not isinstance(quant, GridQuant):
            raise ExportError(f"{type(quant).__name__} puts it on no known grid")
        if any(True for _ in getattr(quant.rounding, "parameters", tuple)()):
            raise ExportError(f"its rounding is learned ({type(quant.rounding).__name__})")
        seen, context = self.as_seen(), self._context()
        with resting(quant):
            kept, quant._kept = quant._kept, None
            try:
                codes, grid = quant.codes(seen, *context)
            finally:
                quant._kept = kept
        if int(grid.bit_width) > FLOAT_BITS:
            raise ExportError(f"floats don't tell integers of {int(grid.bit_width)} bits apart")
        return Coded(codes, grid, seen.dtype)

    @torch.no_grad()
    def verify(self, coded: Coded) -> None:
        """Check that a layer that holds what the codes stand for computes what this one does, bit by bit.

        Raises:
            ExportError: the text says why not.
        """
        seen, context = self.as_seen(), self._context()
        with resting(self.quant):
            copied = deepcopy(self.quant)
        assert isinstance(copied, GridQuant)
        if self.fixable:
            copied.fix(coded.grid)
        with resting(self.quant):
            kept, self.quant._kept = self.quant._kept, None
            try:
                values = self.quant._quantize(seen, *context)[0]
            finally:
                self.quant._kept = kept
        copied.eval()
        given_back = coded.values()
        again = copied._quantize(given_back, *context)[0]
        if not torch.equal(values, given_back) or not torch.equal(values, again):
            raise ExportError(self._moving(seen.dtype))

    def _moving(self, dtype: torch.dtype) -> str:
        """Why a quantizer would move what the codes stand for."""
        quant = self.quant
        assert isinstance(quant, GridQuant)
        if quant.transform is not None:
            return f"{type(quant.transform).__name__} transforms it, and would change what the codes stand for"
        if not self.fixable:
            return "its quantizer serves other weights, too, and its scale follows them"
        if type(quant.rounding) not in (HalfEven, HalfUp):
            return f"its rounding ({type(quant.rounding).__name__}) would change what the codes stand for"
        return f"{_plain(dtype)} numbers don't hold its grid"

    def _context(self) -> tuple[Any, ...]:
        """What the layer hands to the quantizer: the smallest scales, for a bias on the scale of the products."""
        layer = self.layer
        if not isinstance(layer, WeightLayer) or self.slot != "weight":
            return ()
        follower = layer.bias_quant
        if isinstance(follower, BiasQuant) and not layer._lacks("bias") and layer._inputs_known() is None:
            raise ExportError("its smallest scale depends on the input's, and no input was seen yet: run a batch first")
        return layer._weight_context(self.quant, layer._inputs_known())


def stored_weights(model: nn.Module) -> Iterator[StoredWeight]:
    """The parameters of a model that are quantized as weights; those that several layers share, once for each.

    Example:
        >>> import bitwright.nn as qnn
        >>> [each.key for each in stored_weights(nn.Sequential(qnn.QuantLinear(4, 2), nn.Linear(2, 2)))]
        ['0.weight']
    """
    for path, layer in model.named_modules():
        if not isinstance(layer, QuantLayer):
            continue
        for slot in layer.slots:
            quant = getattr(layer, f"{slot.name}_quant", None)
            known = layer._parameters.get(slot.parameter or "")
            if slot.role != "weight" or known is None or not isinstance(quant, TensorQuant):
                continue
            found = StoredWeight(path, layer, slot.name, quant, slot.parameter or "")
            if getattr(layer, "quantizes_parameters", True) and torch.equal(found.as_stored(found.as_seen()), known):
                yield found


def checked_model(call: str, model: nn.Module) -> None:
    """Refuse what is no model, and one whose numbers are nowhere.

    Raises:
        ExportError: it names the first tensor on the meta device.

    Example:
        >>> checked_model("save_packed", nn.Linear(2, 2, device="meta"))
        Traceback (most recent call last):
        bitwright.export.errors.ExportError: save_packed: weight is on the meta device and has no numbers. Write \
model.to_empty(device="cpu") first, and load a state into it.
    """
    require_model(call, model, ExportError)
    for name, each in (*model.named_parameters(), *model.named_buffers()):
        if each.is_meta:
            raise ExportError(
                f"{call}: {name} is on the meta device and has no numbers. Write "
                'model.to_empty(device="cpu") first, and load a state into it.'
            )


def joined(path: str, name: str) -> str:
    """The path of a part.

    Example:
        >>> joined("0", "weight"), joined("", "weight")
        ('0.weight', 'weight')
    """
    return f"{path}.{name}" if path else name


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
