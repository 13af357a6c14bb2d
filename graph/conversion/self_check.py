"""Whether a converted model with its quantizers off computes what the float model did, and calls what was converted."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from ...nn import quantizers_of, unquantized
from ..errors import GraphError
from ..recording.examples import Call, calls_of
from ..recording.nodes import Graph
from ..recording.preserving import evaluating
from ..recording.tensors import tensors_in

__all__ = ["Outputs", "check_called", "check_equal", "check_read", "outputs_of"]

Outputs = list[tuple[str, str]]  # the path of a module, and a digest of what it returned, in order of the calls


def outputs_of(model: nn.Module, examples: object) -> Outputs:
    """Digests of what every module of a model returns, each followed by those of the modules that hold it.

    Example:
        >>> model = nn.Sequential(nn.ReLU(), nn.Identity())
        >>> found = outputs_of(model, torch.ones(2))
        >>> [path for path, _ in found], len({digest for _, digest in found})
        (['0', '1', ''], 1)
    """
    parts = {id(part) for quant in quantizers_of(model).values() for part in quant.modules()}
    paths = {id(module): path for path, module in model.named_modules() if id(module) not in parts}
    found: Outputs = []

    def note(module: nn.Module, args: object, out: object) -> None:
        if id(module) in paths:
            found.append((paths[id(module)], _digest(out)))

    calls = calls_of(examples)
    with evaluating(model, tensors_in(calls)):
        _run(model, calls, register_module_forward_hook(note))
    return found


def _run(model: nn.Module, calls: Iterable[Call], hook: RemovableHandle) -> None:
    """Call a model, each time from the same random numbers; the hook that watches it goes afterwards."""
    try:
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
        after = outputs_of(model, examples)
    known = {path for path, _ in before}
    after = [(new.get(path, path), digest) for path, digest in after]
    after = [each for each in after if each[0] in known]
    if before == after:
        return
    pairs = zip(before, after, strict=False)
    path, _ = next((one for one, other in pairs if one != other), before[-1] if before else ("", ""))
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
