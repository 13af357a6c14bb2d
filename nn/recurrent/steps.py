"""One step of each kind of recurrent layer: the definition of what the layers compute."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan import Tensors

__all__ = ["GRUStep", "LSTMStep", "RNNStep", "RecurrentStep", "Site", "Sites"]

Site = Callable[[Tensor], Tensor]  # what happens to a tensor inside of a step
Sites = Mapping[str, Site]  # by the names of slots


class RecurrentStep:
    """One step: states and what the input contributes, to new states and the output, which is the first of them.

    Subclasses say it in `states_after`. Everything that a slot quantizes passes the site of that name.

    Args:
        sites: what happens to the tensors inside, by the name of the slot; nothing, where there is no entry.
        bias: whether the constants have a bias, after the weight.

    Attributes:
        slots: names of the sites, in the order in which a step comes by.
        states: which of the slots are those of the states, in their order.

    Example:
        >>> step = RNNStep({"hidden": torch.round}, bias=False)
        >>> step((torch.zeros(1, 1),), (torch.tensor([[9.0]]),), (torch.eye(1),))
        ((tensor([[1.]]),), (tensor([[1.]]),))
    """

    slots: ClassVar[tuple[str, ...]]
    states: ClassVar[tuple[str, ...]] = ("hidden",)

    def __init__(self, sites: Sites, bias: bool) -> None:
        self.sites = sites
        self.bias = bias

    def __call__(self, states: Tensors, inputs: Tensors, constants: Tensors) -> tuple[Tensors, Tensors]:
        """The states after the step, and its output.

        Args:
            states: (B, H) each.
            inputs: what the input contributes to the gates, ``(x @ weight_ih.T + bias_ih,)``.
            constants: weight_hh, bias_hh if there is one, and for an LSTM with projections weight_hr.
        """
        after = self.states_after(states, inputs[0], constants)
        return after, after[:1]

    def states_after(self, states: Tensors, projected: Tensor, constants: Tensors) -> Tensors:
        """The states after the step."""
        raise NotImplementedError

    def at(self, slot: str, x: Tensor) -> Tensor:
        """A tensor that passes the site of a slot."""
        site = self.sites.get(slot)
        return x if site is None else site(x)

    def of_hidden(self, hidden: Tensor, constants: Tensors) -> Tensor:
        """What the hidden state contributes to the gates."""
        return F.linear(hidden, constants[0], constants[1] if self.bias else None)


class LSTMStep(RecurrentStep):
    """A step of an LSTM.

    Args:
        sites: what happens to the tensors inside.
        bias: whether the constants have a bias.
        projects: whether the last constant is weight_hr.
        coupled: whether what is forgotten is what the input gate lets in, f = 1 - i: no rows for f in the weights.
    """

    slots = ("gate", "sigmoid", "tanh", "cell", "projection", "hidden")
    states = ("hidden", "cell")

    def __init__(self, sites: Sites, bias: bool, projects: bool = False, coupled: bool = False) -> None:
        super().__init__(sites, bias)
        self.projects = projects
        self.coupled = coupled

    def states_after(self, states: Tensors, projected: Tensor, constants: Tensors) -> Tensors:
        """H and c after the step."""
        hidden, cell = states
        gates = self.at("gate", projected + self.of_hidden(hidden, constants))
        if self.coupled:
            i, g, o = gates.chunk(3, -1)
            let_in = self.at("sigmoid", i.sigmoid())
            kept = 1 - let_in
        else:
            i, f, g, o = gates.chunk(4, -1)
            let_in, kept = self.at("sigmoid", i.sigmoid()), self.at("sigmoid", f.sigmoid())
        proposed, let_out = self.at("tanh", g.tanh()), self.at("sigmoid", o.sigmoid())
        cell = self.at("cell", kept * cell + let_in * proposed)  # as ONNX does it: addcmul rounds otherwise
        hidden = let_out * self.at("tanh", cell.tanh())
        if self.projects:
            hidden = F.linear(self.at("projection", hidden), constants[-1])
        return self.at("hidden", hidden), cell


class GRUStep(RecurrentStep):
    """A step of a GRU."""

    slots = ("gate", "sigmoid", "tanh", "hidden")

    def states_after(self, states: Tensors, projected: Tensor, constants: Tensors) -> Tensors:
        """H after the step."""
        (hidden,) = states
        r, z, n = projected.chunk(3, -1)
        of_r, of_z, of_n = self.of_hidden(hidden, constants).chunk(3, -1)
        reset = self.at("sigmoid", self.at("gate", r + of_r).sigmoid())
        kept = self.at("sigmoid", self.at("gate", z + of_z).sigmoid())
        proposed = self.at("tanh", self.at("gate", n + reset * of_n).tanh())
        return (self.at("hidden", (hidden - proposed) * kept + proposed),)


class RNNStep(RecurrentStep):
    """A step of a simple recurrent layer.

    Args:
        sites: what happens to the tensors inside.
        bias: whether the constants have a bias.
        nonlinearity: ``"tanh"`` or ``"relu"``.
    """

    slots = ("gate", "hidden")

    def __init__(self, sites: Sites, bias: bool, nonlinearity: str = "tanh") -> None:
        super().__init__(sites, bias)
        self.nonlinearity = torch.tanh if nonlinearity == "tanh" else torch.relu

    def states_after(self, states: Tensors, projected: Tensor, constants: Tensors) -> Tensors:
        """H after the step."""
        gates = self.at("gate", projected + self.of_hidden(states[0], constants))
        return (self.at("hidden", self.nonlinearity(gates)),)
