"""Kinds of operations: operators, methods, functions and modules that compute the same thing have one name."""

import operator
from collections.abc import Callable, Hashable, Mapping
from types import GetSetDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket

__all__ = ["KINDS", "OPERATORS", "is_homogeneous", "keeps_grid", "kind_of", "name_of"]

Function = Callable[..., Any]


def _named(*names: str, operators: tuple[Function, ...] = ()) -> tuple[Function, ...]:
    """The functions of a name in torch, torch.nn.functional and on tensors, with in-place twins, and operators."""
    found: list[Function] = list(operators)
    dunders = [f"__{start}{each.__name__.removeprefix('i')}__" for each in operators for start in ("", "i", "r")]
    found += [getattr(Tensor, each) for each in dunders if hasattr(Tensor, each)]
    for name in names:
        for home in (torch, F, Tensor):
            for spelling in (name, f"{name}_"):
                function: Any = getattr(home, spelling, None)
                if isinstance(function, GetSetDescriptorType):
                    function = function.__get__  # x.T, x.data
                if callable(function) and not isinstance(function, type):
                    found.append(function)
    return tuple(dict.fromkeys(found))


KINDS: Mapping[str, tuple[Function, ...]] = {
    # two tensors
    "add": _named("add", operators=(operator.add, operator.iadd)),
    "sub": _named("sub", "subtract", "rsub", operators=(operator.sub, operator.isub)),
    "mul": _named("mul", "multiply", operators=(operator.mul, operator.imul)),
    "div": _named("div", "divide", "true_divide", operators=(operator.truediv, operator.itruediv)),
    "cat": _named("cat", "concat", "concatenate"),
    "stack": _named("stack"),
    "matmul": _named("matmul", "bmm", "mm", "einsum", operators=(operator.matmul, operator.imatmul)),
    "linear": _named("linear"),
    "conv": _named("conv1d", "conv2d", "conv3d"),
    "conv_transpose": _named("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    "attention": _named("scaled_dot_product_attention"),
    "embedding": _named("embedding"),
    # activations
    "relu": _named("relu"),
    "relu6": _named("relu6"),
    "leaky_relu": _named("leaky_relu"),
    "prelu": _named("prelu"),
    "elu": _named("elu"),
    "gelu": _named("gelu"),
    "silu": _named("silu"),
    "mish": _named("mish"),
    "hardswish": _named("hardswish"),
    "hardsigmoid": _named("hardsigmoid"),
    "hardtanh": _named("hardtanh"),
    "softplus": _named("softplus"),
    "sigmoid": _named("sigmoid"),
    "tanh": _named("tanh"),
    "softmax": _named("softmax"),
    "log_softmax": _named("log_softmax"),
    # reductions and norms
    "mean": _named("mean"),
    "sum": _named("sum"),
    "avg_pool": _named(
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        "adaptive_avg_pool3d",
    ),
    "max_pool": _named(
        *(
            f"{start}max_pool{rank}d{end}"
            for start in ("", "adaptive_")
            for rank in (1, 2, 3)
            for end in ("", "_with_indices")
        ),
    ),
    "batch_norm": _named("batch_norm"),
    "layer_norm": _named("layer_norm"),
    "group_norm": _named("group_norm"),
    "instance_norm": _named("instance_norm"),
    "rms_norm": _named("rms_norm"),
    "normalize": _named("normalize"),
    # moving values about
    "interpolate": _named("interpolate", "upsample"),
    "pad": _named("pad"),
    "reshape": _named("reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "ravel"),
    "permute": _named(
        *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "T", "mT", "H", "mH"),
    ),
    "squeeze": _named("squeeze"),
    "unsqueeze": _named("unsqueeze"),
    "getitem": (operator.getitem, Tensor.__getitem__),
    "select": _named("select", "narrow", "index_select", "gather", "take_along_dim", "unfold"),
    "chunk": _named("chunk", "tensor_split"),
    "split": _named("split", "split_with_sizes", "unbind"),
    "contiguous": _named("contiguous", "clone", "detach", "data"),
    "to": _named("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
    "expand": _named("expand", "expand_as", "repeat", "tile", "repeat_interleave", "broadcast_to"),
    "flip": _named("flip", "fliplr", "flipud", "roll"),
    "pixel_shuffle": _named("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    "dropout": _named("dropout", "dropout1d", "dropout2d", "dropout3d"),
    "identity": (),
}

OPERATORS: Mapping[str, str] = {"add": "Add", "sub": "Sub", "mul": "Mult", "div": "Div", "matmul": "MatMult"}
"""The operators that are written as signs, by their names in the syntax tree."""

_MODULES: Mapping[type[nn.Module], str] = {
    nn.Linear: "linear",
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), "conv"),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "conv_transpose"),
    nn.Embedding: "embedding",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardtanh: "hardtanh",
    nn.Softplus: "softplus",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.Softmax: "softmax",
    nn.LogSoftmax: "log_softmax",
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), "avg_pool"),
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), "avg_pool"),
    **dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "max_pool"),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d), "max_pool"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), "batch_norm"),
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "instance_norm"),
    nn.RMSNorm: "rms_norm",
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), "interpolate"),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), "pad"),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), "pad"),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), "pad"),
    **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), "pad"),
    nn.Flatten: "reshape",
    nn.Unflatten: "reshape",
    **dict.fromkeys((nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle), "pixel_shuffle"),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "dropout"),
    nn.Identity: "identity",
}

_KIND_OF: Mapping[Hashable, str] = {function: kind for kind, functions in KINDS.items() for function in functions}


def kind_of(function: object) -> str | None:
    """The kind of what a function, an operator, a method of tensors or a module's class computes.

    Args:
        function: such as ``torch.add``, ``operator.add``, ``torch.Tensor.add_``, ``F.relu`` or ``nn.ReLU``. A subclass
            with a forward of its own has no kind.

    Returns:
        The kind, or None where none is known.

    Example:
        >>> kind_of(torch.add), kind_of(operator.iadd), kind_of(Tensor.add_), kind_of(nn.ReLU), kind_of(torch.fft.fft)
        ('add', 'add', 'add', 'relu', None)
    """
    if isinstance(function, type):
        for base in function.__mro__:
            if base in _MODULES and getattr(function, "forward", None) is base.forward:
                return _MODULES[base]
        return None
    if isinstance(function, (OpOverload, OpOverloadPacket)):  # torch.ops.aten.add.Tensor
        name = str(function).split(".")[1] if str(function).startswith("aten.") else ""
        function = getattr(torch, name, getattr(Tensor, name, None))
    return _KIND_OF.get(function) if isinstance(function, Hashable) else None


def name_of(function: object) -> str:
    """The kind of a function; its own name, without underscores, where no kind is known.

    Example:
        >>> name_of(torch.concat), name_of(Tensor.exp_), name_of(Tensor.real.__get__)
        ('cat', 'exp', 'real')
    """
    kind = kind_of(function)
    if kind is not None:
        return kind
    name = str(getattr(function, "__name__", type(function).__name__)).partition(".")[0]
    if name in ("__get__", "__set__"):
        name = getattr(getattr(function, "__self__", None), "__name__", name)
    return name.strip("_") or name


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], position: int, name: str, default: object) -> Any:
    return kwargs.get(name, args[position] if len(args) > position else default)


def _drops_nothing(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    training = _argument(args, kwargs, 2, "training", _argument(args, kwargs, 2, "train", True))
    return not training or _argument(args, kwargs, 1, "p", 0.5) == 0


def _pads_zero(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _argument(args, kwargs, 2, "mode", "constant") != "constant" or not _argument(args, kwargs, 3, "value", None)


def _is_nearest(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _argument(args, kwargs, 3, "mode", "nearest") in ("nearest", "nearest-exact")


def _is_not_bicubic(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return _argument(args, kwargs, 3, "mode", "nearest") != "bicubic"


def _is_spatial(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """A mean over dimensions behind the channels only."""
    dims = _argument(args, kwargs, 1, "dim", None)
    dims = [dims] if isinstance(dims, int) else dims
    rank = args[0].dim() if args and isinstance(args[0], Tensor) else 0
    return bool(dims) and all(dim % rank > 1 for dim in dims) if rank else False


def _always(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return True


_Condition = Callable[[tuple[Any, ...], Mapping[str, Any]], bool]
_KEEPS_GRID: Mapping[str, _Condition] = {
    **dict.fromkeys(("reshape", "permute", "squeeze", "unsqueeze", "getitem", "select", "chunk", "split"), _always),
    **dict.fromkeys(("contiguous", "expand", "flip", "pixel_shuffle", "identity", "max_pool"), _always),
    "dropout": _drops_nothing,
    "pad": _pads_zero,
    "interpolate": _is_nearest,
}
_HOMOGENEOUS: Mapping[str, _Condition] = {
    **dict.fromkeys(("relu", "leaky_relu", "prelu", "max_pool", "avg_pool"), _always),
    **dict.fromkeys(("reshape", "squeeze", "unsqueeze", "contiguous", "identity"), _always),
    "dropout": _drops_nothing,
    "pad": _pads_zero,
    "interpolate": _is_not_bicubic,
    "mean": _is_spatial,
}


def keeps_grid(function: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether every value of the result is one of the input's, or zero: the grid of the input is that of the output.

    Args:
        function: a function, a method of tensors, or the class of a module.
        args: what it is called with, which decides for some: ``F.interpolate`` keeps a grid if it takes the nearest.
        kwargs: the same by keyword.

    Example:
        >>> keeps_grid(torch.flatten), keeps_grid(torch.mean)
        (True, False)
        >>> keeps_grid(F.interpolate, (), {"mode": "bilinear"})
        False
    """
    return _KEEPS_GRID.get(kind_of(function) or "", _never)(args, kwargs or {})


def is_homogeneous(function: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> bool:
    """Whether ``f(s * x) = s * f(x)`` for positive scales of channels: what cross-layer equalization passes through.

    Channels stay in their order. The shape may change: flattening repeats the scale of a channel for each pixel.

    Args:
        function: a function, a method of tensors, or the class of a module.
        args: what it is called with, which decides for some: a mean has to be one over pixels.
        kwargs: the same by keyword.

    Example:
        >>> is_homogeneous(F.relu), is_homogeneous(nn.ReLU6)
        (True, False)
    """
    return _HOMOGENEOUS.get(kind_of(function) or "", _never)(args, kwargs or {})


def _never(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return False
