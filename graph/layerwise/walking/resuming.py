"""A file that holds what was chosen so far, so that a walk that ended early goes on where it was."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils import _pytree

from ....qcore import Grid
from ....qcore.scaling.pooling import distributed
from ...errors import GraphError
from ...passes.reports import Entry
from ...recording.examples import Call
from .choosing import Choice
from .sites import Site

__all__ = ["Checkpoint", "fingerprint"]


class Checkpoint:
    """What was chosen for the weights of a model, in a file.

    Args:
        path: of the file.
        name: of the algorithm.
        sites: the weights.
        settings: what the choice depends on, besides the model and the data; by name.
        of: fingerprints of the model and the data.

    Attributes:
        more: what else is kept: numbers and tensors in dicts and lists.

    Raises:
        GraphError: the file holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        name: str,
        sites: Sequence[Site],
        settings: Mapping[str, object],
        of: Mapping[str, str],
    ) -> None:
        self.path, self.name = Path(path), name
        self.sites = {site.path: site for site in sites}
        self.settings = {key: repr(each) for key, each in settings.items()}
        self.of = dict(of)
        self._found: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        if self.path.exists():
            self._found = self._read()
        elif not self.path.parent.is_dir():
            raise GraphError(f"{name}: checkpoint={str(path)!r} is in no folder that exists. Make it first.")

    def _read(self) -> dict[str, Any]:
        try:
            found: Any = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._refused(f"can't be read ({type(error).__name__})") from None
        if not isinstance(found, dict) or not {"algorithm", "settings", "of", "weights"} <= set(found):
            raise self._refused("holds no walk")
        if found["algorithm"] != self.name:
            raise self._refused(f"is one of {found['algorithm']}")
        for key in sorted({*self.settings, *found["settings"]}):
            before, now = found["settings"].get(key), self.settings.get(key)
            if before != now:
                raise self._refused(f"was made with {key}={before}, and now it is {now}")
        for what, each in self.of.items():
            if found["of"].get(what) != each:
                raise self._refused(f"was made with another {what}")
        self.more = found.get("more", {})
        return found["weights"]

    def _refused(self, why: str) -> GraphError:
        return GraphError(f"{self.name}: checkpoint={str(self.path)!r} {why}. Name another file, or delete this one.")

    def choices(self) -> dict[Site, Choice]:
        """What the file says, for the weights of the model."""
        known = {path: each for path, each in self._found.items() if path in self.sites}
        return {self.sites[path]: self._choice(self.sites[path], each) for path, each in known.items()}

    def _choice(self, site: Site, each: Mapping[str, Any]) -> Choice:
        device = site.parameter.device
        entry = Entry(site.path, each["action"], each["reason"], dict(each["figures"]))
        scale, zero_point, codes, weight = (
            None if each[name] is None else each[name].to(device) for name in ("scale", "zero_point", "codes", "weight")
        )
        grid = None
        if scale is not None:
            own: Grid = site.quant.grid(site.seen())  # type: ignore[operator]
            grid = own.replace(scale=scale, zero_point=zero_point, scale_format=own.scale_format)
        return Choice(site, entry, grid, None, codes, weight, each["stays"], each["as_is"])

    def save(self, choices: Mapping[Site, Choice]) -> None:
        """Write what was chosen; the file is whole at any time. Of several processes, the first writes."""
        if distributed() and dist.get_rank():
            return
        weights: dict[str, Any] = {}
        for site, choice in choices.items():
            codes, grid = choice.codes, choice.grid
            if codes is None and choice.values is not None and grid is not None:
                codes = grid.to_int(choice.values)
            weights[site.path] = {
                "action": choice.entry.action,
                "reason": choice.entry.reason,
                "figures": dict(choice.entry.figures),
                "codes": codes,
                "weight": choice.weight,
                "stays": choice.stays,
                "as_is": choice.as_is,
                "scale": None if grid is None else grid.scale,
                "zero_point": None if grid is None else grid.zero_point,
            }
        beside = self.path.with_name(f"{self.path.name}.part")
        found = {"algorithm": self.name, "settings": self.settings, "of": self.of, "weights": weights}
        torch.save(found | {"more": self.more}, beside)
        os.replace(beside, self.path)


def fingerprint(model: nn.Module | Sequence[Call]) -> str:
    """Tells models, or data of all processes, apart: by the names, shapes and bits of all tensors.

    Example:
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> fingerprint(one) == fingerprint(other), fingerprint(one) == fingerprint(one)
        (False, True)
    """
    if isinstance(model, nn.Module):
        tensors = [*model.named_parameters(), *model.named_buffers()]
    else:
        leaves = _pytree.tree_leaves(list(model))
        tensors = [(str(number), each) for number, each in enumerate(leaves) if isinstance(each, Tensor)]
    found = hashlib.blake2b(digest_size=16)
    for name, each in tensors:
        found.update(f"{name} {tuple(each.shape)} {each.dtype} {_bits(each.detach())}\n".encode())
    own = found.hexdigest()
    if isinstance(model, nn.Module) or not distributed():
        return own
    every = [""] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return " ".join(every)


def _bits(tensor: Tensor) -> int:
    """A sum over the bits of a tensor, which knows places."""
    if not tensor.numel():
        return 0
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.contiguous().reshape(len(tensor) if tensor.ndim else 1, -1)
    whole = flat.view(kinds.get(tensor.element_size(), torch.uint8))
    sums = (whole.sum(dim, dtype=torch.int64) for dim in (0, 1))
    return sum(int((each * torch.arange(1, len(each) + 1, device=each.device)).sum()) for each in sums)
