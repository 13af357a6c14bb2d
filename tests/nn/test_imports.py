"""`bitwright.nn` imports what every model needs, and the rest when it is asked for."""

import re
import subprocess
import sys

import pytest

import bitwright.nn as qnn

SCRIPT = """
import sys
import bitwright.nn as qnn
rooms = {name.split(".")[2] for name in sys.modules if name.startswith("bitwright.nn.")}
print(*sorted(rooms & {"linear", "activations", "attention", "recurrent", "pooling"}))
print(qnn.QuantLSTM.__name__, "QuantLSTM" in dir(qnn), "QuantLSTM" in vars(qnn))
"""


def test_rooms_are_imported_when_they_are_asked_for():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["activations linear", "QuantLSTM True True"]


def test_every_name_is_found():
    assert [name for name in qnn.__all__ if not hasattr(qnn, name)] == []


def test_a_name_that_there_is_not():
    with pytest.raises(AttributeError, match=re.escape("module 'bitwright.nn' has no attribute 'QuantLinera'") + "$"):
        getattr(qnn, "QuantLinera")  # noqa: B009 - what a typo does
