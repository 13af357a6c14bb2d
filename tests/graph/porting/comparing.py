"""A ported model beside the codes that Brevitas gave: quantizer by quantizer, each from the same inputs.

    python -m tests.graph.porting.comparing FOLDER    # a table of files that make_golden.py wrote

What goes on from a quantizer are Brevitas' codes, so that one that differs is counted once.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bitwright.graph.passes.reports import Report
from bitwright.graph.porting import load_brevitas
from bitwright.graph.porting.names import renamed
from bitwright.nn import intercepted, quantizers_of
from bitwright.qcore import Grid, QuantTensor, TensorQuant
from tests.graph.porting.packed import load
from tests.graph.porting.seeded import completed

GOLDEN = Path(__file__).parent / "golden"


@dataclass
class Comparison:
    """How many codes were compared, and which differ: at a tie (design, section 5), or otherwise."""

    codes: int = 0
    ties: int = 0
    different: dict[str, int] = field(default_factory=dict)
    scales: float = 0.0  # the largest relative difference of a scale
    compared: set[str] = field(default_factory=set)
    beyond: set[str] = field(default_factory=set)  # quantizers that do more here than there: only the output tells
    output: float = 0.0  # the largest difference of the output


class Golden:
    """A file that make_golden.py wrote."""

    def __init__(self, path: Path) -> None:
        self.arrays, facts = load(path)
        self.seeded: dict[str, tuple[int, ...]] = {name: tuple(shape) for name, shape in facts["seeded"].items()}
        self.spread: float | None = facts["spread"]
        self.digests: dict[str, str] = facts["digests"]

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict that Brevitas saved."""
        kept = {name.removeprefix("state/"): each for name, each in self.arrays.items() if name.startswith("state/")}
        shapes = {name: each.shape for name, each in kept.items()} | self.seeded
        return {name: torch.from_numpy(each) for name, each in completed(shapes, kept, self.spread).items()}

    def rename(self, model: nn.Module) -> None:
        """Let quantizers have the names that a ported model has for them."""
        for kind in ("codes", "scale"):
            names = [name.removeprefix(f"{kind}/") for name in self.arrays if name.startswith(f"{kind}/")]
            own = renamed({name.replace("/", "."): torch.empty(0) for name in names}, model)
            for name, other in zip(names, own, strict=True):
                changed = "/".join(other.rsplit(".", 1)) if kind == "codes" else other
                self.arrays[f"{kind}/{changed}"] = self.arrays.pop(f"{kind}/{name}")
        self.digests = {
            other: self.digests[name]
            for name, other in zip(
                self.digests, renamed(dict.fromkeys(self.digests, torch.empty(0)), model), strict=True
            )
        }

    @property
    def places(self) -> set[str]:
        """The quantizers that have codes."""
        return {name.split("/")[1] for name in self.arrays if name.startswith("codes/")} | {*self.digests}

    def codes(self, place: str, call: int) -> np.ndarray | None:
        """The codes that a quantizer gave when it was called for the n-th time."""
        return self.arrays.get(f"codes/{place}/{call}")


def compared(model: nn.Module, path: Path) -> tuple[Comparison, Report]:
    """Load the state of a golden file into a ported model, and compare its codes in evaluation."""
    golden = Golden(path)
    golden.rename(model)
    report = load_brevitas(model, golden.state)
    done = Comparison()

    def beside(place: str) -> Callable[..., tuple[Tensor, Grid | None]]:
        calls = 0

        def intercept(quant: TensorQuant, x: Tensor, *context: Any) -> tuple[Tensor, Grid | None]:
            nonlocal calls
            values, grid = quant._quantize(x, *context)
            theirs = golden.codes(place, calls)
            assert grid is not None
            own = torch.round(values.double() / grid.along(grid.scale, values.shape).double())
            if grid.zero_point is not None:
                own += grid.along(grid.zero_point, values.shape)
            calls += 1
            if theirs is None and place not in golden.digests:
                done.beyond.add(place)
                return values, grid
            done.compared.add(place)
            done.codes += own.numel()
            if place in golden.digests:
                digest = hashlib.sha256(own.to(torch.int32).numpy().tobytes()).hexdigest()
                if digest != golden.digests[place]:
                    done.different[place] = own.numel()
                return values, grid
            assert theirs is not None
            wanted = torch.from_numpy(theirs.astype(np.float64))
            wanted = (wanted.mT if place.endswith("key_quant") else wanted).reshape(
                own.shape
            )  # Brevitas' is transposed
            _count(done, place, x, own, wanted, grid)
            _scales(done, grid, golden.arrays[f"scale/{place}"], x)
            return grid.from_int(wanted.to(values.dtype)), grid

        return intercept

    for name, layer in model.named_modules():
        if f"{name}.trunc_quant" in golden.places:
            layer.register_forward_hook(_pooled(done, golden, f"{name}.trunc_quant"))
    model.eval()
    with torch.no_grad(), intercepted(quantizers_of(model), beside):
        out = model(torch.from_numpy(golden.arrays["input"]))
    done.output = float((out.as_subclass(Tensor) - torch.from_numpy(golden.arrays["output"])).abs().max())
    assert done.compared == golden.places, done.compared ^ golden.places
    return done, report


def _pooled(done: Comparison, golden: Golden, place: str) -> Callable[..., Tensor]:
    """What compares the integers of a pooling layer, which are no quantizer's."""

    def hook(layer: nn.Module, inputs: object, out: QuantTensor) -> Tensor:
        theirs = golden.codes(place, 0)
        assert theirs is not None
        wanted = torch.from_numpy(theirs.astype(np.float64))
        done.compared.add(place)
        done.codes += wanted.numel()
        off = int((out.int() != wanted).sum())
        if off:
            done.different[place] = off
        _scales(done, out.grid, golden.arrays[f"scale/{place}"], out)
        return QuantTensor.wrap(out.grid.from_int(wanted.float()), out.grid)

    return hook


def _count(done: Comparison, place: str, x: Tensor, own: Tensor, wanted: Tensor, grid: Grid) -> None:
    """Add the codes that differ: those within a thousandth of a step of the boundary are ties."""
    off = own != wanted
    if not off.any():
        return
    before = x.as_subclass(Tensor).double() / grid.along(grid.scale, x.shape).double()
    if grid.zero_point is not None:
        before = before + grid.along(grid.zero_point, x.shape)
    low, high = grid.bounds
    near = (before - (own + wanted) / 2).abs() <= max(1e-3, 2.0**-20 * (high - low))
    ties = off & near & ((own - wanted).abs() == 1)
    done.ties += int(ties.sum())
    if int(off.sum()) > int(ties.sum()):
        done.different[place] = done.different.get(place, 0) + int(off.sum()) - int(ties.sum())


def _scales(done: Comparison, grid: Grid, theirs: np.ndarray, x: Tensor) -> None:
    wanted = torch.from_numpy(theirs).reshape(-1).double()
    each = wanted.numel() == x.numel()  # of groups, Brevitas repeats the scale for each value
    own = (grid.along(grid.scale, x.shape).expand(x.shape) if each else grid.scale).reshape(-1).double()
    done.scales = max(done.scales, float(((own - wanted) / wanted).abs().max()))


def main() -> None:
    """Print a line for each file."""
    from tests.graph.porting.models import PORTED

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with files that `make_golden --full` wrote")
    folder = parser.parse_args().folder
    for name, build in PORTED.items():
        if (folder / f"{name}.npz").exists():
            found, _ = compared(build(full=True), folder / f"{name}.npz")
            quantizers, different = len(found.compared), sum(found.different.values())
            print(f"| {name} | {quantizers} | {found.codes:,} | {different} | {found.ties} | {found.scales:.1e} |")


if __name__ == "__main__":
    main()
