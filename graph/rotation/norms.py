"""Norms in a recorded model, whoever wrote them: what they compute is found by trying them."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isclose

import torch
from torch import Tensor, nn

from ..recording.nodes import Graph, Node, Source
from ..recording.recorder import is_leaf

__all__ = ["Norm", "NormCall", "norm_calls"]


@dataclass(frozen=True)
class Norm:
    """A module that divides each row by its root mean square, after subtracting the mean or not.

    The result is ``(offset + gain) * x / rms(x) + bias``, up to a constant factor.

    Attributes:
        path: of the module, or of the module that computes it.
        size: how many features are normalized.
        centered: whether the mean is subtracted: a LayerNorm.
        gain: the path of the parameter, "" if there is none.
        offset: 1 where the gain is written as ``1 + weight``.
        bias: the path of the parameter, "" if there is none.
        eps: what is added to the mean square; only known where the mean is subtracted.
    """

    path: str
    size: int
    centered: bool = False
    gain: str = ""
    offset: float = 0.0
    bias: str = ""
    eps: float = 0.0


@dataclass(eq=False)
class NormCall:
    """One call of a norm.

    Attributes:
        norm: which one.
        read: what is normalized.
        wrote: the node that gives the result.
        nodes: all nodes of the call.
    """

    norm: Norm
    read: Source
    wrote: Node
    nodes: set[Node] = field(default_factory=set)


def norm_calls(graph: Graph, model: nn.Module) -> dict[Node, NormCall]:
    """The nodes that belong to calls of norms.

    Example:
        >>> from bitwright.graph import record
        >>> class Own(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.rand(4))
        ...     def forward(self, x):
        ...         return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6))
        >>> model = nn.Sequential(Own(), nn.LayerNorm(4))
        >>> calls = norm_calls(record(model, torch.randn(2, 4)), model)
        >>> for call in dict.fromkeys(calls.values()):
        ...     print(call.norm)
        Norm(path='0', size=4, centered=False, gain='0.weight', offset=0.0, bias='', eps=0.0)
        Norm(path='1', size=4, centered=True, gain='1.weight', offset=0.0, bias='1.bias', eps=1e-05)
    """
    modules, tried = dict(model.named_modules()), dict[str, Norm | None]()
    found: dict[Node, NormCall] = {}
    for nodes in _calls(graph, modules):
        path = nodes[0].module if nodes[0].module is not None else nodes[0].owner
        inside = set(nodes)
        read = list(dict.fromkeys(each for node in nodes for each in node.sources if each[0] not in inside))
        wrote = [node for node in nodes if not node.users or any(user not in inside for user in node.users)]
        if len(read) != 1 or len(wrote) != 1 or not wrote[0].shape or any(node.alternatives for node in nodes):
            continue
        if path not in tried:
            tried[path] = _tried(modules[path], path, wrote[0].shape[-1])
        norm = tried[path]
        if norm is not None and norm.size == wrote[0].shape[-1]:
            found |= dict.fromkeys(nodes, NormCall(norm, read[0], wrote[0], inside))
    return found


def _calls(graph: Graph, modules: dict[str, nn.Module]) -> Iterator[list[Node]]:
    """Nodes of one call each of modules that may be norms: one behind the other, and connected."""
    run: list[Node] = []
    for node in graph.nodes:
        path = node.module if node.module is not None else node.owner
        if node.function is None or not _may_be(modules.get(path), node.module is not None):
            continue
        same = run and node.module is None and run[-1].module is None and run[-1].owner == node.owner
        if same and any(source in run for source, _ in node.sources):
            run.append(node)
            continue
        if run:
            yield run
        run = [node]
    if run:
        yield run


def _may_be(module: nn.Module | None, called: bool) -> bool:
    if module is None or is_leaf(module) != called:
        return False
    if called:
        return isinstance(module, (nn.LayerNorm, nn.RMSNorm))
    parameters = list(module.parameters())
    return len(parameters) <= 2 and all(each.ndim == 1 for each in parameters) and not any(module.children())


@torch.no_grad()
def _tried(module: nn.Module, path: str, size: int) -> Norm | None:
    """What a module computes, tried on random rows."""
    start = f"{path}." if path else ""
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        kind = nn.LayerNorm if isinstance(module, nn.LayerNorm) else nn.RMSNorm
        if type(module).forward is not kind.forward or len(module.normalized_shape) != 1:
            return None
        named = {name: f"{start}{name}" for name, each in module._parameters.items() if each is not None}
        eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
        return Norm(path, size, kind is nn.LayerNorm, named.get("weight", ""), 0.0, named.get("bias", ""), eps)
    plain = copy.deepcopy(module).to("cpu", torch.float64).eval()
    parameters = {name: each for name, each in plain.named_parameters() if each.shape == (size,)}
    if len(parameters) != sum(1 for _ in plain.parameters()):
        return None
    generator = torch.Generator().manual_seed(0)
    for each in parameters.values():
        each.copy_(torch.rand(size, generator=generator, dtype=torch.float64) + 0.5)
    x = 100 * torch.randn(1, 4, size, generator=generator, dtype=torch.float64) + 30
    got = _of(plain, x)
    if got is None:
        return None
    for gain, offset, bias in _readings(parameters):
        for centered in (False, True):
            factor = torch.ones(()) if not gain else offset + parameters[gain]
            rows = _normed(x, centered) * factor
            rest = got - parameters[bias] if bias else got
            ratio = (rest * rows).sum() / rows.square().sum()
            if not torch.allclose(rest, ratio * rows, rtol=1e-4, atol=1e-4 * float(rest.abs().max())):
                continue
            eps = _eps(plain, x, bias, factor) if centered else 0.0
            if eps is None or (centered and not isclose(float(ratio), 1, rel_tol=1e-4)):
                return None
            gain, bias = (f"{start}{each}" if each else "" for each in (gain, bias))
            return Norm(path, size, centered, gain, offset, bias, eps)
    return None


def _readings(parameters: dict[str, nn.Parameter]) -> Iterator[tuple[str, float, str]]:
    """What may be the gain, one more than it, and the bias."""
    names = list(parameters)
    pairs = [(one, other) for one in ["", *names] for other in ["", *names] if one != other or not one]
    for gain, bias in pairs:
        if len({gain, bias} - {""}) == len(names):
            for offset in (0.0, 1.0) if gain else (0.0,):
                yield gain, offset, bias


def _of(module: nn.Module, x: Tensor) -> Tensor | None:
    try:
        got = module(x)
    except Exception:
        return None
    return got.double() if isinstance(got, Tensor) and got.shape == x.shape and got.is_floating_point() else None


def _normed(x: Tensor, centered: bool) -> Tensor:
    x = x - x.mean(-1, keepdim=True) if centered else x
    return x * x.square().mean(-1, keepdim=True).rsqrt()


def _eps(module: nn.Module, x: Tensor, bias: str, factor: Tensor) -> float | None:
    """What is added to the variance, from rows that are nearly zero; None if that does not explain the result."""
    added = module.get_parameter(bias) if bias else torch.zeros(())
    small, unit = 1e-6, _normed(x, True)
    got = _of(module, unit * small)
    if got is None:
        return None
    rate = float(((got - added) / (unit * small * factor)).median())
    eps = max(rate**-2 - small**2, 0.0) if rate > 0 else -1.0
    rounded = float(f"{eps:.2g}")
    eps = rounded if isclose(eps, rounded, rel_tol=1e-3) else eps
    for size in (1e-6, 1e-3, 1.0):
        got, expected = _of(module, unit * size), unit * size * (size**2 + eps) ** -0.5 * factor + added
        if eps < 0 or got is None or not torch.allclose(got, expected, rtol=1e-3, atol=1e-4):
            return None
    return eps
