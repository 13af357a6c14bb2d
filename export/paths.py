"""Paths that a user gives: what isn't there is named before any work begins."""

import os
from pathlib import Path

from .errors import ExportError

__all__ = ["require_file", "require_folder"]


def require_file(call: str, path: str | os.PathLike[str]) -> str:
    """The path of a file that is to be read.

    Args:
        call: the function that the user called.
        path: what it was given.

    Raises:
        ExportError: there is no such file.

    Example:
        >>> require_file("verify_onnx", __file__) == __file__
        True
    """
    found = os.fspath(path)
    if not os.path.isfile(found):
        raise ExportError(f"{call}: there is no file {found!r}.")
    return found


def require_folder(call: str, path: str | os.PathLike[str]) -> None:
    """Refuse a file that is to be written where there is no folder.

    Args:
        call: the function that the user called.
        path: its ``export_path``.

    Raises:
        ExportError: there is no such folder.

    Example:
        >>> require_folder("export_onnx_qdq", "model.onnx")
    """
    folder = Path(path).parent
    if not folder.is_dir():
        raise ExportError(f"{call}(export_path={str(path)!r}): there is no folder {str(folder)!r}. Make it first.")
