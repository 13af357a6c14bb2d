"""Walks that end early and go on."""

import re

import pytest
import torch

from bitwright.graph import GraphError, adaround, gptq, magr, qronos, search_scales
from bitwright.graph.layerwise.walking import choosing
from tests.graph.layerwise.walking.test_walk import data, made, weights

BATCHES = list(data().split(16))


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(gptq, {}), (qronos, {"act_order": False}), (magr, {"alpha": 0.02}), (search_scales, {"candidates": 5})],
    ids=["gptq", "qronos", "magr", "search_scales"],
)
def test_a_walk_that_was_interrupted_gives_what_one_at_a_stretch_does(algorithm, settings, tmp_path, monkeypatch):
    whole = made()
    wanted = algorithm(whole, BATCHES, progress=False, **settings)
    solved, own = [], choosing.problem_of

    def interrupted(site, *args):
        solved.append(site.path)
        if len(solved) == 4:
            raise KeyboardInterrupt
        return own(site, *args)

    monkeypatch.setattr(choosing, "problem_of", interrupted)
    model = made()
    with pytest.raises(KeyboardInterrupt):
        algorithm(model, BATCHES, checkpoint=tmp_path / "walk", progress=False, **settings)
    assert torch.equal(weights(model), weights(made()))
    again = made()
    report = algorithm(again, BATCHES, checkpoint=str(tmp_path / "walk"), progress=False, **settings)
    assert solved == ["first", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.up", "blocks.1.down", "last"]
    assert torch.equal(weights(again), weights(whole))
    assert all(torch.equal(each, whole.state_dict()[name]) for name, each in again.state_dict().items())
    for entry, expected in zip(report, wanted, strict=True):
        figures, others = dict(entry.figures), dict(expected.figures)
        figures.pop("seconds", None), others.pop("seconds", None)
        assert (entry.path, entry.action, entry.reason, figures) == (
            expected.path,
            expected.action,
            expected.reason,
            others,
        )
    assert [each.name for each in tmp_path.iterdir()] == ["walk"]
    solved.clear()
    third = made()
    algorithm(third, BATCHES, checkpoint=tmp_path / "walk", progress=False, **settings)  # all is there
    assert not solved
    assert torch.equal(weights(third), weights(whole))


REMEDY = "Name another file, or delete this one."


def refused(path, said, algorithm=gptq, model=None, batches=BATCHES, **settings):
    model = made() if model is None else model
    before = weights(model)
    with pytest.raises(
        GraphError, match=re.escape(f"{algorithm.__name__}: checkpoint={str(path)!r} {said}. {REMEDY}") + "$"
    ):
        algorithm(model, batches, checkpoint=path, progress=False, **settings)
    assert torch.equal(weights(model), before)


def test_checkpoints_of_something_else(tmp_path):
    path = tmp_path / "walk"
    gptq(made(), BATCHES, checkpoint=path, progress=False)
    saved = path.read_bytes()
    refused(path, "is one of gptq", qronos)
    refused(path, "is one of gptq", adaround)
    refused(path, "was made with damping=0.01, and now it is 0.1", damping=0.1)
    refused(path, "was made with rows=None, and now it is 5", rows=5)
    refused(path, "was made with another model", model=made(seed=1))
    refused(path, "was made with another data", batches=BATCHES[:2])
    assert path.read_bytes() == saved
    path.write_bytes(b"nothing")
    refused(path, "can't be read (UnpicklingError)")
    torch.save([1], path)
    refused(path, "holds no walk")
    nowhere = tmp_path / "nowhere" / "walk"
    with pytest.raises(GraphError) as caught:
        gptq(made(), BATCHES, checkpoint=nowhere, progress=False)
    assert str(caught.value) == f"gptq: checkpoint={str(nowhere)!r} is in no folder that exists. Make it first."


def test_a_checkpoint_is_whole_at_any_time(tmp_path, monkeypatch):
    """What interrupts the writing leaves the last one."""
    path = tmp_path / "walk"
    own, times = torch.save, []

    def failing(*args):
        times.append(0)
        if len(times) == 3:
            raise OSError("no space")
        own(*args)

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        gptq(made(), BATCHES, checkpoint=path, progress=False)
    monkeypatch.undo()
    whole, model = made(), made()
    gptq(whole, BATCHES, progress=False)
    assert {"first", "blocks.0.up"} <= set(torch.load(path)["weights"])
    gptq(model, BATCHES, checkpoint=path, progress=False)
    assert torch.equal(weights(model), weights(whole))


def test_a_checkpoint_holds_codes_and_no_weights(tmp_path):
    path = tmp_path / "walk"
    gptq(made(), BATCHES, checkpoint=path, progress=False)
    for each in torch.load(path, weights_only=True)["weights"].values():
        assert each["weight"] is None
        assert each["codes"] is None or each["codes"].dtype == torch.int8
