"""Whole models: a float model becomes a quantized one by rule, is calibrated, and repaired."""

from .errors import GraphError, GraphWarning

__all__ = ["GraphError", "GraphWarning"]
