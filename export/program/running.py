"""Running a program, and reading what its quantizers found on the way."""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ...qcore.models import shown
from ..errors import ExportError
from ..paths import require_file
from .operators import operators

__all__ = ["ProgramRun", "loaded_program"]

_ROLES = ("codes_", "values_", "levels_", "scale_", "zero_point_")


def loaded_program(call: str, program: ExportedProgram | str | os.PathLike[str]) -> ExportedProgram:
    """A program, or that of a file.

    Raises:
        ExportError: it is neither.
    """
    operators()  # a file that has them can be read only then
    if isinstance(program, ExportedProgram):
        return program
    if isinstance(program, str | os.PathLike):
        path = require_file(call, program)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")
            return torch.export.load(path)
    raise ExportError(
        f"{call}: program={shown(program)} is not an exported program. Pass what export_program returned, or the path "
        "of a .pt2 file."
    )


class ProgramRun:
    """A program that tells the tensors of its quantizers when it runs.

    Args:
        program: the program.

    Attributes:
        names: of the tensors that it tells.
        sizes: of the first dimension of each input, None where it is open.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.found: dict[str, Tensor] = {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch\.")
            self.module: Any = program.module()
        nodes = [each for each in self.module.graph.nodes if each.name.startswith(_ROLES)]
        nodes = [each for each in nodes if each.op == "call_function"]
        self.names = {each.name for each in nodes}
        in_place = any(_in_place(each.target) for each in self.module.graph.nodes)
        for node in nodes:
            with self.module.graph.inserting_after(node):
                self.module.graph.call_function(_keeping(self.found, node.name, in_place), (node,))
        self.module.recompile()
        self.sizes = _first_sizes(program)

    def __call__(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> tuple[object, dict[str, Tensor]]:
        """What the program returns, and what its quantizers found, by name."""
        self.found.clear()
        output = self.module(*args, **kwargs)
        return output, dict(self.found)


def _in_place(target: object) -> bool:
    """Whether an operator writes to its input, as ``out += identity`` does."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _keeping(found: dict[str, Tensor], name: str, in_place: bool) -> Callable[[Tensor], None]:
    def keep(x: Tensor) -> None:
        found[name] = x.clone() if in_place else x  # what follows may write to it

    keep.__name__ = keep.__qualname__ = f"keep_{name}"
    return keep


def _first_sizes(program: ExportedProgram) -> list[int | None]:
    inputs = {each.arg.name for each in program.graph_signature.input_specs if each.kind is InputKind.USER_INPUT}
    found: list[int | None] = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in inputs and isinstance(value, Tensor):
            size = value.shape[0] if value.ndim else 0
            found.append(size if isinstance(size, int) else None)
    return found
