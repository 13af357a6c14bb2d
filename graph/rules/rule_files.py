"""Rules in files: JSON or TOML, with classes and functions by their names."""

import ast
import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ... import nn as qnn
from ... import quantizers
from ...qcore import QuantizerError
from ...qcore.declare.inject import QuantizerType
from ..errors import GraphError
from .rules import End, Rule, RulesLike, is_function, read_rules

__all__ = ["load_rules", "save_rules"]

_PLACES = ("type", "path", "function", "predicate", "first", "last")


def save_rules(rules: RulesLike, path: str | Path) -> None:
    """Write rules to a file, ``.json`` or ``.toml``, for `load_rules` to read or a person to edit.

    Each rule is a table: a place (``type``, ``path``, ``function``, ``predicate``, ``first`` or ``last``), then the
    keywords of layers, a ``layer`` or ``float = true``. Classes and functions stand there by name.

    Args:
        rules: as `quantize` takes them.
        path: of the file; its ending says the format.

    Raises:
        GraphError: the rules are none, something in them has no name to be found by (a lambda), or the ending is
            another one.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from bitwright.quantizers import Int8Act
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_rules({nn.Linear: dict(input_quant=Int8Act, weight_bit_width=4), "head": None}, f"{folder}/r.toml")
        ...     print(Path(f"{folder}/r.toml").read_text())
        [[rules]]
        type = "torch.nn.Linear"
        input_quant = "Int8Act"
        weight_bit_width = 4
        <BLANKLINE>
        [[rules]]
        path = "head"
        float = true
        <BLANKLINE>
    """
    tables = [_table(rule) for rule in read_rules(rules)]
    file, write = Path(path), _format("save_rules", path)[0]
    file.write_text(write(tables), encoding="utf-8")


def load_rules(path: str | Path) -> list[tuple[Any, Any]]:
    """Rules from a file that `save_rules` or a person has written, as pairs for `quantize`.

    Raises:
        GraphError: the file is no rules, or names something that can't be imported.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "rules.json")
        ...     _ = file.write_text('{"rules": [{"type": "torch.nn.Linear", "weight_quant": "Int4WeightPerChannel"}]}')
        ...     load_rules(file)
        [(<class 'torch.nn.modules.linear.Linear'>, {'weight_quant': Int4WeightPerChannel})]
    """
    read = _format("load_rules", path)[1]
    try:
        content = read(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise GraphError(f"load_rules: {path} can't be read: {error}.") from None
    tables = content.get("rules") if isinstance(content, dict) else None
    if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
        raise GraphError(f"load_rules: {path} has no list named rules. Write [[rules]] before each, or see save_rules.")
    found: list[tuple[Any, Any]] = []
    for number, table in enumerate(tables, 1):
        found += _pairs(table, f"load_rules: rule {number} of {path}")
    return found


# To tables


def _table(rule: Rule) -> dict[str, object]:
    table: dict[str, object] = {}
    where = rule.where
    what = f"rule {rule.index + 1}"
    if isinstance(where, End):
        table[where.which] = True if where.kind is None else _name_of(where.kind, what)
    elif isinstance(where, str):
        table["path"] = where
    elif isinstance(where, type):
        table["type"] = _name_of(where, what)
    elif where is not None:
        table["function" if is_function(where) else "predicate"] = _name_of(where, what)
    if rule.layer is not None:
        return {**table, "layer": _name_of(rule.layer, what)}
    if rule.settings is None:
        return {**table, "float": True}
    for keyword, item in rule.settings.items():
        if keyword in (*_PLACES, "layer", "float"):
            raise GraphError(f"save_rules: the setting {keyword!r} of {what} has a name that means something in files.")
        table[keyword] = _plain(item, f"{keyword} of {what}")
    return table


def _plain(item: object, what: str) -> object:
    """A setting as a file has it: numbers, strings and lists as they are, classes and functions by name."""
    if item is None:
        return "None"
    if isinstance(item, bool | int | float | str):
        return item
    if isinstance(item, list | tuple):
        return [_plain(each, what) for each in item]
    if isinstance(item, QuantizerType) and "__overrides__" in vars(item):
        given = vars(item)["__overrides__"]
        settings = [f"{name}={_literal(each, what)}" for name, each in given.items()]
        return f"{_name_of(item.__bases__[0], what)}({', '.join(settings)})"
    if isinstance(item, type) or callable(item):
        return _name_of(item, what)
    raise GraphError(
        f"save_rules: {what} is {item!r}, which has no name that a file could have. Use a class or a function of a "
        "module, a number or a string."
    )


def _literal(item: object, what: str) -> str:
    if item is None or isinstance(item, bool | int | float | str):
        return repr(item)
    if isinstance(item, type) or callable(item):
        return repr(_name_of(item, what))
    raise GraphError(f"save_rules: {what} has the setting {item!r}. Declare a quantizer class with it, and name that.")


def _name_of(item: Any, what: str) -> str:
    """The shortest name that finds a class or function again."""
    name = getattr(item, "__qualname__", None) or getattr(item, "__name__", "")
    module = getattr(item, "__module__", None) or "torch"
    if isinstance(item, QuantizerType) and getattr(quantizers, name, None) is item:
        return name
    if getattr(qnn, name, None) is item:
        return f"bitwright.nn.{name}"
    spaces = ["torch.nn", "torch", "torch.nn.functional", "operator", module]
    plain = getattr(item, "__name__", name)
    for space, each in [*((space, plain) for space in spaces), ("torch.Tensor", plain), (module, name)]:
        found = _found(f"{space}.{each}")
        if found is item:
            return f"{space}.{each}"
    raise GraphError(
        f"save_rules: {name or repr(item)} ({what}) can't be written: nobody could find it by its name. Define it with "
        "def or class at the top of a module, and import it from there."
    )


def _found(dotted: str) -> object:
    """What a dotted name stands for, if its module is imported or can be."""
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if name == "__main__" and length < len(parts):
            return None
        try:
            found: Any = sys.modules.get(name) or importlib.import_module(name)
        except ImportError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found
    return None


# From tables


def _pairs(table: Mapping[str, object], where: str) -> list[tuple[Any, Any]]:
    given = [name for name in _PLACES if name in table]
    if len(given) > 1:
        raise GraphError(f"{where} has {' and '.join(given)}. Write one of them, and another rule for the other.")
    settings = {name: item for name, item in table.items() if name not in (*_PLACES, "layer", "float")}
    what: object = {name: _value(item, f"{where}, {name}") for name, item in settings.items()}
    if "layer" in table:
        what = _named(table["layer"], f"{where}, layer")
    if table.get("float") is True:
        what = None
    if settings and (what is None or "layer" in table):
        raise GraphError(f"{where} has {', '.join(settings)} besides {'float' if what is None else 'layer'}.")
    if not given:
        if not settings:
            raise GraphError(f"{where} says nothing. Write a place (type, path ...) and keywords of layers.")
        return list(what.items()) if isinstance(what, dict) else []
    return [(_place(given[0], table[given[0]], where), what)]


def _place(kind: str, item: object, where: str) -> object:
    if kind == "path":
        return item
    if kind in ("first", "last"):
        return End(kind, None if item is True else _named(item, f"{where}, {kind}"))
    return _named(item, f"{where}, {kind}")


def _value(item: object, where: str) -> object:
    if isinstance(item, list):
        return [_value(each, where) for each in item]
    if not isinstance(item, str):
        return item
    if item == "None":
        return None
    is_quantizer = where.endswith("_quant")
    return _named(item, where) if is_quantizer or "." in item or "(" in item else item


def _named(item: object, where: str) -> Any:
    """The class or function of a name, or a quantizer with settings: ``Int8Act(bit_width=4)``."""
    try:
        node = ast.parse(str(item), mode="eval").body
    except SyntaxError:
        node = None
    call = node if isinstance(node, ast.Call) else None
    name = ast.unparse(call.func) if call is not None else str(item)
    found: Any = getattr(quantizers, name, None) if name.isidentifier() else _found(name)
    if found is None:
        raise GraphError(
            f"{where}: {name!r} can't be found. Write the name of a shipped quantizer, or that of the module too: "
            "'mypackage.quantizers.MyWeight'."
        )
    if call is None:
        return found
    if call.args or any(each.arg is None for each in call.keywords):
        raise GraphError(f"{where}: {item} can't be read: write settings by name, as in Int8Act(bit_width=4).")
    try:
        settings = {str(each.arg): _value(ast.literal_eval(each.value), where) for each in call.keywords}
        return found(**settings)
    except (ValueError, TypeError, QuantizerError) as error:
        raise GraphError(f"{where}: {item} can't be read: {error}") from None


# Formats


def _to_toml(tables: list[dict[str, object]]) -> str:
    blocks = (
        "\n".join(["[[rules]]", *(f"{name} = {_toml(item)}" for name, item in table.items())]) for table in tables
    )
    return "\n\n".join(blocks) + "\n"


def _toml(item: object) -> str:
    if isinstance(item, list):
        return f"[{', '.join(map(_toml, item))}]"
    return json.dumps(item)  # strings, numbers, true and false are written alike


def _to_json(tables: list[dict[str, object]]) -> str:
    return json.dumps({"rules": tables}, indent=2) + "\n"


_FORMATS: dict[str, tuple[Callable[[list[dict[str, object]]], str], Callable[[str], Any]]] = {
    ".json": (_to_json, json.loads),
    ".toml": (_to_toml, tomllib.loads),
}


def _format(call: str, path: str | Path) -> tuple[Callable[[list[dict[str, object]]], str], Callable[[str], Any]]:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise GraphError(f"{call}: {str(path)!r} must end in .json or .toml, which says the format.")
    return _FORMATS[suffix]
