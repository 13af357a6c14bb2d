"""Rounding at random, right on average."""

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..formats.int_range import check_flag

__all__ = ["StochasticRounding"]


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
