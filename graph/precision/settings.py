"""The settings that are tried on every layer, as a user writes them and by name."""

from collections.abc import Iterable, Mapping

from ...qcore.models import shown
from ..errors import GraphError

__all__ = ["Settings", "read_settings"]

Settings = Mapping[str, object] | None
"""Keywords of layers, as in rules of `quantize`; None leaves a layer float."""

_WRITE = 'Write bit widths of weights, [2, 4, 8], or named settings, {"int4": dict(weight_bit_width=4), "float": None}.'


def read_settings(widths: object) -> dict[str, Settings]:
    """What a user gives as ``widths``, by name: a bit width n has the name ``"n"``.

    Raises:
        GraphError: it is neither bit widths nor named settings, or empty, or names one twice.

    Example:
        >>> read_settings([4, 8])
        {'4': {'weight_bit_width': 4}, '8': {'weight_bit_width': 8}}
        >>> read_settings({"w4a8": dict(weight_bit_width=4, input_bit_width=8), "float": None})
        {'w4a8': {'weight_bit_width': 4, 'input_bit_width': 8}, 'float': None}
    """
    if isinstance(widths, Mapping):
        pairs = list(widths.items())
    elif isinstance(widths, Iterable) and not isinstance(widths, str | bytes):
        pairs = [(each, each) for each in widths]
    else:
        raise GraphError(f"sensitivity: widths={shown(widths)} is not possible. {_WRITE}")
    found: dict[str, Settings] = {}
    for name, setting in pairs:
        key = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        if not isinstance(key, str):
            raise GraphError(f"sensitivity: {shown(name)} among the widths is not possible. {_WRITE}")
        if key in found:
            raise GraphError(f"sensitivity: the widths name {key!r} twice. Leave one of them out.")
        found[key] = _setting(key, setting)
    if not found:
        raise GraphError(f"sensitivity: there are no widths. {_WRITE}")
    return found


def _setting(name: str, setting: object) -> Settings:
    if setting is None:
        return None
    if isinstance(setting, int) and not isinstance(setting, bool):
        return {"weight_bit_width": setting}
    if isinstance(setting, Mapping) and setting and all(isinstance(each, str) for each in setting):
        return dict(setting)
    raise GraphError(f"sensitivity: {name!r} is {shown(setting)}, which is no setting. {_WRITE}")
