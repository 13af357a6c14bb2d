"""What is in a checkpoint file: the tensors by name, out of whatever wraps them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .problems import CheckpointError

__all__ = ["Checkpoint", "tensors_of"]

Checkpoint = Mapping[str, Any] | str | os.PathLike[str]  # a state dict, or where one is

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_REPLICATED = "module."  # what DataParallel and DistributedDataParallel put before every name


def tensors_of(
    call: str, checkpoint: Mapping[str, Any] | str | os.PathLike[str], model: nn.Module
) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the file that holds one, with the names they have in the model.

    A state dict may be wrapped, as training scripts do: ``{"state_dict": ..., "epoch": 3}``. A prefix ``module.`` of
    every name, from DistributedDataParallel, is dropped where the model has none.

    Raises:
        CheckpointError: something else than tensors by name.

    Example:
        >>> file = {"state_dict": {"module.weight": torch.ones(1), "module.bias": torch.ones(1)}, "epoch": 3}
        >>> list(tensors_of("load_brevitas", file, nn.Linear(1, 1)))
        ['weight', 'bias']
    """
    held: Any = checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        held = torch.load(Path(checkpoint), map_location="cpu", weights_only=True)
    for wrapper in _WRAPPERS:
        inside = held.get(wrapper) if isinstance(held, Mapping) else None
        if isinstance(inside, Mapping):
            held = inside
            break
    named = isinstance(held, Mapping) and all(isinstance(key, str) for key in held)
    wrong = [key for key, item in held.items() if not isinstance(item, Tensor)] if named else []
    if not named or wrong:
        found = f"{wrong[0]!r} holds a {type(held[wrong[0]]).__name__}" if wrong else f"found a {type(held).__name__}"
        raise CheckpointError(
            call,
            [f"the checkpoint: {found}. Pass a state dict, which has a tensor for each name: model.state_dict()."],
        )
    if held and all(key.startswith(_REPLICATED) for key in held) and not hasattr(model, "module"):
        held = {key.removeprefix(_REPLICATED): item for key, item in held.items()}
    return dict(held)
