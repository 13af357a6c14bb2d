"""The base of all quantized layers."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..qcore import Grid, QuantizerError, QuantTensor, TensorQuant, grid_of, path_of, settings, values_of
from ..qcore.declare.inject import IMPLIED
from ..qcore.errors import FORMER_SETTINGS, ReadOnlyError
from ..qcore.tensor_quant import Kept
from ..qcore.tracing import exporting
from .slots import Described, QuantizerLike, Slot, checked_flag, fill_slot, split_overrides

__all__ = ["Family", "QuantLayer"]


class Family:
    """The attribute ``<family>_quant`` of layers with families of slots: their quantizers, by the names of the slots.

    Assigning to it sets the quantizers of all of them.

    Example:
        >>> class TwoWeights(QuantLayer):
        ...     weight_quant = Family()
        ...     slots = (Slot("up", "up", family=("weight",)), Slot("down", "down", family=("weight",)))
        ...
        ...     def __init__(self, **quantizers):
        ...         super().__init__()
        ...         self.up, self.down = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3, 2))
        ...         self.fill_slots(**quantizers)
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> layer = TwoWeights(weight_quant=Int8WeightPerTensor, weight_bit_width=4, down_bit_width=2)
        >>> {name: quant.bit_width for name, quant in layer.weight_quant.items()}
        {'up': 4, 'down': 2}
    """

    def __set_name__(self, owner: type[nn.Module], name: str) -> None:
        self.family = name.removesuffix("_quant")

    def __get__(self, layer: "QuantLayer | None", owner: type[nn.Module]) -> Any:
        if layer is None:
            return self
        members = (slot.name for slot in layer.slots if self.family in slot.family)
        return {name: getattr(layer, f"{name}_quant", None) for name in members}


class QuantLayer(nn.Module):
    """What all quantized layers share: slots with quantizers, which stay what they say after construction, too.

    A subclass names its `slots`, has a parameter for each that quantizes one, and fills them with `fill_slots` at the
    end of its constructor; in forward, `take` gives a quantized parameter with its grid, `pass_through` a tensor that
    flows. Everything else, settings by keyword, loading, freezing, export, goes by the slots.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerTensor
        >>> layer = qnn.QuantLinear(4, 2)
        >>> layer.weight_quant = Int4WeightPerTensor
        >>> layer.int_weight().abs().max()
        tensor(7, dtype=torch.int8)
        >>> layer.weight_bit_width = 2
        Traceback (most recent call last):
        bitwright.qcore.errors.ReadOnlyError: QuantLinear(in_features=4, out_features=2, bias=True): \
weight_bit_width=2 can't be set on a layer that is built. Write layer.weight_quant = Int4WeightPerTensor(bit_width=2).
    """

    slots: tuple[Slot, ...] = ()  # of the class; an instance may have its own, set before they are filled
    _kept: dict[str, Any] | None = None  # quantized weights and biases, while the model is frozen
    _built = False
    return_quant_tensor: Any  # of layers that have the flag: a bool

    def slot(self, name: str) -> Slot:
        """The slot of a name."""
        return next(each for each in self.slots if each.name == name)

    def fill_slots(self, **given: object) -> None:
        """Resolve the quantizers of all slots; the last thing that a constructor does.

        Args:
            **given: ``<slot>_quant`` for a quantizer other than the slot's default, and settings with its prefix. The
                name of a family stands for all its slots.

        Raises:
            QuantizerError: something that nothing uses, or an impossible setting.
        """
        self._fill(given, {slot: slot.default for slot in self.slots})

    def _fill(self, given: Mapping[str, object], usual: Mapping[Slot, object]) -> None:
        """Resolve the slots: what keywords say, the most specific one first, or else what is usual."""
        quantizers = dict(usual)
        for slot in quantizers:
            asked = [f"{name}_quant" for name in reversed(slot.names) if f"{name}_quant" in given]
            if asked:
                quantizers[slot] = given[asked[0]]
        chosen = {f"{name}_quant" for slot in quantizers for name in slot.names}
        settings = {keyword: item for keyword, item in given.items() if keyword not in chosen}
        self._fill_slots(quantizers, split_overrides(self, quantizers, settings))

    # What a float layer becomes that changes its class

    @classmethod
    def usual_quantizer(cls, slot: Slot) -> QuantizerLike:
        """The quantizer that the constructor gives a slot unless told otherwise.

        Example:
            >>> import bitwright.nn as qnn
            >>> qnn.QuantReLU.usual_quantizer(qnn.QuantReLU().slot("act"))
            Uint8Act
        """
        for base in cls.__mro__:
            known = inspect.signature(base.__init__).parameters
            for name in reversed(slot.names):
                found = known.get(f"{name}_quant")
                if found is not None and found.default is not found.empty:
                    return found.default
        return slot.default

    def _convert(self, given: Mapping[str, object], device: torch.device | None, dtype: torch.dtype | None) -> None:
        """What a constructor does after torch's own, for a layer of torch that has changed its class to this one.

        Args:
            given: the keyword arguments that the constructor would get.
            device: of the quantizers' state, where the layer has no parameters that say.
            dtype: of the quantizers' state, likewise.
        """
        self._fill(given, {slot: self.usual_quantizer(slot) for slot in self.slots})

    def tensor_of(self, slot: str) -> Tensor:
        """What the quantizer of a slot quantizes: the slot's parameter, as the quantizer sees it."""
        parameter = self.slot(slot).parameter
        assert parameter is not None
        return getattr(self, parameter)

    def _provided(self, slot: Slot) -> Mapping[str, object]:
        """What the layer contributes to the quantizer of a slot: device and dtype, and the shape of a parameter."""
        first = next(self.parameters(recurse=False), None)
        provided: dict[str, object] = {
            "device": None if first is None else first.device,
            "dtype": None if first is None else first.dtype,
        }
        if slot.parameter is not None and getattr(self, slot.parameter, None) is not None:
            shape = tuple(self.tensor_of(slot.name).shape)
            axis = self._channel_axis(slot)
            provided |= {"channel_axis": axis, "channels": shape[axis], "shape": shape}
        return provided

    def _channel_axis(self, slot: Slot) -> int:
        """The dimension that counts output channels, where the quantizer sees the parameter."""
        return slot.channel_axis

    def take(self, slot: str, *context: object) -> tuple[Tensor, Grid | None]:
        """The quantized parameter of a slot, and its grid; the parameter itself and None without a quantizer.

        In a frozen model it is worked out once.
        """
        quant = getattr(self, f"{slot}_quant")
        return (self.tensor_of(slot), None) if quant is None else self._take(slot, quant, context, None)

    def pass_through(self, slot: str, x: Tensor) -> tuple[Tensor, Grid | None]:
        """A tensor that flows through the layer, quantized by the slot's quantizer, and its grid, if it has one."""
        quant, values, grid = getattr(self, f"{slot}_quant"), values_of(x), grid_of(x)
        if quant is None:
            return values, grid
        return quant.quantize(values, grid) if quant.truncates else quant.quantize(values)

    def _leaving(self, out: Tensor, grid: Grid | None) -> Tensor:
        """The result, with its grid if that was asked for."""
        return out if grid is None or not self.return_quant_tensor or exporting() else QuantTensor.wrap(out, grid)

    def _refuse_nested(self, *tensors: Tensor) -> None:
        """Raise an error if one of the tensors is several in one."""
        if any(each.is_nested for each in tensors):
            raise QuantizerError(
                f"{path_of(self)}: the input is a nested tensor, which can't be quantized. Pad it, "
                "x.to_padded_tensor(0.0); if nn.TransformerEncoder made it, write enable_nested_tensor=False there."
            )

    def _take(
        self, slot: str, quant: TensorQuant, context: tuple[object, ...], depends_on: Grid | None
    ) -> tuple[Tensor, Grid | None]:
        """A parameter quantized; in a frozen model once for each grid of the input, if it depends on that."""
        kept = None if torch.compiler.is_compiling() else self._kept
        tensor = self.tensor_of(slot)
        if kept is None or quant.intercept is not None or self.training or torch.is_grad_enabled():
            return quant.quantize(tensor, *context)
        if isinstance(kept, Kept) and not kept.live:  # the block has ended
            return quant.quantize(tensor, *context)
        scale = depends_on.scale if context and depends_on is not None else None
        found = kept.get(slot)
        if found is None or found[0] is not scale:
            kept[slot] = found = (scale, *quant.quantize(tensor, *context))
        return found[1:]

    def _check_slots(self) -> None:
        """Refuse quantizers that don't go together."""

    def _fill_slots(self, slots: Mapping[Slot, object], given: Mapping[str, Mapping[str, object]]) -> None:
        """Resolve the slots, with all the checks."""
        for slot, quantizer in slots.items():
            provided = {} if quantizer is None else self._provided(slot)
            module = fill_slot(self, slot, quantizer, given[slot.name], provided)
            self._replace(f"{slot.name}_quant", module)
            if module is not None and slot.parameter is not None:
                module.rederive()
        self._check_slots()
        self._built = True

    def __setattr__(self, name: str, item: Any) -> None:
        if self._built:
            if name.endswith("_quant"):
                meant = [slot for slot in self.slots if name.removesuffix("_quant") in slot.names]
                if meant:
                    return self._refill(meant, item)
            self._refuse_setting(name, item)
            item = checked_flag(self, name, item) if name == "return_quant_tensor" else item
        super().__setattr__(name, item)

    def _refill(self, slots: Sequence[Slot], quantizer: object) -> None:
        """Give slots of a built layer another quantizer: a class to resolve, a module, or None."""
        before = {slot: getattr(self, f"{slot.name}_quant", None) for slot in slots}
        modules = {slot: fill_slot(self, slot, quantizer, {}, self._provided(slot)) for slot in slots}
        try:
            for slot, module in modules.items():
                self._replace(f"{slot.name}_quant", module)
            self._check_slots()
        except QuantizerError:
            for slot, module in before.items():
                self._replace(f"{slot.name}_quant", module)
            raise
        for module in modules.values():
            if module is not None:
                module.train(self.training)
                if module.of_parameter and (module is not quantizer or len(module._served) > 1):
                    module.rederive()
        if self._kept:
            self._kept.clear()

    def _replace(self, name: str, module: TensorQuant | None) -> None:
        self.__dict__.pop(name, None)
        self._modules.pop(name, None)
        given: Any = module
        super().__setattr__(name, given)  # torch's own, which tells those who watch registrations

    def _refuse_setting(self, name: str, item: object) -> None:
        """What a quantizer was declared with is no attribute of the layer, to be set afterwards and ignored."""
        if isinstance(item, Tensor | nn.Module) or hasattr(type(self), name):
            return
        if any(name in held for held in (self.__dict__, self._parameters, self._buffers)):
            return
        for slot in self.slots:
            declared = getattr(getattr(self, f"{slot.name}_quant", None), "quantizer", None)
            if declared is None:
                continue
            prefixes = {f"{each}_": each for each in slot.names} if slot.prefix is None else {slot.prefix: slot.name}
            for prefix, meant in prefixes.items():
                setting = FORMER_SETTINGS.get(name.removeprefix(prefix), name.removeprefix(prefix))
                if name.startswith(prefix) and setting in {*settings(declared), *IMPLIED}:
                    raise ReadOnlyError(
                        f"{Described(self)}: {name}={item!r} can't be set on a layer that is built. Write "
                        f"layer.{meant}_quant = {declared(**{setting: item})!r}."
                    )

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; training in a frozen model forgets what was kept."""
        if mode and self._kept:
            self._kept.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        for slot in self.slots:
            quant = self._modules.get(f"{slot.name}_quant")
            if isinstance(quant, TensorQuant):
                quant.serve(self, slot.name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; one that takes another's place has its learned scale derived anew."""
        before = self._parameters.get(name)
        super().register_parameter(name, param)
        plain = type(before) is nn.Parameter and type(param) is nn.Parameter  # sharding exchanges tensors, not weights
        if self._built and plain and before is not param:
            for quant in self._quantizers_of(name):
                quant.rederive()
        if self._kept:
            self._kept.clear()

    def _quantizers_of(self, parameter: str) -> list[TensorQuant]:
        """The quantizers of a parameter."""
        found = (self._modules.get(f"{slot.name}_quant") for slot in self.slots if slot.parameter == parameter)
        return [each for each in found if isinstance(each, TensorQuant)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._kept:
            self._kept.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for slot in self.slots:
            quant, name = self._modules.get(f"{slot.name}_quant"), slot.parameter
            holds = any(key.startswith(f"{prefix}{slot.name}_quant.") for key in state_dict)
            parts = (f"{prefix}{name}", f"{prefix}{name}_orig", f"{prefix}parametrizations.{name}.")
            loaded = any(
                key in parts[:2] or key.startswith((parts[2], f"{parts[0]}_g", f"{parts[0]}_v")) for key in state_dict
            )
            if isinstance(quant, TensorQuant) and name is not None and loaded and not holds:
                quant.rederive()  # a float checkpoint: scales start from its weights
