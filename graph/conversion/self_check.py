"""Whether a converted model with its quantizers off computes what the float model did, and calls what was converted."""

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree
from torch.utils.hooks import RemovableHandle

from ...nn import quantizers_of, unquantized
from ...qcore.errors import UncalibratedWarning
from ..errors import GraphError
from ..layers.layers import rounds_otherwise
from ..recording.examples import Call, calls_of
from ..recording.nodes import Graph
from ..recording.preserving import evaluating
from ..recording.tensors import tensors_in

__all__ = ["Outputs", "check_called", "check_equal", "check_read", "outputs_of"]


@dataclass
class Outputs:
    """What the modules of a model returned.

    Attributes:
        digests: the path of a module, and a digest of what it returned, in order of the calls.
        kept: by path, what layers returned that round otherwise once they are quantized: recurrent ones, attention.
    """

    digests: list[tuple[str, str]] = field(default_factory=list)
    kept: dict[str, list[Any]] = field(default_factory=dict)


def outputs_of(model: nn.Module, examples: object, instead: Outputs | None = None) -> Outputs:
    """Digests of what every module of a model returns, each followed by those of the modules that hold it.

    Args:
        model: any module.
        examples: what to call it with.
        instead: what it returned before. Where a layer that rounds otherwise gives the same but for the last bits, the
            model goes on with that, so that all other layers are comparable to the bit.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Identity())
        >>> found = outputs_of(model, torch.ones(2)).digests
        >>> [path for path, _ in found], len({digest for _, digest in found})
        (['0', '1', ''], 1)
    """
    parts = {id(part) for quant in quantizers_of(model).values() for part in quant.modules()}
    modules = {path: module for path, module in model.named_modules() if id(module) not in parts}
    paths = {id(module): path for path, module in modules.items()}
    keep = {path for path, module in modules.items() if rounds_otherwise(module)}
    found = Outputs()

    def note(module: nn.Module, args: object, out: Any) -> Any:
        path = paths.get(id(module))
        if path is None:
            return None
        former = None
        if path in keep:
            outs = found.kept.setdefault(path, [])
            former = _former(instead, path, len(outs), out)
            outs.append(_pytree.tree_map(_detached, out) if instead is None else None)
        found.digests.append((path, _digest(out if former is None else former)))
        return former

    calls = calls_of(examples)
    with evaluating(model, tensors_in(calls)):
        _run(model, calls, register_module_forward_hook(note))
    return found


def _run(model: nn.Module, calls: Iterable[Call], hook: RemovableHandle) -> None:
    """Call a model, each time from the same random numbers; the hook that watches it goes afterwards."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)  # nothing is yet
            for args, kwargs in calls:
                torch.manual_seed(0)
                model(*args, **kwargs)
    finally:
        hook.remove()


def check_equal(
    before: Outputs, model: nn.Module, examples: object, new: Mapping[str, str], assigned: Sequence[str] = ()
) -> None:
    """Compare a converted model whose quantizers are off with the float model, to the bit.

    Args:
        before: of the float model.
        model: the converted one.
        examples: the same as for the float model.
        new: the paths of layers that the float model did not have, with those of the layers whose work they do.
        assigned: the paths of functions that were written ``a += b``.

    Raises:
        GraphError: they differ; it names the first layer that does.

    Example:
        >>> model = nn.Sequential(nn.ReLU())
        >>> check_equal(outputs_of(model, torch.ones(2)), model, torch.ones(2), {})
    """
    with unquantized(model):
        after = outputs_of(model, examples, before).digests
    wanted = before.digests
    known = {path for path, _ in wanted}
    after = [(new.get(path, path), digest) for path, digest in after]
    after = [each for each in after if each[0] in known]
    if wanted == after:
        return
    pairs = zip(wanted, after, strict=False)
    path, _ = next((one for one, other in pairs if one != other), wanted[-1] if wanted else ("", ""))
    kind = type(model.get_submodule(path)).__name__
    differs = (
        f"quantize: with all quantizers off, {path or 'the model'} ({kind}) does not return what it did in the float "
        "model, on the same input."
    )
    if assigned:
        raise GraphError(
            f"{differs} {', '.join(assigned)}: a += b became a = self.{assigned[0].rpartition('.')[2]}(a, b), which "
            f'other names of the same tensor don\'t see. Write a = a + b there, or "{assigned[0]}": None.'
        )
    raise GraphError(
        f"{differs} If its results are random, or depend on earlier calls, leave examples out; "
        f'otherwise write "{path}": None to leave it float.'
    )


def check_called(model: nn.Module, converted: Iterable[str], examples: object) -> None:
    """Run a converted model as users will, and see that every converted layer is called.

    Args:
        model: the converted model.
        converted: the paths of converted layers that were called in the float model.
        examples: what to call it with.

    Raises:
        GraphError: one of the layers is not called: something reads its weight instead.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> check_called(model, ["0"], torch.ones(1, 2))
    """
    paths = {id(module): path for path, module in model.named_modules()}
    seen: set[str] = set()

    def note(module: nn.Module, args: object) -> None:
        seen.add(paths.get(id(module), ""))

    calls = calls_of(examples)
    with evaluating(model, tensors_in(calls)), unquantized(model):
        torch.backends.mha.set_fastpath_enabled(True)
        _run(model, calls, register_module_forward_pre_hook(note))
    for path in converted:
        if path not in seen:
            holder = _holder(model, path)
            raise GraphError(
                f"quantize: {path} was converted, and evaluation never calls it: {holder} reads its weight. Convert "
                f'the layer as a whole, or write "{path}": None to leave it float.'
            )


def check_read(graph: Graph, converted: Iterable[str]) -> None:
    """See that no function reads the weight of a layer that is never called.

    Raises:
        GraphError: one does, past the quantizers that the layer would have.

    Example:
        >>> check_read(Graph([]), ["0"])
    """
    for path in converted:
        if graph.calls(path):
            continue
        first = graph.aliases.get(path, path)
        for node in graph.functions():
            if any(each.rpartition(".")[0] == first for each in node.parameters):
                where = f" at {node.place}" if node.place is not None else ""
                raise GraphError(
                    f"quantize: {path} is never called: {node.kind}{where} reads its weight, past the quantizers that "
                    f'it would have. Call the layer there, or write "{path}": None to leave it float.'
                )


def _holder(model: nn.Module, path: str) -> str:
    """The layer of torch that holds another, if one does."""
    parts = path.split(".")
    for end in range(len(parts) - 1, -1, -1):
        module = model.get_submodule(".".join(parts[:end]))
        if type(module).__module__.startswith("torch.nn.") and not isinstance(
            module, nn.Sequential | nn.ModuleList | nn.ModuleDict
        ):
            return f"torch's fused {type(module).__name__}"
    return "the code around it"


def _detached(item: Any) -> Any:
    return item.detach().clone() if isinstance(item, torch.Tensor) else item


def _former(instead: Outputs | None, path: str, call: int, out: Any) -> Any:
    """What a layer returned before in the same call, if that is the same up to rounding."""
    kept = [] if instead is None else instead.kept.get(path, [])[call : call + 1]
    if not kept:
        return None
    ones, others = tensors_in(out), tensors_in(kept[0])
    alike = len(ones) == len(others) and all(_is_close(*pair) for pair in zip(ones, others, strict=True))
    return kept[0] if alike else None


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.numel():
        return torch.equal(one, other)
    finite = other.isfinite()
    largest = other[finite].abs().max() if bool(finite.any()) else other.new_zeros(())
    bound = min(1000 * torch.finfo(other.dtype).eps, 0.05) * float(largest)
    return bool(torch.equal(finite, one.isfinite()) and ((one - other)[finite].abs() <= bound).all())


def _digest(out: Any) -> str:
    """A digest of all tensors in a result, in which 0.0 and -0.0 are alike."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors_in(out):
        plain = tensor.detach()
        plain = plain.to_padded_tensor(0.0) if plain.is_nested else plain
        plain = (plain + 0 if plain.is_floating_point() else plain).contiguous().cpu()
        digest.update(str((plain.dtype, tuple(plain.shape))).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
