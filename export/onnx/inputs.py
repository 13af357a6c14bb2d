"""What a file takes: refused are tensors of another type or shape, before onnxruntime fails."""

from typing import Any

import torch
from torch import Tensor

from ..errors import ExportError

__all__ = ["require_input"]

_TYPES = {
    torch.float32: "tensor(float)",
    torch.float64: "tensor(double)",
    torch.float16: "tensor(float16)",
    torch.bfloat16: "tensor(bfloat16)",
    torch.bool: "tensor(bool)",
    **{getattr(torch, each): f"tensor({each})" for each in ("uint8", "int8", "int16", "int32", "int64")},
}
_OF_TORCH = {name: str(dtype).removeprefix("torch.") for dtype, name in _TYPES.items()}


def require_input(
    call: str, taken: Any, tensor: Tensor, given: str = "what was given", *, any_count: bool = False
) -> None:
    """Refuse another type or shape than the file's.

    Args:
        call: the function that the user called, which errors name.
        taken: the input, as an ``onnxruntime.InferenceSession`` describes it.
        tensor: what it is given.
        given: what messages call that.
        any_count: whether the first dimension may differ, as the number of samples is made to fit.

    Raises:
        ExportError: it doesn't fit.
    """
    free = int(any_count)
    sizes = zip(taken.shape[free:], tensor.shape[free:], strict=False)
    fits = len(taken.shape) == tensor.ndim and all(asked == size or not isinstance(asked, int) for asked, size in sizes)
    known = taken.type in _OF_TORCH
    if (taken.shape and not fits) or (known and taken.type != _TYPES.get(tensor.dtype)):
        dims = ", ".join("any" if each is None else str(each) for each in taken.shape)
        found = f"{str(tensor.dtype).removeprefix('torch.')} ({', '.join(map(str, tensor.shape))})"
        raise ExportError(
            f"{call}: the file takes {taken.name} as {_OF_TORCH.get(taken.type, taken.type)} ({dims}), and "
            f"{given} has {found}."
        )
