"""Where in a model a module sits, for messages: found only when a message is written."""

import sys

import torch
from torch import nn

__all__ = ["path_of"]


def path_of(module: nn.Module) -> str:
    """The path of a module in the outermost model whose forward is running, such as ``features.3.act_quant``.

    A module does not know its parents; the call stack does. Without one, and under ``torch.compile``, which can't trace
    through it, the class name is returned.

    Example:
        >>> path_of(nn.ReLU())
        'ReLU'
    """
    if torch.compiler.is_compiling():
        return type(module).__name__
    outermost, frame = None, sys._getframe(1)
    while frame is not None:
        candidate = frame.f_locals.get("self")
        if isinstance(candidate, nn.Module):
            outermost = candidate if outermost is None or _holds(candidate, module) else outermost
        frame = frame.f_back
    for name, each in outermost.named_modules() if outermost is not None else ():
        if each is module and name:
            return name
    return type(module).__name__


def _holds(model: nn.Module, module: nn.Module) -> bool:
    return any(each is module for each in model.modules())
