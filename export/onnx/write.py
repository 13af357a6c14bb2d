"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...qcore.aliases import Keywords

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

__all__ = ["fits_one_file", "write"]

LARGEST_FILE = 2**31 - 2**24  # protobuf's limit, less room for the graph


def write(program: "torch.onnx.ONNXProgram", path: str | os.PathLike[str], options: Keywords) -> None:
    """Save a program under a name; a file of that name is replaced, with its data file, when all went well.

    If one of them can't be replaced, what was there before is back.

    Args:
        program: a `torch.onnx.ONNXProgram`.
        path: the ``.onnx`` file. With ``external_data`` its weights lie beside it, in ``<name>.data``.
        options: ``external_data`` (by default only where one file can't hold the weights), ``export_params``,
            ``keep_initializers_as_inputs``: as for `torch.onnx.export`.
    """
    target = Path(path)
    external = options.get("external_data")
    if external is None:
        external = not fits_one_file(program.model)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".export", dir=target.parent) as folder:
        program.save(
            Path(folder) / target.name,
            include_initializers=options.get("export_params", True),
            keep_initializers_as_inputs=options.get("keep_initializers_as_inputs", False),
            external_data=external,
        )
        made = sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name)  # the model last
        _replace({each: target.parent / each.name for each in made}, Path(folder))


def _replace(files: Mapping[Path, Path], folder: Path) -> None:
    """Move files to where others may be, the last in one step; all of them, or none."""
    *others, last = files
    moved: list[Path] = []
    former: dict[Path, Path] = {}
    try:
        for made in others:
            place = files[made]
            if place.exists():
                former[place] = folder / f"{place.name}.former"
                os.replace(place, former[place])
            os.replace(made, place)
            moved.append(place)
        os.replace(last, files[last])
    except OSError:
        for place in moved:
            place.unlink()
        for place, kept in former.items():
            os.replace(kept, place)
        raise


def fits_one_file(model: "ir.Model") -> bool:
    """Whether the weights of an ``onnx_ir.Model`` fit into the file of the graph."""
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None) < LARGEST_FILE
