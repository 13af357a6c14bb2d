"""Quantized LSTM, GRU and simple recurrent layers, and their cells."""

from .cells import QuantGRUCell, QuantLSTMCell, QuantRNNCell, RecurrentCell
from .layers import QuantGRU, QuantLSTM, QuantRNN
from .recurrent_layer import RecurrentLayer

__all__ = [
    "QuantGRU",
    "QuantGRUCell",
    "QuantLSTM",
    "QuantLSTMCell",
    "QuantRNN",
    "QuantRNNCell",
    "RecurrentCell",
    "RecurrentLayer",
]
