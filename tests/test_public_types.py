"""Every type that a public signature or dataclass field names can be imported from a public package."""

import importlib
import inspect
import typing
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
figure = pytest.importorskip("matplotlib.figure")
pytest.importorskip("hypothesis")

PACKAGES = [
    importlib.import_module(f"bitwright.{name}") for name in ("qcore", "quantizers", "nn", "graph", "export", "testing")
]
IMPORTED_FOR_TYPING = {"np": np, "onnx": onnx, "onnxruntime": onnxruntime, "torch": torch, "Figure": figure.Figure}


def named(package: ModuleType) -> Iterator[object]:
    """What a package names as public, and so do the modules among it."""
    for name in package.__all__:
        item = getattr(package, name)
        yield from named(item) if inspect.ismodule(item) else [item]


def functions_of(item: object) -> list[object]:
    """What of a public name has a signature: itself, its fields, and its public methods and properties."""
    if not inspect.isclass(item):
        return [item] if inspect.isfunction(item) else []
    found: list[object] = [item] if "__annotations__" in vars(item) else []
    for name, each in vars(item).items():
        if name.startswith("_") and name not in ("__init__", "__call__", "__getitem__"):
            continue
        each = each.fget if isinstance(each, property) else getattr(each, "__func__", each)
        found += [each] if inspect.isfunction(each) else []
    return found


def types_in(hint: object) -> Iterator[type]:
    """The classes of this library in a type hint."""
    if isinstance(hint, list):
        for each in hint:
            yield from types_in(each)
    elif isinstance(hint, typing.TypeVar):
        yield from types_in([hint.__bound__, *hint.__constraints__])
    elif typing.get_args(hint):
        yield from types_in([typing.get_origin(hint), *typing.get_args(hint)])
    elif isinstance(hint, type) and hint.__module__.partition(".")[0] == "bitwright":
        yield hint


PUBLIC = [item for package in PACKAGES for item in named(package)]


def lacking(item: object) -> set[str]:
    """The types of an item's signatures that no public package names."""
    found = set()
    for function in functions_of(item):
        hints = typing.get_type_hints(function, localns=IMPORTED_FOR_TYPING)
        for each in types_in([hint for name, hint in hints.items() if not name.startswith("_")]):
            found |= set() if any(each is known for known in PUBLIC) else {f"{each.__module__}.{each.__qualname__}"}
    return found


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_types_of_public_signatures_are_public(package):
    assert {item: lacking(item) for item in named(package) if lacking(item)} == {}


def test_a_private_type_would_be_found():
    from bitwright.export.capture.record import Call, Recording

    def public(calls: dict[str, list[Call]] | None) -> tuple[Recording, int]:
        raise NotImplementedError

    class Public:
        field: Call | None
        _private: Recording

        def _hidden(self, recording: Recording) -> None: ...

    assert lacking(public) == {"bitwright.export.capture.record.Call", "bitwright.export.capture.record.Recording"}
    assert lacking(Public) == {"bitwright.export.capture.record.Call"}
