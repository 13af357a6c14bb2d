import pickle

import pytest

from bitwright.graph.porting.problems import CheckpointError, in_words


def test_long_lists_are_cut():
    error = CheckpointError("load_brevitas", [f"layer {number}." for number in range(23)])
    lines = str(error).splitlines()
    assert lines[0] == "load_brevitas: 23 things don't fit, and nothing was loaded."
    assert lines[1:3] == ["  layer 0.", "  layer 1."]
    assert lines[-2:] == ["  layer 19.", "  And 3 more: see `problems` of this error."]
    assert len(error.problems) == 23


def test_pickles():
    error = CheckpointError("load_brevitas", ["one."])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), ("one.",))


@pytest.mark.parametrize(("names", "said"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")])
def test_words(names, said):
    assert in_words(names) == said
