"""A model to be run in parts: the graph in memory, its weights on disk, from where the runtime maps them."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...optional import required
from ...paths import require_file
from ..session import loaded

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphOnDisk", "opened"]

SMALL = 1024  # bytes of a tensor that stays in the graph: the runtime reads shapes and the like while it loads
ALIGNED = 64  # bytes


@dataclass(frozen=True)
class GraphOnDisk:
    """A model whose large tensors lie in files.

    Args:
        graph: the model without the data of these tensors.
        folder: where the files are; None if there are none.
    """

    graph: "onnx.ModelProto"
    folder: Path | None = None


@contextmanager
def opened(call: str, program: object) -> Iterator[GraphOnDisk]:
    """An exported model, however a user names it, without a copy of its weights in memory.

    The external data of a file are used where they lie. Of anything else the weights are written to a temporary
    folder, one tensor after the other, and are gone when the block ends.

    Args:
        call: the function that errors name.
        program: what an export returned, the path of a file, or an ``onnx.ModelProto``.

    Raises:
        ExportError: it is none of these.
    """
    onnx = required("onnx", call)
    proto: Any = program
    beside = Path.cwd()
    if isinstance(program, (str, os.PathLike)):
        path = Path(require_file(call, program))
        proto, beside = _parsed(onnx, path), path.resolve().parent
    with tempfile.TemporaryDirectory(prefix="bitwright-", ignore_cleanup_errors=True) as made:
        folder = Path(made)
        if hasattr(type(proto), "model_proto"):  # asked of the program itself, it would serialize all weights
            proto.save(folder / "model.onnx", external_data=True)
            found = GraphOnDisk(onnx.load(folder / "model.onnx", load_external_data=False), folder)
        elif any(map(onnx.external_data_helper.uses_external_data, loaded(call, proto).graph.initializer)):
            found = GraphOnDisk(proto, beside)
        else:
            found = _spilled(onnx, proto, folder)
        del proto  # of a path: the weights are in the folder now
        yield found


def _parsed(onnx: Any, path: Path) -> "onnx.ModelProto":
    """The model in a file, external data apart, without the bytes of the file in memory beside it."""
    if path.suffix != ".onnx" or not path.stat().st_size:
        return onnx.load(path, load_external_data=False)
    model = onnx.ModelProto()
    with open(path, "rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as mapped, memoryview(mapped) as view:
        model.ParseFromString(view)
    return model


def _spilled(onnx: Any, model: "onnx.ModelProto", folder: Path) -> GraphOnDisk:
    """A copy of a model whose large tensors lie in a file."""
    graph, types = model.graph, onnx.TensorProto
    copy = onnx.GraphProto(
        name=graph.name,
        node=graph.node,
        input=graph.input,
        output=graph.output,
        value_info=graph.value_info,
        sparse_initializer=graph.sparse_initializer,
        quantization_annotation=graph.quantization_annotation,
    )
    with open(folder / _WEIGHTS, "wb") as file:
        for each in graph.initializer:
            if len(each.raw_data) < SMALL:
                copy.initializer.append(each)
                continue
            file.write(bytes(-file.tell() % ALIGNED))
            place = {"location": _WEIGHTS, "offset": file.tell(), "length": file.write(each.raw_data)}
            entries = [onnx.StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()]
            copy.initializer.append(
                types(
                    name=each.name,
                    dims=each.dims,
                    data_type=each.data_type,
                    data_location=types.EXTERNAL,
                    external_data=entries,
                )
            )
    kept = onnx.ModelProto(
        ir_version=model.ir_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
        graph=copy,
    )
    return GraphOnDisk(kept, folder)


_WEIGHTS = "weights"
