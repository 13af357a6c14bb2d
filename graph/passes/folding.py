"""BatchNorm folded into the layer before it."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..errors import GraphError
from ..recording.nodes import Graph, Node
from ..recording.recorder import record
from ..regions.ownership import Ownership, channel_axis
from ..regions.weights import WeightedLayer, scale_channels, weighted
from .models import Examples, check_same, float_copy, replace_module, with_report
from .reports import Entry, Report, listed

__all__ = ["fold_batch_norms"]

Model = TypeVar("Model", bound=nn.Module)


def fold_batch_norms(model: Model, examples: Examples) -> Model:
    """Fold each BatchNorm into the convolution or linear layer before it.

    In evaluation a BatchNorm multiplies each channel by a constant and adds one: the layer before it can do both. A
    folded BatchNorm becomes an ``nn.Identity``, so that all paths stay as they are, and the layer has a bias. Computed
    in float64.

    Which pairs are folded is read off a recording of the model on the examples: the BatchNorm's only input must be the
    result of a layer that nobody else reads, and each of the two called once. A BatchNorm after an activation stays.

    The mean and the spread of the folded outputs, BatchNorm's ``bias`` and the magnitude of its ``weight``, are kept as
    buffers ``folded_mean`` and ``folded_std`` of the layer, outside of its state dict: `absorb_biases` needs them.

    Args:
        model: a float model, which stays as it is.
        examples: inputs for the recording: a tensor, a tuple of arguments, a dict of keyword arguments, or a list of
            these.

    Returns:
        A new model. Its ``report`` says for each BatchNorm where it went, or why it was left.

    Raises:
        GraphError: no BatchNorm can be folded, for the reasons that the message lists; or the model is quantized.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
        >>> folded = fold_batch_norms(model, torch.randn(1, 3, 8, 8))
        >>> print(folded.report)
        fold_batch_norms: 1 changed, 1 left
          1  folded into 0
          3  left: its input comes from 2 (ReLU), not from a convolution or linear layer
        >>> folded[1]
        Identity()
    """
    folded = float_copy("fold_batch_norms", model)
    norms = {path: module for path, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        raise GraphError("fold_batch_norms: nothing to fold. The model has no BatchNorm.")
    graph = record(model, examples)
    search = _Search(graph, model)
    entries = [_fold(search, folded, path, norm) for path, norm in norms.items()]
    report = Report("fold_batch_norms", tuple(entries))
    if not report.changed:
        raise GraphError(f"fold_batch_norms: nothing to fold. {listed(report.left)}")
    check_same("fold_batch_norms", model, folded, examples)
    return with_report(folded, report)


@dataclass(frozen=True)
class _Refusal:
    """Why a BatchNorm is left."""

    reason: str


FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


class _Search:
    """Finds the layers that BatchNorms can be folded into."""

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        self.graph, self.modules, self.ownership = graph, dict(model.named_modules()), Ownership(graph, model)

    def layer_before(self, path: str, norm: _BatchNorm) -> str | _Refusal:
        """The path of the layer that takes the BatchNorm's work, or why there is none."""
        calls = self.graph.calls(path)
        refusal = self._own(norm, calls)
        if refusal is not None:
            return refusal
        if calls[0].alternatives:
            return _Refusal("its input comes from another layer in other examples")
        source = calls[0].inputs[0] if calls[0].inputs else None
        if source is None:
            return _Refusal("its input is not the result of a layer")
        return self._layer_of(source[0], calls[0])

    def _own(self, norm: _BatchNorm, calls: list[Node]) -> _Refusal | None:
        """What about the BatchNorm itself keeps it from being folded."""
        if not calls:
            return _Refusal("no example reaches it")
        if len(calls) > 1:
            return _Refusal(f"it is called {len(calls)} times")
        if norm.running_mean is None or norm.running_var is None:
            return _Refusal("it keeps no running statistics")
        if type(norm).forward not in FORWARDS:
            return _Refusal(f"{type(norm).__name__} has a forward of its own")
        if norm._forward_hooks or norm._forward_pre_hooks:
            return _Refusal("it has forward hooks, and an nn.Identity takes its place")
        return None

    def _layer_of(self, source: Node, call: Node) -> str | _Refusal:
        """The layer that made the BatchNorm's input, if it can take the BatchNorm's work."""
        path, layer = source.module, self.modules.get(source.module or "")
        if path is None or not isinstance(layer, (nn.Linear, _ConvNd)):
            said = f"its input comes from {source.path} ({source.kind}), not from a convolution or linear layer"
            return _Refusal(said)
        times = len(self.graph.calls(path))
        if times > 1:
            return _Refusal(f"{path} is called {times} times")
        others = [user for user in source.users if user is not call]
        if others:
            reader = "the model returns" if others[0].kind == "output" else f"{others[0].path} reads"
            return _Refusal(f"{reader} the result of {path}, too")
        if channel_axis(layer, len(source.shape)) != 1:
            return _Refusal(f"it normalizes dimension 1, and the channels of {path} are the last")
        why_not = self.ownership.why_not(path)
        return path if why_not is None else _Refusal(f"{path} {why_not}")


def _fold(search: _Search, folded: nn.Module, path: str, norm: _BatchNorm) -> Entry:
    found = search.layer_before(path, norm)
    if isinstance(found, _Refusal):
        return Entry(path, "left", found.reason)
    _fold_pair(weighted(folded, found), norm)
    replace_module(folded, folded.get_submodule(path), nn.Identity().train(norm.training))
    return Entry(path, f"folded into {found}")


@torch.no_grad()
def _fold_pair(layer: WeightedLayer, norm: _BatchNorm) -> None:
    """Give a layer the work of the BatchNorm behind it."""
    factor, offset = _affine(norm)
    if layer.bias is None:
        zeros = layer.weight.new_zeros(factor.shape)
        layer.register_parameter("bias", nn.Parameter(zeros, requires_grad=layer.weight.requires_grad))
    assert layer.bias is not None
    bias = layer.bias.double() * factor + offset  # before the product is rounded
    scale_channels(layer, outputs=factor)
    layer.bias.copy_(bias)
    ones, zeros = torch.ones_like(factor), torch.zeros_like(factor)
    std = ones if norm.weight is None else norm.weight.detach().abs()
    mean = zeros if norm.bias is None else norm.bias.detach().clone()
    layer.register_buffer("folded_mean", mean.to(layer.weight.dtype), persistent=False)
    layer.register_buffer("folded_std", std.to(layer.weight.dtype), persistent=False)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """What a BatchNorm multiplies each channel by in evaluation, and what it adds."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    offset = -norm.running_mean.double() * factor
    return factor, offset if norm.bias is None else offset + norm.bias.double()
