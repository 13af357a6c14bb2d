"""The ranges of activations, learned while the parameters of their quantizers stay as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ....qcore import GridQuant, TensorQuant
from ....qcore.scaling import StoredScaling
from .adam import Adam

__all__ = ["LearnedRange"]

_NAMES = ("magnitude_offset", "low_offset")


class LearnedRange:
    """The range that a quantizer of activations has learned; others stand in for its parameters until `restore`.

    Args:
        quant: with a scaling that has a range to learn, see `learns`.
        learning_rate: how far a range moves in one step at most, as a share of its magnitude.

    Attributes:
        parameters: those that stand in, which gradients are taken by.

    Example:
        >>> import bitwright.nn as qnn
        >>> layer = qnn.QuantIdentity(calibration_steps=1)
        >>> _ = layer(torch.tensor([1.28]))
        >>> act = layer.eval().act_quant
        >>> learned = LearnedRange(act, learning_rate=0.5)
        >>> learned.step([torch.ones(1)])
        >>> act.scale()
        tensor(0.0050)
        >>> learned.restore()
        >>> act.scale()
        tensor(0.0100)
    """

    def __init__(self, quant: GridQuant, learning_rate: float) -> None:
        scaling = quant.scaling
        assert isinstance(scaling, StoredScaling)
        self.quant, self._scaling = quant, scaling
        found = {name: scaling._parameters.get(name) for name in _NAMES}
        self._originals = {name: each for name, each in found.items() if each is not None}
        with torch.no_grad():
            magnitude = scaling.magnitude.detach()
            loaded = scaling.restriction.load(magnitude)
            more = (scaling.restriction.store(1.01 * loaded) - magnitude).abs() * 100  # of a log, 1 / ln 2
        units = {"magnitude_offset": more, "low_offset": loaded}
        self._units = [units[name].reshape(-1) for name in self._originals]
        self._starts = [each.detach().clone() for each in self._originals.values()]
        self.parameters = [nn.Parameter(each.clone()) for each in self._starts]
        self._moved = [torch.zeros_like(each) for each in self._starts]
        self._adams = [Adam(each, learning_rate) for each in self._moved]
        self._learning_rate = learning_rate
        for name, each in zip(self._originals, self.parameters, strict=True):
            scaling._parameters[name] = each

    @staticmethod
    def learns(quant: TensorQuant) -> bool:
        """Whether a quantizer has a range that can be learned."""
        return (
            isinstance(quant, GridQuant)
            and not quant.of_parameter
            and isinstance(quant.scaling, StoredScaling)
            and quant.scaling.calibrated
            and quant.scaling._parameters.get("magnitude_offset") is not None
        )

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor | None], rate: float = 1.0) -> None:
        """Move by one step of Adam.

        Args:
            gradients: by `parameters`.
            rate: share of the learning rate.
        """
        rest = zip(gradients, self.parameters, self._starts, self._moved, self._units, self._adams, strict=True)
        for gradient, parameter, start, moved, unit, adam in rest:
            if gradient is not None:
                adam.learning_rate = rate * self._learning_rate
                adam.step(gradient * unit)
                parameter.copy_(start + unit * moved)

    def state(self) -> list[Tensor]:
        """What was learned so far."""
        return [each.detach().clone() for each in self.parameters]

    @torch.no_grad()
    def set(self, state: list[Tensor]) -> None:
        """Go back to what was learned at some time."""
        for parameter, each in zip(self.parameters, state, strict=True):
            parameter.copy_(each)

    @property
    def start(self) -> list[Tensor]:
        """What the quantizer's own parameters are."""
        return self._starts

    def restore(self) -> None:
        """Give the quantizer its own parameters back."""
        for name, each in self._originals.items():
            self._scaling._parameters[name] = each

    @torch.no_grad()
    def write(self) -> None:
        """Put what was learned into the quantizer's own parameters."""
        for original, each in zip(self._originals.values(), self.parameters, strict=True):
            original.copy_(each)
        self._scaling.finish_calibration()
