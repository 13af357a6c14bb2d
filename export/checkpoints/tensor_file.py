"""Safetensors files written tensor by tensor, so that no second copy of the model is held while it is saved."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ExportError
from ..optional import required

__all__ = ["Described", "described", "writing"]

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Described(NamedTuple):
    """What a file says of a tensor before its numbers.

    Args:
        dtype: its type.
        shape: its shape.

    Example:
        >>> Described(torch.int32, (2, 3)).nbytes
        24
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes its numbers take."""
        return prod(self.shape) * self.dtype.itemsize


def described(tensor: Tensor) -> Described:
    """The type and shape of a tensor.

    Example:
        >>> described(torch.ones(2))
        Described(dtype=torch.float32, shape=(2,))
    """
    return Described(tensor.dtype, tuple(tensor.shape))


@contextmanager
def writing(
    call: str, path: str | os.PathLike[str], tensors: Mapping[str, Described], metadata: Mapping[str, str]
) -> Iterator[Callable[[str, Tensor], None]]:
    """Write a safetensors file whose tensors come one at a time, in any order.

    The file appears under its name when the block ends. If it ends by an exception, the name holds what it held before.

    Args:
        call: the function that the user called, which errors name.
        path: of the file.
        tensors: the type and shape of each tensor, by name.
        metadata: texts for the file's header.

    Yields:
        A function ``put(name, tensor)``.

    Raises:
        ExportError: a type that such files don't hold.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ones.safetensors")
        ...     with writing("example", path, {"one": Described(torch.float32, (2,))}, {}) as put:
        ...         put("one", torch.ones(2))
        ...     load_file(path)
        {'one': tensor([1., 1.])}
    """
    required("numpy", call)
    for name, each in tensors.items():
        if each.dtype not in DTYPES:
            raise ExportError(f"{call}: {name} is of type {each.dtype}, which safetensors files don't hold.")
    header, starts = _laid_out(tensors, metadata)
    partial = Path(f"{os.fspath(path)}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(header)

            def put(name: str, tensor: Tensor) -> None:
                if described(tensor) != tensors[name]:
                    raise ExportError(f"{call}: {name} changed while it was written.")
                file.seek(len(header) + starts.pop(name))
                plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                file.write(plain.numpy().data)

            yield put
        if starts:
            raise ExportError(f"{call}: {next(iter(starts))} was not written.")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _laid_out(tensors: Mapping[str, Described], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header, with its length before it, and where each tensor starts behind it: wide types first, aligned."""
    starts, end = {}, 0
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, each in sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        starts[name] = end
        entries[name] = {
            "dtype": DTYPES[each.dtype],
            "shape": list(each.shape),
            "data_offsets": [end, end + each.nbytes],
        }
        end += each.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts
