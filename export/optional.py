"""The packages that only an export needs: imported when one is made."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import ExportError

__all__ = ["installed", "required"]


def required(package: str, purpose: str) -> Any:
    """The module of a package, or an `ExportError` that says how to install it.

    Example:
        >>> required("json", "an example").__name__
        'json'
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:  # perhaps of something that the package needs itself
        missing, asked = ((name or package).partition(".")[0] for name in (error.name, package))
        wanted = asked if asked in _BY_THEMSELVES else _EXTRAS.get(asked, "bitwright[onnx]")
        raise ExportError(f"{purpose} needs the package {missing}: pip install {wanted}") from None


_BY_THEMSELVES = ("numpy", "safetensors")  # which are of use without onnx
_EXTRAS = {"qonnx": "bitwright[qonnx]"}


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None
