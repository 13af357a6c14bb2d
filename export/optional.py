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
    except ModuleNotFoundError:
        raise ExportError(f"{purpose} needs the package {package}: pip install bitwright[onnx]") from None


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None
