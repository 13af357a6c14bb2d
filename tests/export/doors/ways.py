"""The doors: every export, with what compares its result with the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitwright.export import (
    ExportError,
    compare_integers,
    export_onnx_integer,
    export_onnx_qcdq,
    export_onnx_qdq,
    export_program,
    export_qonnx,
    supports,
    verify_onnx,
    verify_program,
    verify_qonnx,
)

__all__ = ["DOORS", "Door", "goes_out", "refusal"]


@dataclass(frozen=True)
class Door:
    """An export, and what compares its result with the model."""

    export: Callable[..., Any]
    verify: Callable[..., Any]
    suffix: str = "onnx"


def _same_integers(model: nn.Module, program: Any, x: Tensor | tuple[Tensor, ...]) -> Any:
    return compare_integers(model, x, program=program).report


DOORS = {
    "onnx-qcdq": Door(export_onnx_qcdq, verify_onnx),
    "onnx-qdq": Door(export_onnx_qdq, verify_onnx),
    "onnx-integer": Door(export_onnx_integer, _same_integers),
    "qonnx": Door(export_qonnx, verify_qonnx),
    "program": Door(export_program, verify_program, "pt2"),
}


def goes_out(door: str, model: nn.Module, x: tuple[Tensor, ...], others: tuple[Tensor, ...], folder: Any) -> Any:
    """Write a model's file, which `supports` says is possible; the comparison on other inputs of the same shape."""
    way = DOORS[door]
    said, path = supports(model, door, x), folder / f"model.{way.suffix}"
    assert said.ok, str(said)
    way.export(model, x, path)
    report = way.verify(model, str(path), others)
    assert report.differences == 0, report.table()
    assert report.compared > 0
    assert report.tie_flips <= 1e-3 * report.compared + 1, report.table()
    return report


def refusal(
    door: str, model: nn.Module, x: tuple[Tensor, ...], folder: Any, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """What stands in the way, by module: `supports` knows, and nothing is traced and written."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("traced")

    assert not supports(model, door, x).ok
    path = folder / f"model.{DOORS[door].suffix}"
    with monkeypatch.context() as patched:
        patched.setattr(torch.export, "export", never)
        patched.setattr(torch.onnx, "export", never)
        with pytest.raises(ExportError) as caught:
            DOORS[door].export(model, x, path)
    assert not path.exists()
    lines = [line.strip().partition(": ") for line in str(caught.value).splitlines()[1:]]
    assert all(where and said for where, _, said in lines)
    return [(where, said) for where, _, said in lines]
