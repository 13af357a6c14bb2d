"""The bar of a loop, with rich and without."""

import io
import sys
from contextlib import closing
from importlib.util import find_spec

import pytest
import torch

import bitwright.nn as qnn
from bitwright.graph.calibration import calibrate
from bitwright.nn.contexts import progress
from bitwright.nn.contexts.progress import tracked


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def without_rich(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)


def terminal_of(monkeypatch):  # no fixture: pytest puts its own standard error in place after those
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_a_line_where_rich_is_missing(monkeypatch, without_rich):
    terminal = terminal_of(monkeypatch)
    assert list(tracked([4, 5], "calibrate")) == [4, 5]
    assert terminal.getvalue() == "\rcalibrate: 0 of 2 batches\rcalibrate: 1 of 2 batches\rcalibrate: 2 of 2 batches\n"


def test_items_without_a_length(monkeypatch, without_rich):
    terminal = terminal_of(monkeypatch)
    assert list(tracked(iter("a"), "read", unit="letters")) == ["a"]
    assert terminal.getvalue() == "\rread: 0 letters\rread: 1 letters\n"

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([1.0])

    assert len(list(tracked(torch.utils.data.DataLoader(Stream()), "calibrate"))) == 1


@pytest.mark.skipif(find_spec("rich") is None, reason="needs rich")
def test_a_bar_with_rich(monkeypatch):
    terminal = terminal_of(monkeypatch)
    assert list(tracked([4, 5], "calibrate")) == [4, 5]
    assert "calibrate" in terminal.getvalue()
    assert "of 2 batches" in terminal.getvalue()


def test_nothing_in_a_log_and_where_it_is_not_wanted(monkeypatch):
    terminal = terminal_of(monkeypatch)
    assert list(tracked([1], "calibrate", shown=False)) == [1]
    assert terminal.getvalue() == ""
    for spec in (find_spec, lambda name: None):
        monkeypatch.setattr(progress, "find_spec", spec)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        assert list(tracked([1, 2], "calibrate")) == [1, 2]
        assert sys.stderr.getvalue() == ""


def test_an_exception_in_the_loop_ends_the_bar(monkeypatch):
    terminal_of(monkeypatch)
    items = tracked([1, 2], "calibrate")
    with pytest.raises(KeyError), closing(items):  # noqa: PT012
        next(items)
        raise KeyError
    with pytest.raises(StopIteration):
        next(items)


def test_calibrate_shows_it(monkeypatch, without_rich):
    terminal = terminal_of(monkeypatch)
    model = qnn.QuantIdentity()
    calibrate(model, [torch.ones(1)])
    assert terminal.getvalue().endswith("\rcalibrate: 1 of 1 batches\n")
    calibrate(model, [torch.ones(1)], progress=False)
    assert terminal.getvalue().count("\n") == 1
