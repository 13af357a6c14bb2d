"""A file that holds what was chosen so far, so that a walk that ended early goes on where it was."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ....qcore import Grid, TensorQuant
from ...errors import GraphError
from ...passes.reports import Entry
from .choosing import Choice
from .sites import Site

__all__ = ["Checkpoint"]


class Checkpoint:
    """What was chosen for the weights of a model, in a file.

    Args:
        path: of the file.
        name: of the algorithm.
        sites: the weights, by their quantizers.

    Attributes:
        more: what else is kept: numbers and tensors in dicts and lists.

    Raises:
        GraphError: the file holds something else.
    """

    def __init__(self, path: str | Path, name: str, sites: Mapping[TensorQuant, Site]) -> None:
        self.path, self.name = Path(path), name
        self.sites = {site.path: site for site in sites.values()}
        self._found: dict[str, Any] = {}
        self.more: dict[str, Any] = {}
        if self.path.exists():
            self._found = self._read()

    def _read(self) -> dict[str, Any]:
        try:
            found: Any = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise GraphError(f"{self.name}: checkpoint={str(self.path)!r} can't be read: {error}") from None
        if not isinstance(found, dict) or found.get("algorithm") != self.name:
            of = found.get("algorithm") if isinstance(found, dict) else type(found).__name__
            raise GraphError(
                f"{self.name}: checkpoint={str(self.path)!r} is one of {of}. Name another file, or delete this one."
            )
        for path, each in found["weights"].items():
            site = self.sites.get(path)
            shape = None if site is None else tuple(site.seen().shape)
            if shape is None or (each["shape"] is not None and tuple(each["shape"]) != shape):
                raise GraphError(
                    f"{self.name}: checkpoint={str(self.path)!r} has a weight {path} that this model lacks. Name "
                    "another file, or delete this one."
                )
        self.more = found.get("more", {})
        return found["weights"]

    def choices(self) -> dict[Site, Choice]:
        """What the file says, for the sites of the model."""
        return {self.sites[path]: self._choice(self.sites[path], each) for path, each in self._found.items()}

    def _choice(self, site: Site, each: Mapping[str, Any]) -> Choice:
        device = site.parameter.device
        entry = Entry(site.path, each["action"], each["reason"], dict(each["figures"]))
        grid = values = codes = None
        if each["scale"] is not None:
            own: Grid = site.quant.grid(site.seen())  # type: ignore[operator]
            zero_point = each["zero_point"]
            grid = own.replace(
                scale=each["scale"].to(device),
                zero_point=None if zero_point is None else zero_point.to(device),
                scale_format=own.scale_format,
            )
        if each["codes"] is not None:
            codes = each["codes"].to(device)
        if each["values"] is not None:
            values = each["values"].to(device)
        return Choice(site, entry, grid, each["rounded"], values, codes)

    def save(self, choices: Mapping[Site, Choice]) -> None:
        """Write what was chosen; the file is whole at any time."""
        weights: dict[str, Any] = {}
        for site, choice in choices.items():
            codes = choice.codes
            if codes is None and choice.values is not None and choice.grid is not None and choice.rounded:
                codes = choice.grid.to_int(choice.values)
            weights[site.path] = {
                "action": choice.entry.action,
                "reason": choice.entry.reason,
                "figures": dict(choice.entry.figures),
                "shape": None if choice.chosen is None else list(site.seen().shape),
                "rounded": choice.rounded,
                "codes": codes,
                "values": choice.values if codes is None else None,
                "scale": None if choice.grid is None else choice.grid.scale,
                "zero_point": None if choice.grid is None else choice.grid.zero_point,
            }
        beside = self.path.with_name(f"{self.path.name}.part")
        torch.save({"algorithm": self.name, "weights": weights, "more": self.more}, beside)
        os.replace(beside, self.path)
