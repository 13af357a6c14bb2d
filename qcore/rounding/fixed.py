"""Roundings without state, and their gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.derivatives import straight_through
from ..tracing import is_tracing

__all__ = ["Ceil", "Floor", "HalfEven", "HalfUp", "Rounding", "TowardZero", "round_straight_through"]


class Rounding:
    """Base class of the shipped roundings without state; they differ in `__call__` and its in-place twin.

    Example:
        >>> HalfEven()(torch.tensor([0.5, 1.5, 2.4]))
        tensor([0., 2., 2.])
    """

    name = ""
    deterministic = True  # the same input gives the same output, in evaluation

    def __call__(self, x: Tensor) -> Tensor:
        """The whole numbers next to ``x``."""
        return self.inplace(x.clone())

    def inplace(self, x: Tensor) -> Tensor:
        """Round ``x`` itself; saves a pass over memory where it is ours."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class HalfEven(Rounding):
    """To nearest, ties to the even neighbour: IEEE 754's default and ONNX's rule (the default here).

    Example:
        >>> HalfEven()(torch.tensor([-1.5, -0.5, 0.5, 2.5]))
        tensor([-2., -0.,  0.,  2.])
    """

    name = "half_even"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.round(x)

    def inplace(self, x: Tensor) -> Tensor:
        return x.round_()


class HalfUp(Rounding):
    """To nearest, ties toward positive infinity.

    Example:
        >>> HalfUp()(torch.tensor([-1.5, -0.5, 0.5, 2.5]))
        tensor([-1.,  0.,  1.,  3.])
    """

    name = "half_up"

    def __call__(self, x: Tensor) -> Tensor:
        floor = torch.floor(x)  # floor(x + 0.5) would round 0.49999997 up
        return floor + (x - floor >= 0.5).to(x.dtype)

    def inplace(self, x: Tensor) -> Tensor:
        return x.copy_(self(x))


class Floor(Rounding):
    """Toward negative infinity.

    Example:
        >>> Floor()(torch.tensor([-1.5, 1.5]))
        tensor([-2.,  1.])
    """

    name = "floor"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.floor(x)

    def inplace(self, x: Tensor) -> Tensor:
        return x.floor_()


class Ceil(Rounding):
    """Toward positive infinity.

    Example:
        >>> Ceil()(torch.tensor([-1.5, 1.5]))
        tensor([-1.,  2.])
    """

    name = "ceil"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ceil(x)

    def inplace(self, x: Tensor) -> Tensor:
        return x.ceil_()


class TowardZero(Rounding):
    """Toward zero: drops the fraction.

    Example:
        >>> TowardZero()(torch.tensor([-1.5, 1.5]))
        tensor([-1.,  1.])
    """

    name = "toward_zero"

    def __call__(self, x: Tensor) -> Tensor:
        return torch.trunc(x)

    def inplace(self, x: Tensor) -> Tensor:
        return x.trunc_()


_HALF_EVEN = HalfEven()


def round_straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor] = _HALF_EVEN) -> Tensor:
    """``rounding(x)`` with a gradient of 1; by default to the nearest whole number, half to even.

    A rounding with ``straight_through = False`` brings a gradient of its own.

    A rounding of the user's own is handed float32 or float64, and never an empty tensor.

    Example:
        >>> x = torch.tensor([0.6, 1.4], requires_grad=True)
        >>> y = round_straight_through(x, Floor())
        >>> y.sum().backward()
        >>> y.tolist(), x.grad
        ([0.0, 1.0], tensor([1., 1.]))
    """
    ours = isinstance(rounding, Rounding) or is_tracing()  # where a number of elements is none
    if not ours and x.numel() == 0:
        return x.clone()
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if not getattr(rounding, "straight_through", True):
        return rounding(wide).to(x.dtype)
    with torch.no_grad():
        rounded = rounding(wide)
    return straight_through(x, rounded if wide is x else rounded.to(x.dtype))
