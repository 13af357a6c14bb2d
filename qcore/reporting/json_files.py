"""Reports as JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["finite", "write_json"]


def finite(found: object) -> object:
    """The same, with None in place of numbers that JSON lacks.

    Example:
        >>> finite({"largest": float("inf"), "rows": (1, 2.5)})
        {'largest': None, 'rows': [1, 2.5]}
    """
    if isinstance(found, Mapping):
        return {name: finite(each) for name, each in found.items()}
    if isinstance(found, list | tuple):
        return [finite(each) for each in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def write_json(path: str | os.PathLike[str], found: object) -> None:
    """Write a report, in which a figure that isn't finite is null.

    Args:
        path: of the file, which is replaced if there is one.
        found: dicts and lists of strings and numbers.
    """
    Path(path).write_text(json.dumps(finite(found), indent=1, allow_nan=False) + "\n", encoding="utf-8")
