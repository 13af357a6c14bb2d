"""Quantizers declared as classes, quantized PyTorch layers, and ONNX files that agree with them to the bit.

This is only the front door. The library is in `bitwright.qcore` (what quantizers are made of), `bitwright.quantizers`
(the declared ones), `bitwright.nn` (quantized layers) and `bitwright.export` (ONNX). Each is imported by its own name:

Example:
    >>> import bitwright
    >>> bitwright.__version__.count(".")
    2
"""

from pathlib import Path

__all__ = ["__version__"]

__version__ = "0.1.0"

_checkout = Path(__file__).parents[1]
if (_checkout / "pyproject.toml").is_file():  # run from a checkout: the folders lie beside this one, not in it
    __path__.append(str(_checkout))
