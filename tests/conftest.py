"""What every test runs with."""

import contextlib
import copy
import functools
import gc
from typing import Any

import pytest
import torch
import torch._dynamo  # before a test replaces torch.compiler.is_compiling: dynamo looks it up once, on import
from hypothesis import settings

settings.register_profile("bitwright", max_examples=40, derandomize=True, deadline=None, database=None)
settings.load_profile("bitwright")
torch.set_num_threads(1)

gc.disable()  # what is imported and collected stays; to look for garbage in it takes longer than many a test


def pytest_collection_finish() -> None:
    """From here on only what tests make is garbage."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


def _operators_are_read_once() -> None:
    """For every model torch.onnx.export reads hundreds of operators from their sources, and torch.export lists all
    there are: three quarters of the time of a small one.
    """
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)

    def copied(*args: Any, **keywords: Any) -> ONNXRegistry:
        registry = copy.copy(read(*args, **keywords))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    patch = pytest.MonkeyPatch()
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
    patch.setattr(utils, "_materialize_cpp_cia_ops", functools.cache(utils._materialize_cpp_cia_ops))


with contextlib.suppress(ImportError, AttributeError):  # without onnxscript, or where torch is built otherwise
    _operators_are_read_once()
