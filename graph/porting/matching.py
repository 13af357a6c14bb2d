"""Which tensors of a file go where in a model: parameters and buffers by name; and what is said of those that don't."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .normed import named_otherwise
from .problems import in_words

__all__ = ["Matched", "matched", "suggestion"]

_OPTIONAL = "num_batches_tracked"  # early versions of torch saved none


class Matched:
    """The tensors of a file by the names that the model has for them, and what doesn't fit."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.problems: list[str] = []


def matched(model: nn.Module, own: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> Matched:
    """Find the tensor of a file for each of the model's.

    Args:
        model: whose modules are named in messages.
        own: the model's tensors by name.
        file: the file's.

    Example:
        >>> import torch
        >>> fc = nn.Linear(2, 1)
        >>> found = matched(nn.Sequential(fc), {"0.weight": fc.weight}, {"0.weight": torch.ones(1, 3)})
        >>> found.problems
        ['0.weight: the file has the shape (1, 3), and the model (1, 2).']
    """
    done, missing = Matched(), []
    used: set[str] = set()
    for key, held in own.items():
        found = (file[key], (key,)) if key in file else named_otherwise(key, file)
        if found is None:
            if key.endswith(_OPTIONAL):
                done.state[key] = held
            else:
                missing.append(key)
            continue
        tensor, sources = found
        used |= {*sources}
        done.state[key] = tensor
        if not is_lazy(held) and tensor.shape != held.shape:
            shapes = f"the file has the shape {tuple(tensor.shape)}, and the model {tuple(held.shape)}"
            done.problems.append(f"{key}: {shapes}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    unused = [key for key in file if key not in used]
    in_file = {key.rpartition(".")[0] for key in unused}
    for path, names in _by_module(missing).items():
        done.problems.append(_missing(path, names, in_file))
    for path, names in _by_module(unused).items():
        done.problems.append(_unused(path, names, modules))
    return done


def suggestion(path: str, known: Iterable[str]) -> str:
    """The nearest of some names, as a sentence; nothing where none is near.

    Example:
        >>> suggestion("features.0.bn", ["features.1.bn", "head"])
        ' Did you mean features.1.bn?'
        >>> suggestion("bn", ["head"])
        ''
    """
    near = get_close_matches(path, [each for each in known if each], n=1, cutoff=0.75)
    return f" Did you mean {near[0]}?" if near else ""


def _by_module(keys: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key in keys:
        path, _, name = key.rpartition(".")
        groups.setdefault(path, []).append(name)
    return groups


def _missing(path: str, names: list[str], in_file: Collection[str]) -> str:
    said = f"{path or 'the model'}: the file has nothing for {in_words(names)}."
    if "running_mean" in names:
        return f"{said} If it is merged into the layer before it, leave it out here and write bias=True there."
    if names == ["bias"]:
        return f"{said} Write bias=False."
    return said + suggestion(path, in_file)


def _unused(path: str, names: list[str], modules: Mapping[str, nn.Module]) -> str:
    said = f"{path or 'the file'}: the file has {in_words(names)}, and "
    module = modules.get(path)
    if module is None:
        merged = " Put the batch norm there, as in the file." if "running_mean" in names else ""
        return f"{said}the model has no such module.{merged}{suggestion(path, modules)}"
    remedy = " Write bias=True." if names == ["bias"] else ""
    return f"{said}{type(module).__name__} has nothing of that name.{remedy}"
