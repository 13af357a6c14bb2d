"""describe: what a quantizer, layer or model is made of, who set each attribute and who uses it."""

import ast
import functools
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .inject import IMPLIED, ROOT, QuantizerType, Resolution, Setting, _show, resolution

__all__ = ["Description", "describe"]

_Lines = Callable[[type], dict[str, int]]  # the line of each attribute in a class body


@dataclass(frozen=True)
class Description:
    """One attribute with its value, who set it, who uses it and what it needs in turn. ``str()`` draws the tree.

    Attributes:
        attribute: its name; for a layer or a model, the path of the module.
        value: its value, as written in source.
        set_by: the class and line, the layer's keyword, or the default that it comes from.
        used_by: the attributes whose constructor or function takes it.
        needs: the attributes that it takes itself.

    Example:
        >>> from bitwright.quantizers import Int32Bias
        >>> found = describe(Int32Bias(bit_width=16)).find("int_range")
        >>> [(each.attribute, each.value) for each in found.needs]
        [('bit_width', '16'), ('signed', 'True'), ('narrow_range', 'False')]
        >>> found.to_dict()["used_by"]
        ['tensor_quant']
    """

    attribute: str
    value: str
    set_by: str = ""
    used_by: tuple[str, ...] = ()
    needs: tuple["Description", ...] = field(default=())

    def to_dict(self) -> dict[str, object]:
        """The tree as plain dicts and lists."""
        return {
            "attribute": self.attribute,
            "value": self.value,
            "set_by": self.set_by,
            "used_by": list(self.used_by),
            "needs": [each.to_dict() for each in self.needs],
        }

    def to_json(self, indent: int | None = 2) -> str:
        """The tree as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def find(self, attribute: str) -> "Description":
        """The first entry of that name in the tree.

        Raises:
            KeyError: there is none.
        """
        for each in self._walk():
            if each.attribute == attribute:
                return each
        raise KeyError(attribute)

    def _walk(self) -> Iterator["Description"]:
        yield self
        for each in self.needs:
            yield from each._walk()

    def __str__(self) -> str:
        return "\n".join(self._lines("", "", ""))

    def _lines(self, first: str, rest: str, user: str) -> Iterator[str]:
        said = f"{first}{self.attribute} = {self.value}" if self.attribute else f"{first}{self.value}"
        others = [each for each in self.used_by if each != user]
        shared = f", also used by {', '.join(others)}" if user and others else ""
        yield f"{said:<56}  {self.set_by}{shared}".rstrip()
        for each in self.needs:
            last = each is self.needs[-1]
            inner = rest + ("   " if last else "|  ")
            yield from each._lines(rest + ("`- " if last else "|- "), inner, self.attribute)


def describe(x: object) -> Description:
    """What a quantizer, a layer or a model is made of: a tree of attributes with value, origin and users.

    Args:
        x: a quantizer class, a module resolved from one, a quantized layer, or a model that contains some.

    Returns:
        A `Description`: print it, or take it as data with ``to_dict()`` and ``to_json()``.

    Raises:
        TypeError: something that is none of these.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> tree = describe(Int8WeightPerTensor(bit_width=4))
        >>> tree.find("bit_width").value, tree.find("bit_width").set_by, tree.find("bit_width").used_by
        ('4', 'keyword bit_width', ('int_range',))
    """
    lines = functools.cache(_lines_of)  # to parse a source takes long, and most settings share their classes
    if isinstance(x, QuantizerType):
        return _tree(x, {}, {}, lines)
    if hasattr(x, "named_modules") and not isinstance(x, type):
        return _module(x, lines)
    raise TypeError(f"describe takes a quantizer class, a layer or a model; found {type(x).__name__}.")


def _module(module: Any, lines: _Lines) -> Description:
    if getattr(module, "quantizer", None) is not None:
        return _resolved(module, lines)
    found = []
    for path, each in module.named_modules(remove_duplicate=False):
        if each is not module and getattr(each, "quantizer", None) is not None:
            found.append(replace(_resolved(each, lines), attribute=path))
    return Description("", type(module).__name__, "", (), tuple(found))


def _resolved(module: Any, lines: _Lines) -> Description:
    """A quantizer that a layer has resolved, and how far its calibration is."""
    tree = _tree(module.quantizer, module.provided, module.written, lines)
    said = [module.progress(), "of what flows backward" if module.of_gradient else ""]
    remark = ", ".join(filter(None, said))
    return replace(tree, value=f"{tree.value} ({remark})") if remark else tree


def _tree(
    quantizer: QuantizerType, provided: Mapping[str, object], written: Mapping[str, str], lines: _Lines
) -> Description:
    known = provided or _UNKNOWN  # a class by itself does not know its layer
    plan = resolution(quantizer, known, where=repr(quantizer), written=written)
    shown: set[str] = set()

    def entry(name: str) -> Description:
        setting = plan.settings[name]
        needs: list[Description] = []
        if name not in shown:  # what several attributes share is drawn in full once
            shown.add(name)
            needs = [entry(child) for child in plan.children[name]]
            needs += [
                Description(given, _show(item), f"default of {_show(setting.injected)}", (name,))
                for given, item in plan.defaults.get(name, {}).items()
            ]
        users = tuple(plan.consumers.get(name, ()))
        return Description(name, _show(setting.declared), _origin(setting, plan, lines), users, tuple(needs))

    root = entry(ROOT)
    return Description("", repr(quantizer), "", (), (root,))


class _Unknown:
    """Stands for what only a layer knows."""

    def __repr__(self) -> str:
        return "(from the layer)"


_UNKNOWN = {"channel_axis": _Unknown(), "shape": _Unknown(), "channels": _Unknown()}


def _origin(setting: Setting, plan: Resolution, lines: _Lines) -> str:
    if setting.owner is None:
        return "the layer"
    if "__overrides__" in vars(setting.owner):
        overrides = vars(setting.owner)["__overrides__"]
        if setting.name not in overrides:
            given = next(
                each for each, (implied, _) in IMPLIED.items() if implied == setting.name and each in overrides
            )
            return f"implied by {plan.written.get(given, given)}"
        return f"keyword {plan.written.get(setting.name, setting.name)}"
    line = lines(setting.owner).get(setting.name)
    return f"{setting.owner.__name__}, {setting.owner.__module__}" + (f":{line}" if line else "")


def _lines_of(cls: type) -> dict[str, int]:
    """The line of each attribute in a class body, where its source is at hand."""
    try:
        source, start = inspect.getsourcelines(cls)
        body = ast.parse(textwrap.dedent("".join(source))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    found: dict[str, int] = {}
    for node in getattr(body, "body", []):
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        names += [node.name] if isinstance(node, ast.FunctionDef) else []
        names += [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []
        found.update(dict.fromkeys(names, start + node.lineno - 1))
    return found
