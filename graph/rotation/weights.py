"""Parameters of a model in float64, while norms are folded into them and rotations multiply them."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..passes.models import replace_module
from .norms import Norm
from .spaces import Space, Turn

__all__ = ["Weights", "avoid_fused", "turned"]


def turned(tensor: Tensor, turn: Turn, rotation: Tensor) -> Tensor:
    """A parameter whose part is multiplied by a rotation, differentiable.

    Args:
        tensor: the parameter.
        turn: which part of it, and along which dimension.
        rotation: R, (size, size); vectors of features are rows, which become ``x @ R``.

    Example:
        >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> turned(torch.tensor([[1.0, 2.0, 3.0]]), Turn("fc", "fc.weight", 1, 1, 3), rotation)
        tensor([[ 1., -3.,  2.]])
    """
    size = rotation.shape[0]
    rows = tensor if turn.rows is None else tensor[turn.rows[0] : turn.rows[1]]
    part = rows.narrow(turn.dim, turn.start, turn.stop - turn.start).movedim(turn.dim, -1)
    product = (part.reshape(*part.shape[:-1], -1, size) @ rotation).reshape(part.shape).movedim(-1, turn.dim)
    around = [
        rows.narrow(turn.dim, 0, turn.start),
        product,
        rows.narrow(turn.dim, turn.stop, rows.shape[turn.dim] - turn.stop),
    ]
    rows = torch.cat(around, turn.dim)
    return rows if turn.rows is None else torch.cat([tensor[: turn.rows[0]], rows, tensor[turn.rows[1] :]])


class Weights:
    """The parameters that rotations change, in float64 on the device of each, and the model that gets them.

    Args:
        model: the copy that is changed.
        spaces: what is rotated in it.

    Attributes:
        tensors: by the path that each had in the model.
        parameters: of the copy, by the same paths.
        untied: what was shared between layers, and is no more: the path, and those of who else has it.
    """

    def __init__(self, model: nn.Module, spaces: Iterable[Space]) -> None:
        self.model = model
        self.untied: dict[str, tuple[str, ...]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, Tensor] = {}
        spaces = list(spaces)
        for reading in [reading for space in spaces for reading in space.readings]:
            if reading.norm is not None and reading.norm.bias:
                self._bias(reading.matrix.layer, reading.matrix.bias)
        for turn in [turn for space in spaces for turn in space.turns]:
            if _get(model, turn.parameter) is not None:
                self.add(turn.parameter)
        for space in spaces:
            self._fold(space)
        for space in spaces:
            if space.centered:
                for turn in self._existing(space.writers):
                    tensor = self.tensors[turn.parameter]
                    part = tensor.narrow(turn.dim, turn.start, turn.stop - turn.start)
                    part -= part.mean(turn.dim, keepdim=True)
        for norm in dict.fromkeys(norm for space in spaces for norm in space.norms):
            self._neutral(norm)

    def add(self, path: str) -> None:
        """Take a parameter or buffer in; its layer gets one of its own if others share it."""
        if path in self.tensors:
            return
        owner, name = _split(self.model, path)
        tensor = getattr(owner, name)
        others = [other for other, each in _holders(self.model) if each is tensor and other != path]
        if others and isinstance(tensor, nn.Parameter):
            self.untied[path] = tuple(others)
            _say_untied(self.model)
            owner._parameters[name] = tensor = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        self.parameters[path] = tensor
        self.tensors[path] = tensor.detach().to(torch.float64, copy=True)

    def _bias(self, layer: str, path: str) -> None:
        """A bias for what a norm's comes to; one of zeros if the layer has none."""
        if not path:
            module = self.model.get_submodule(layer)
            assert isinstance(module, nn.Linear)
            weight = module.weight
            module.bias = nn.Parameter(weight.detach().new_zeros(module.out_features), weight.requires_grad)
            path = f"{layer}.bias" if layer else "bias"
        self.add(path)

    def _fold(self, space: Space) -> None:
        """The gain and bias of norms, in what reads them."""
        for reading in space.readings:
            norm, matrix = reading.norm, reading.matrix
            if norm is None:
                continue
            weight = self.tensors[matrix.weight]
            weight = weight.T if matrix.transposed else weight[matrix.start : matrix.stop]
            if norm.bias:
                path = matrix.bias or (f"{matrix.layer}.bias" if matrix.layer else "bias")
                added = weight @ _get(self.model, norm.bias).double()
                self.tensors[path][matrix.bias_start : matrix.bias_start + len(added)] += added
            if norm.gain:
                weight *= norm.offset + _get(self.model, norm.gain).double()

    def _neutral(self, norm: Norm) -> None:
        """A norm without gain and bias; one that subtracts the mean becomes one that does not."""
        if norm.centered:
            module = self.model.get_submodule(norm.path)
            like = next(iter(self.tensors.values())) if not norm.gain else _get(self.model, norm.gain)
            plain = nn.RMSNorm(norm.size, norm.eps, elementwise_affine=False, device=like.device)
            avoid_fused(self.model, module)
            replace_module(self.model, module, plain.train(module.training))
            return
        with torch.no_grad():
            if norm.gain:
                _get(self.model, norm.gain).fill_(1 - norm.offset)
            if norm.bias:
                _get(self.model, norm.bias).zero_()

    def _existing(self, turns: Iterable[Turn]) -> list[Turn]:
        """Those of parameters that there are: a layer without a bias may have got one of a norm."""
        return [turn for turn in turns if turn.parameter in self.tensors]

    def rotated(self, spaces: Iterable[Space], rotations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters behind rotations, by path, in float64 and differentiable.

        Args:
            spaces: what is rotated.
            rotations: those of each space by its name.
        """
        found = dict(self.tensors)
        for space in spaces:
            for turn in self._existing(space.turns):
                tensor = found[turn.parameter]
                found[turn.parameter] = turned(tensor, turn, rotations[space.name].to(tensor.device))
        return found

    @torch.no_grad()
    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Put parameters into the model, in its precision."""
        for path, tensor in tensors.items():
            self.parameters[path].copy_(tensor)


def _say_untied(model: nn.Module) -> None:
    """The configuration of a model of transformers, which ties weights again when it is loaded."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False) is True:
            config.tie_word_embeddings = False  # type: ignore[union-attr]


def avoid_fused(model: nn.Module, module: nn.Module) -> None:
    """A transformer layer of torch calls its modules, and has no fused path that reads their parameters."""
    for parent in model.modules():
        if isinstance(parent, nn.TransformerEncoderLayer) and any(child is module for child in parent.children()):
            parent.activation_relu_or_gelu = 0


def _split(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name


def _get(model: nn.Module, path: str) -> Any:
    owner, name = _split(model, path)
    return getattr(owner, name)


def _holders(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (f"{path}.{name}" if path else name, each)
        for path, module in model.named_modules()
        for name, each in module._parameters.items()
        if each is not None
    ]
