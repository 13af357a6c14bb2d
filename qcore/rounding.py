"""How a value between two integers is rounded.

A rounding is a callable on ``x / scale``. One of your own is a class (or a plain function) that returns whole
numbers; gradients pass straight through unless it sets ``straight_through = False`` and brings its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .declare.inject import register_choices
from .errors import SettingError
from .formats.int_range import check_flag
from .kernels.derivatives import straight_through
from .tracing import is_tracing

__all__ = [
    "ROUNDINGS",
    "Ceil",
    "Floor",
    "HalfEven",
    "HalfUp",
    "Rounding",
    "StochasticRounding",
    "TowardZero",
    "round_straight_through",
]


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


class StochasticRounding(nn.Module):
    """Up with the probability of the fraction, else down: right on average. Ties to even in evaluation.

    Args:
        seed: start of a random sequence of its own, for repeatable runs; None draws from torch's global generator
            (``torch.manual_seed``), which also works under ``torch.compile``.
        deterministic_evaluation: round half to even in evaluation; False keeps it random there too.

    Raises:
        SettingError: a seed that is no whole number.

    Example:
        >>> rounding = StochasticRounding(seed=0)
        >>> rounding(torch.full((1000,), 0.25)).mean().item()  # doctest: +ELLIPSIS
        0.2...
        >>> rounding.eval()(torch.tensor([0.5]))
        tensor([0.])
    """

    name = "stochastic"

    def __init__(self, seed: int | None = None, deterministic_evaluation: bool = True) -> None:
        super().__init__()
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise SettingError("seed", seed, "a whole number, or None for torch's global generator")
        self.seed = seed
        self.deterministic = check_flag("deterministic_evaluation", deterministic_evaluation)
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The whole numbers next to ``x``, drawn anew at each call in training."""
        if not self.training and self.deterministic:
            return torch.round(x)
        if self.seed is None:
            noise = torch.rand_like(x)
        else:
            noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=self._on(x.device))
        floor = torch.floor(x)  # not floor(x + noise): the sum rounds, and a whole number could move
        return floor + (noise < x - floor).to(x.dtype)

    def _on(self, device: torch.device) -> torch.Generator:
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed or 0)
        return self._generator

    def __getstate__(self) -> dict[str, object]:
        state = dict(self.__dict__)
        if self._generator is not None:  # generators don't pickle; their state does
            state["_generator"] = (str(self._generator.device), self._generator.get_state())
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        if isinstance(self._generator, tuple):
            device, saved = self._generator
            self._generator = torch.Generator(device)
            self._generator.set_state(saved)

    def extra_repr(self) -> str:
        return f"seed={self.seed}"


ROUNDINGS = register_choices(
    "rounding",
    {
        "half_even": HalfEven,
        "half_up": HalfUp,
        "floor": Floor,
        "ceil": Ceil,
        "toward_zero": TowardZero,
        "stochastic": StochasticRounding,
    },
)


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
