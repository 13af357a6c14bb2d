"""rotate: outliers of features spread over all of them, by rotations that leave the model's results as they are."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ...qcore.models import shown
from ..errors import GraphError
from ..measuring.batches import batches_of
from ..passes.models import check_same, example_of, float_copy, with_report
from ..passes.reports import listed
from ..recording.nodes import Graph
from ..recording.recorder import record
from ..rules.rules import RulesLike
from .changing import Changes
from .features import Features
from .learning import learn
from .rotations import Rotations
from .spaces import spaces_of

__all__ = ["rotate"]

Model = TypeVar("Model", bound=nn.Module)
Kind = Literal["hadamard", "random", "learned"]
LEARNING = {"steps": 100, "learning_rate": 1.5}
PLACES = ("stream", "values", "hidden", "keys", "layers")


def rotate(
    model: Model,
    data: object,
    *,
    kind: Kind = "hadamard",
    where: str | Iterable[str] = ("stream", "values"),
    block_size: int | None = None,
    skip: Iterable[str] = (),
    seed: int = 0,
    rules: RulesLike | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    steps: int = 100,
    learning_rate: float = 1.5,
) -> Model:
    """Rotate features, so that weights and activations have no outliers; the result computes what the model does.

    A rotation multiplies what a layer writes, and its transpose what the next one reads. Which layers these are is seen
    in what the model computes on the first batch, whoever wrote it. There are five places:

    - ``"stream"``: the residual stream of a pre-norm transformer, and all else that only linear layers, residual sums
      and norms touch (QuaRot's and SpinQuant's R1). It costs nothing at run time. The gains of norms are folded into
      the layers that read them. A LayerNorm becomes an RMSNorm: what writes the stream subtracts the mean.
    - ``"values"``: the values of attention, head by head, up to the output projection (R2). It costs nothing.
    - ``"hidden"``: the inputs of other layers that write a residual stream, such as ``down`` of an MLP (R4). A
      `HadamardTransform` stays in the model: the layer ``down`` becomes ``down.rotation`` and ``down.layer``.
    - ``"keys"``: the queries and keys of attention, behind rotary embeddings, by transforms that stay (R3).
    - ``"layers"``: the inputs of all other linear layers, each by a transform of its own. That is what a post-norm
      model takes, such as BERT, whose norms lie in the stream.

    Call it on the float model, before `quantize`. Weights that layers share, such as those of an embedding and a head,
    are shared no more where only one of the two is rotated or has a gain folded in.

    Args:
        model: a float model, which stays as it is.
        data: a tensor, a tuple of arguments, a dict of keyword arguments, or a list or loader of these. The first batch
            is recorded; only learned rotations need more.
        kind: ``"hadamard"``, ``"random"`` for Hadamard matrices behind random signs, or ``"learned"`` for rotations
            that minimize the loss of the quantized model, starting from Hadamard matrices. Transforms that stay in the
            model are not learned.
        where: one of the places, or several.
        block_size: the largest block of features that a rotation mixes; None for all of them. Where no Hadamard matrix
            of the size is known, the block is the largest power of two that divides it.
        skip: paths of layers before which no transform is put, as globs.
        seed: of the random signs.
        rules: of learned rotations: how the model will be quantized, see `quantize`.
        loss: of learned rotations: a function of the quantized model's result and the float model's. None for the mean
            squared difference of all tensors in them, over the mean square of the latter; its logarithm is what the
            steps descend.
        steps: of learned rotations: how many, each on one batch.
        learning_rate: of learned rotations, falling to 0.

    Returns:
        A new model. Its ``report`` says of each layer what was rotated and by what, with the largest weight over the
        root mean square before and after, and what a transform before it costs: its additions over the multiplications
        of the layer; or why it was left.

    Raises:
        GraphError: nothing can be rotated; the residual stream can't be and was asked for; a glob in ``skip`` that
            matches nothing; an impossible setting; a quantized model.

    References:
        Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024. Liu et al., "SpinQuant: LLM
        Quantization with Learned Rotations", 2024. Li et al., "Efficient Riemannian Optimization on the Stiefel
        Manifold via the Cayley Transform", 2020.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        ...     def forward(self, x):
        ...         return x + self.down(self.up(self.norm(x)).relu())
        >>> model = nn.Sequential(nn.Embedding(10, 8), Block(), nn.RMSNorm(8), nn.Linear(8, 10))
        >>> rotated = rotate(model, torch.arange(10), where=("stream", "hidden"))
        >>> [rotated.report[path].action for path in ("0", "1.up", "1.norm")]
        ['output rotated (Hadamard 8)', 'input rotated (Hadamard 8)', 'folded into 1.up']
        >>> rotated.report["1.down"].action
        'input rotated by 1.down.rotation (Hadamard 16), output rotated (Hadamard 8)'
    """
    rotated = float_copy("rotate", model)
    wanted = _places(where)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise GraphError(f"rotate: seed={shown(seed)} is not possible: expected a whole number, such as 0.")
    _check(kind, block_size, {"rules": rules, "loss": loss, "steps": steps, "learning_rate": learning_rate})
    calls = batches_of("rotate", model, data)
    graph = record(model, example_of(calls[0]))
    features = Features(graph, model)
    spaces, reasons = spaces_of(features)
    spaces = [space for space in spaces if space.kind in wanted]
    if "stream" in wanted and not any(space.kind == "stream" for space in spaces):
        raise GraphError(_no_stream(reasons))
    changes = Changes(model, rotated, graph, features, spaces, Rotations(kind, block_size, seed))
    changes.transform(wanted, list(skip))
    if "keys" in wanted:
        changes.rotate_keys()
    changes.fuse()
    if kind == "learned":
        assert rules is not None
        changes.learned = learn(model, rotated, changes, calls, rules, loss, steps, learning_rate)
    report = changes.report()
    if not report.changed:
        raise GraphError(f"rotate: nothing to rotate for where={shown(where)}. {listed(report.left)}")
    check_same("rotate", model, rotated, example_of(calls[0]), coarsest=_coarsest(graph))
    return with_report(rotated, report)


def _places(where: str | Iterable[str]) -> tuple[str, ...]:
    wanted = (where,) if isinstance(where, str) else tuple(where)
    if not wanted or any(each not in PLACES for each in wanted):
        raise GraphError(f"rotate: where={shown(where)} is not possible: expected some of {', '.join(PLACES)}.")
    return wanted


def _check(kind: str, block_size: object, learning: dict[str, object]) -> None:
    if kind not in ("hadamard", "random", "learned"):
        raise GraphError(f"rotate: kind={shown(kind)} is not possible: expected 'hadamard', 'random' or 'learned'.")
    given = [
        name for name, value in learning.items() if value is not LEARNING.get(name) and value != LEARNING.get(name)
    ]
    if kind == "learned" and "rules" not in given:
        raise GraphError(
            "rotate: kind='learned' minimizes the loss of the quantized model, and rules say how it is quantized. Pass "
            "rules={nn.Linear: W4A8}."
        )
    if kind != "learned" and given:
        raise GraphError(
            f"rotate: {' and '.join(given)} say how rotations are learned. Write kind='learned' instead of {kind!r}, "
            "or leave them out."
        )
    steps, rate = learning["steps"], learning["learning_rate"]
    if not isinstance(steps, int) or steps < 1 or not isinstance(rate, int | float) or rate <= 0:
        raise GraphError(f"rotate: steps={shown(steps)} and learning_rate={shown(rate)}: expected numbers above 0.")
    if block_size is not None and (not isinstance(block_size, int) or block_size < 2):
        raise GraphError(
            f"rotate: block_size={shown(block_size)} is not possible: expected a whole number above 1, or None."
        )


def _coarsest(graph: Graph) -> torch.dtype:
    """The precision of values that the model converts inside, as norms do that compute in float32."""
    cast = [node for node in graph.functions(["to"]) if not node.keeps_grid]
    if not cast:
        return torch.float64
    halves = any(each in (torch.float16, torch.bfloat16) for node in cast for each in node.arguments[0])
    return torch.bfloat16 if halves or any(node.function in _HALVES for node in cast) else torch.float32


_HALVES = (Tensor.half, Tensor.bfloat16)


def _no_stream(reasons: list[str]) -> str:
    found = list(dict.fromkeys(reasons))
    why = f"Of the sums in it, {'; '.join(found[:3])}." if found else "No sum joins what linear layers write."
    return (
        f"rotate: the model has no residual stream that can be rotated. {why} Write where='layers' to put a transform "
        "before each linear layer instead."
    )
