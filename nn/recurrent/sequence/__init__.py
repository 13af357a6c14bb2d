"""A whole sequence of recurrent steps as one autograd function."""

from .functions import gru, lstm, rnn
from .grids import Steps, steps_of

__all__ = ["Steps", "gru", "lstm", "rnn", "steps_of"]
