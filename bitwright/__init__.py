"""Quantizers declared as classes, quantized PyTorch layers, and ONNX files that agree with them to the bit.

This is only the front door: `describe`, and the parts of the library, each imported when it is first asked for.

- `bitwright.nn`: quantized layers
- `bitwright.quantizers`: the declared quantizers
- `bitwright.qcore`: what quantizers are made of
- `bitwright.graph`: whole models, from a float one to a quantized one
- `bitwright.export`: ONNX, and the integers of a model
- `bitwright.testing`: a conformance kit for quantizers of your own, plots

Example:
    >>> import bitwright
    >>> bitwright.nn.QuantLinear(8, 4, weight_bit_width=4).weight_quant.bit_width
    4
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitwright import export, graph, nn, qcore, quantizers, testing
    from bitwright.qcore import describe

__all__ = ["__version__", "describe", "export", "graph", "nn", "qcore", "quantizers", "testing"]

__version__ = "0.1.0"

_checkout = Path(__file__).parents[1]
if (_checkout / "pyproject.toml").is_file():  # run from a checkout: the folders lie beside this one, not in it
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name == "describe":
        return import_module(".qcore", __name__).describe
    if name in __all__:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
