"""Loading a model with packed weights."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ....nn.layer import QuantLayer
from ....qcore import GridQuant, TensorQuant
from ...errors import ExportError, with_causes
from ...optional import required
from ..stored_weights import StoredWeight, checked_model, joined, stored_weights
from .forms import Form, scales, unpacked
from .saving import KEY, VERSION

__all__ = ["load_packed"]


def load_packed(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a file of `save_packed` into a model with the same quantizers, which then computes the same outputs.

    The model is built as the saved one was: from quantized layers, or by `bitwright.graph.quantize` from the float
    model and the same rules. Its weights become what the codes stand for, and their grids are fixed: they stay what
    the file says, whatever becomes of the weights, until ``quant.release()``. All else is loaded as
    ``model.load_state_dict`` does it, layer by layer, so that no second copy of the model is held.

    Names, shapes and schemes are checked before anything is loaded: after an error about them the model is as it was.

    Args:
        model: the model; what it holds is replaced in place.
        path: of the file.

    Raises:
        ExportError: not a model, not such a file, or one of another model: all that is missing, is not expected or
            does not fit is listed.

    Example:
        >>> import tempfile, bitwright.nn as qnn
        >>> from bitwright.export import save_packed
        >>> saved, loaded = (nn.Sequential(qnn.QuantLinear(64, 8, weight_bit_width=4)) for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "model.safetensors")
        ...     _ = save_packed(saved, path)
        ...     load_packed(loaded, path)
        >>> x = torch.randn(2, 64)
        >>> torch.equal(saved(x), loaded(x))
        True
    """
    checked_model("load_packed", model)
    required("safetensors.torch", "load_packed")
    shown = f"load_packed({os.fspath(path)!r})"
    with _opened(shown, path) as file:
        packed = _Packed(shown, file)
        causes = list(packed.misfits(model))
        if causes:
            raise ExportError(with_causes(f"{shown}: the file does not fit this model:", causes))
        packed.load(model)


def _opened(shown: str, path: str | os.PathLike[str]) -> Any:
    safetensors = required("safetensors", "load_packed")
    try:
        return safetensors.safe_open(os.fspath(path), framework="pt")
    except safetensors.SafetensorError as error:
        raise ExportError(f"{shown}: the file is damaged, or no safetensors file ({error}).") from None


class _Packed:
    """An open file, as the state dict that it stands for.

    Args:
        shown: the call, as errors name it.
        file: what safetensors opened.
    """

    def __init__(self, shown: str, file: Any) -> None:
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise ExportError(f"{shown}: the file has no entry {KEY!r}. Load what save_packed wrote.")
        said = json.loads(text)
        if said["version"] != VERSION:
            raise ExportError(
                f"{shown}: the file is of version {said['version']}, and this bitwright reads version {VERSION}. Load "
                "it with the bitwright that wrote it, or write it again."
            )
        self.shown, self.file = shown, file
        self.forms = {name: Form.read(entry) for name, entry in said["weights"].items()}
        self.twins: dict[str, str] = said["twins"]
        self.ties: dict[str, str] = said["ties"]
        self.weights = {form.key: name for name, form in self.forms.items()}  # by the parameter
        names = set(file.keys())
        parts = {f"{name}.{part}" for name, form in self.forms.items() for part in form.tensors()}
        lacking = sorted(parts - names)
        if lacking:
            raise ExportError(f"{shown}: the file lacks {lacking[0]}: it is damaged. Write it again.")
        self.plain = names - parts
        self.names = {*self.plain, *self.ties, *self.weights}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor of the file."""
        return tuple(self.file.get_slice(self.ties.get(name, name)).get_shape())

    def parts(self, name: str, parts: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of a packed weight."""
        return {part: self.file.get_tensor(f"{name}.{part}") for part in parts}

    # Checks: nothing is changed

    def misfits(self, model: nn.Module) -> Iterator[str]:
        """What is missing, not expected, or of another shape or scheme."""
        quantizers = _quantizers(model)
        owned = _Owned(quantizers)
        own = {name: each for name, each in _tensors(model) if name not in owned}
        schemes = {name.removesuffix(".scheme") for name in self.names if name.endswith(".scheme")}
        for name, tensor in own.items():
            first = self.ties.get(name, name)
            if name not in self.names:
                yield f"{name} is missing from the file."
            elif first not in self.weights and self.shape(first) != tuple(tensor.shape):
                yield f"{name} has the shape {self.shape(first)} in the file, and {tuple(tensor.shape)} in the model."
        for name in sorted(quantizers.keys() - schemes):
            yield f"{name} is missing from the file: the saved model did not quantize there."
        for name in sorted(schemes - quantizers.keys()):
            yield f"{name} is missing from the model: the saved model quantizes there."
        strangers, branches = _Owned(schemes), set(_branches(model))
        for name in sorted(self.names - own.keys() - branches):
            if name not in owned and name not in strangers:
                yield f"{name} is not in the model, and the file holds it."
        for each in stored_weights(model):
            yield from self._misfit(each)
        for name in sorted(quantizers.keys() & schemes):
            yield from self._refused(name, quantizers[name])

    def _misfit(self, stored: StoredWeight) -> Iterator[str]:
        """What is wrong with the place for a packed weight."""
        name = self.weights.get(self.ties.get(stored.key, stored.key))
        if name is None:
            return
        form, shape = self.forms[name], tuple(stored.as_seen().shape)
        if shape != form.shape:
            yield f"{stored.key} has the shape {form.shape} in the file, and {shape} in the model."
        for part, each in form.tensors().items():
            found = self.shape(f"{name}.{part}")
            if found != each.shape:
                yield f"{name}.{part} is damaged: its shape is {found}, and {each.shape} was written."

    def _refused(self, name: str, quant: TensorQuant) -> Iterator[str]:
        """What a quantizer says of the file's state for it, tried on a copy."""
        trial = deepcopy(quant)
        try:
            keys = trial.load_state_dict(self.state(name, {"": quant}), strict=False)
        except RuntimeError as error:
            yield f"{name}: {' '.join(str(error).split())}"
            return
        kind = f"{type(quant).__name__}: "
        for each in keys.unexpected_keys:
            told = each.startswith(f"{kind}the file holds ")  # of another scheme
            says = each.removeprefix(kind).replace(_LOOSELY, "") if told else f"the file holds {each}, too."
            yield f"{name}: {says}"
        for each in keys.missing_keys:
            yield f"{name}.{each} is missing from the file."

    # Loading

    @torch.no_grad()
    def load(self, model: nn.Module) -> None:
        """Load everything, layer by layer."""
        loaded = set[int]()
        for path, module in _units(model):
            if isinstance(module, (QuantLayer, TensorQuant)):
                module.load_state_dict(self.state(path, _quantizers(module)), strict=False)
            else:
                start = joined(path, "") if path else ""
                state = {f"{start}{name}": self.tensor(f"{start}{name}") for name in _names_of(module)}
                module._load_from_state_dict(state, start, {"version": module._version}, False, [], [], [])
            for stored in stored_weights(module) if isinstance(module, QuantLayer) else ():
                stored.quant.to(stored.tensor.device)  # a grid that was fixed just now lies where the layer was made
                if id(stored.tensor) not in loaded:
                    loaded.add(id(stored.tensor))
                    self.unpack(joined(path, stored.key), stored)

    def unpack(self, key: str, stored: StoredWeight) -> None:
        """Let a weight be what its codes stand for, if it is packed."""
        name = self.weights.get(self.ties.get(key, key))
        if name is not None:
            assert isinstance(stored.quant, GridQuant)
            form = self.forms[name]
            values = unpacked(form, self.parts(name, form.tensors()), stored.quant)
            stored.tensor.copy_(stored.as_stored(values.to(stored.tensor.dtype)))

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file that is not packed."""
        return self.file.get_tensor(self.ties.get(name, name))

    def state(self, path: str, quantizers: Mapping[str, TensorQuant]) -> dict[str, Tensor]:
        """The state dict of a part, but for packed weights, with the grids that are fixed.

        Args:
            path: of the part.
            quantizers: of the part, by their paths in it.
        """
        start = f"{path}." if path else ""
        found = {
            name.removeprefix(start): self.tensor(name)
            for name in self.names
            if name.startswith(start) and self.ties.get(name, name) not in self.weights
        }
        for inside, quant in quantizers.items():
            name = joined(path, inside) if inside else path
            first = self.twins.get(name, name)
            form = self.forms.get(first)
            if form is None or not form.fixed:
                continue
            held = form.tensors().keys() - {"codes"}
            before = f"{inside}." if inside else ""
            scale, zero_point = scales(form, self.parts(first, held), quant)
            found[f"{before}scaling.fixed_scale"] = scale
            if zero_point is not None:
                found[f"{before}zero_point.fixed_zero_point"] = zero_point
        return found


_LOOSELY = ", or load with strict=False to keep this one's scheme"  # which load_packed does not do


class _Owned:
    """The names of what belongs to some modules.

    Args:
        paths: of the modules.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = set(paths)

    def __contains__(self, name: object) -> bool:
        parts = str(name).split(".")
        return any(".".join(parts[:count]) in self.paths for count in range(len(parts)))


def _quantizers(module: nn.Module) -> dict[str, TensorQuant]:
    """Every quantizer by each of its paths."""
    found = module.named_modules(remove_duplicate=False)
    return {name: each for name, each in found if isinstance(each, TensorQuant)}


def _names_of(module: nn.Module) -> list[str]:
    """The names of a module's own tensors that a state dict holds."""
    buffers = module._buffers.keys() - module._non_persistent_buffers_set
    held = {**module._parameters, **module._buffers}
    return [name for name, each in held.items() if each is not None and (name in module._parameters or name in buffers)]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model's state dict, by each of its names; nothing is measured for it."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name in _names_of(module):
            yield joined(path, name), getattr(module, name)


def _branches(model: nn.Module) -> Iterator[str]:
    """Names that a layer takes over from a state dict without having them: those of a `LowRank` branch."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantLayer):
            yield from (joined(path, f"correction.{name}") for name in ("down", "up"))


def _units(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """What is loaded at once: quantized layers with all that is inside, the own tensors of other modules."""
    yield path, module
    if not isinstance(module, (QuantLayer, TensorQuant)):
        for name, child in module.named_children():
            yield from _units(child, joined(path, name))
