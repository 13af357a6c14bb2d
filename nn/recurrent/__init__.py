"""Quantized LSTM, GRU and simple recurrent layers, and their cells."""

__all__: list[str] = []
