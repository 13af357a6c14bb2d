"""Parameters of a model, into which norms are folded and which rotations multiply, in float64."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...nn.contexts.progress import tracked
from ...nn.hadamard_transform import HadamardTransform
from ..passes.models import replace_module
from .norms import Norm
from .parts import Matrix
from .spaces import Space, Turn

__all__ = ["Weights", "avoid_fused", "turned"]

Step: TypeAlias = Callable[[Tensor], Tensor]
Rotation: TypeAlias = Tensor | HadamardTransform


def turned(tensor: Tensor, turn: Turn, rotation: Rotation) -> Tensor:
    """A parameter whose part is multiplied by a rotation, differentiable.

    Args:
        tensor: the parameter.
        turn: which part of it, and along which dimension.
        rotation: R, (size, size), or a transform; vectors of features are rows, which become ``x @ R``.

    Example:
        >>> rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> turned(torch.tensor([[1.0, 2.0, 3.0]]), Turn("fc", "fc.weight", 1, 1, 3), rotation)
        tensor([[ 1., -3.,  2.]])
    """
    size = rotation.size if isinstance(rotation, HadamardTransform) else rotation.shape[0]
    rows = tensor if turn.rows is None else tensor[turn.rows[0] : turn.rows[1]]
    part = rows.narrow(turn.dim, turn.start, turn.stop - turn.start).movedim(turn.dim, -1)
    blocks = part.reshape(*part.shape[:-1], -1, size)
    product = rotation(blocks) if isinstance(rotation, HadamardTransform) else blocks @ rotation
    product = product.reshape(part.shape).movedim(-1, turn.dim)
    around = [
        rows.narrow(turn.dim, 0, turn.start),
        product,
        rows.narrow(turn.dim, turn.stop, rows.shape[turn.dim] - turn.stop),
    ]
    rows = torch.cat(around, turn.dim)
    return rows if turn.rows is None else torch.cat([tensor[: turn.rows[0]], rows, tensor[turn.rows[1] :]])


class Weights:
    """The parameters that rotations change, and the model that gets them.

    All arithmetic is in float64, on the device of each parameter, and one parameter after the other.

    Args:
        source: the user's model, which stays as it is.
        model: the copy that is changed.
        spaces: what is rotated in it.

    Attributes:
        parameters: of the copy, by the path that each has in the user's model.
        untied: what was shared between layers, and is no more: the path, and those of who else has it.
    """

    def __init__(self, source: nn.Module, model: nn.Module, spaces: Iterable[Space]) -> None:
        self.source, self.model = source, model
        self.untied: dict[str, tuple[str, ...]] = {}
        self.parameters: dict[str, Tensor] = {}
        self._steps: dict[str, list[Step]] = {}  # what is done to each before it is rotated, in this order
        self.spaces = spaces = list(spaces)
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
                    self._steps[turn.parameter].append(partial(_center, turn))
        for norm in dict.fromkeys(norm for space in spaces for norm in space.norms):
            self._neutral(norm)

    def add(self, path: str) -> None:
        """Take a parameter or buffer in; its layer gets one of its own if others share it."""
        if path in self.parameters:
            return
        owner, name = _split(self.model, path)
        tensor = getattr(owner, name)
        others = [other for other, each in _holders(self.model) if each is tensor and other != path]
        if others and isinstance(tensor, nn.Parameter):
            self.untied[path] = tuple(others)
            _say_untied(self.model)
            owner._parameters[name] = tensor = nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        self.parameters[path] = tensor
        self._steps[path] = []

    def turn(self, turn: Turn, rotation: Rotation) -> None:
        """Let a rotation that is not learned multiply a parameter, too."""
        self._steps[turn.parameter].append(lambda tensor: turned(tensor, turn, rotation))

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
            if norm.bias:
                path = matrix.bias or (f"{matrix.layer}.bias" if matrix.layer else "bias")
                self._steps[path].append(partial(_add_bias, self.source, matrix, norm))
            if norm.gain:
                self._steps[matrix.weight].append(partial(_multiply, self.source, matrix, norm))

    def _neutral(self, norm: Norm) -> None:
        """A norm without gain and bias; one that subtracts the mean becomes one that does not."""
        if norm.centered:
            module = self.model.get_submodule(norm.path)
            like = next(iter(self.parameters.values())) if not norm.gain else _get(self.model, norm.gain)
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
        return [turn for turn in turns if turn.parameter in self.parameters]

    @torch.no_grad()
    def base(self, path: str) -> Tensor:
        """A parameter in float64, before it is rotated."""
        known = _get(self.source, path)
        like = self.parameters[path].detach() if known is None else known.detach()
        tensor = torch.zeros_like(like, dtype=torch.float64) if known is None else like.to(torch.float64, copy=True)
        for step in self._steps[path]:
            tensor = step(tensor)
        return tensor

    def rotated(self, path: str, base: Tensor, rotations: Mapping[str, Rotation]) -> Tensor:
        """A parameter behind rotations, in float64 and differentiable.

        Args:
            path: of the parameter.
            base: what it is before.
            rotations: those of each space by its name.
        """
        for space in self.spaces:
            for turn in space.turns:
                if turn.parameter == path:
                    base = turned(base, turn, rotations[space.name].to(base.device))
        return base

    @torch.no_grad()
    def write(self, rotations: Mapping[str, Rotation]) -> None:
        """Put all parameters behind rotations into the model, in its precision, one after the other."""
        with closing(tracked(list(self.parameters.items()), "rotate", unit="weights")) as items:
            for path, parameter in items:
                parameter.copy_(self.rotated(path, self.base(path), rotations))


def _center(turn: Turn, tensor: Tensor) -> Tensor:
    """The mean over features subtracted from what writes them."""
    part = tensor.narrow(turn.dim, turn.start, turn.stop - turn.start)
    part -= part.mean(turn.dim, keepdim=True)
    return tensor


def _rows(matrix: Matrix, weight: Tensor) -> Tensor:
    return weight.T if matrix.transposed else weight[matrix.start : matrix.stop]


def _multiply(source: nn.Module, matrix: Matrix, norm: Norm, weight: Tensor) -> Tensor:
    """A norm's gain, in a weight that reads what it gives."""
    rows = _rows(matrix, weight)
    rows *= norm.offset + _get(source, norm.gain).to(weight)
    return weight


def _add_bias(source: nn.Module, matrix: Matrix, norm: Norm, bias: Tensor) -> Tensor:
    """What a norm's bias comes to, in the bias of what reads it."""
    added = _rows(matrix, _get(source, matrix.weight).to(bias)) @ _get(source, norm.bias).to(bias)
    bias[matrix.bias_start : matrix.bias_start + len(added)] += added
    return bias


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
