"""Samples in one batch, and dealt out."""

import re

import pytest
import torch
from torch import nn

from bitwright.graph.errors import GraphError
from bitwright.graph.measuring.samples import deal, joined, samples_in, taken


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float32).unsqueeze(1)


def call(*args, **kwargs):
    return args, kwargs


def test_samples_in():
    assert samples_in(call(torch.ones(3, 2), mask=torch.ones(3))) == 3
    assert samples_in(call([torch.ones(3, 2)], 7)) == 3
    assert samples_in(call(torch.ones(3, 2), torch.ones(2, 3))) is None
    assert samples_in(call(torch.tensor(1.0))) is None
    assert samples_in(call(1)) is None


def test_joined():
    args, kwargs = joined([call(rows(1), {"a": rows(2)}, flag=True), call(rows(3, 4), {"a": rows(5, 6)}, flag=True)])  # type: ignore[misc]
    assert args[0].flatten().tolist() == [1, 3, 4]
    assert args[1]["a"].flatten().tolist() == [2, 5, 6]
    assert kwargs == {"flag": True}


@pytest.mark.parametrize(
    "other",
    [
        call(torch.ones(2, 3)),
        call(rows(1).double()),
        call(rows(1), 1),
        call(x=rows(1)),
        call(torch.tensor(1.0)),
    ],
    ids=["shape", "type", "arguments", "keyword", "no samples"],
)
def test_batches_that_do_not_fit_together(other):
    assert joined([call(rows(1, 2)), other]) is None


def test_other_arguments_must_be_the_same():
    assert joined([call(rows(1), 1), call(rows(2), 2)]) is None
    assert joined([call(rows(1), 1), call(rows(2), True)]) is None
    assert joined([call(rows(1), None), call(rows(2), None)])[0][1] is None


def test_taken():
    args, kwargs = taken(call(rows(1, 2, 3), 7, x=rows(4, 5, 6)), slice(1, None, 2))
    assert (args[0].tolist(), args[1], kwargs["x"].tolist()) == ([[2.0]], 7, [[5.0]])


class Net(nn.Module):
    """Layers whose outputs count samples in different dimensions."""

    def __init__(self):
        super().__init__()
        self.plain, self.second, self.windows, self.mixed = (nn.Linear(2, 2) for _ in range(4))

    def forward(self, x):
        x = self.plain(x)  # (N, 4, 2)
        x = self.second(x.transpose(0, 1)).transpose(0, 1)
        x = self.windows(x.reshape(-1, 2, 2)).reshape(-1, 4, 2)
        self.mixed(x.sum(0, keepdim=True))
        return x


def test_dimensions_that_count_samples():
    model = Net().requires_grad_(False)
    layers = dict(model.named_children())
    dealt = deal("pass", model, layers, [call(torch.rand(3, 4, 2)), call(torch.rand(4, 4, 2))])
    assert dealt.dimensions == {"plain": 0, "second": 1, "windows": 0}
    assert (dealt.share, dealt.judges, dealt.held_out) == ((4, 7), 3, True)
    one, other = dealt.parts(torch.arange(14).reshape(1, 14), 1)
    assert (one.tolist(), other.tolist()) == ([list(range(8))], [list(range(8, 14))])


def test_nothing_is_held_out():
    dealt = deal("pass", nn.Identity(), {}, [call(rows(1, 2)), call(rows(3))], held_out=False)
    assert not dealt.held_out
    assert dealt.both[0][0].flatten().tolist() == [1, 2, 3]
    x = rows(1, 2, 3)
    assert all(part is x for part in dealt.parts(x, 0))


def test_all_estimate():
    dealt = deal("pass", nn.Identity(), {}, [call(rows(1, 2, 3))])
    assert [args[0].flatten().tolist() for args, _ in dealt.all_estimate().estimating] == [[1, 3], [2]]
    assert not dealt.all_estimate().held_out


class Mixes(nn.Module):
    """Each sample sees the others."""

    def forward(self, x):
        return x - x.mean(0)


class Fails(nn.Module):
    """A model that takes no single sample."""

    def forward(self, x):
        if len(x) == 1:
            raise RuntimeError("one sample")
        return x


class Counts(nn.Module):
    """A model whose result has no samples."""

    def forward(self, x):
        return x.sum()


@pytest.mark.parametrize("model", [Mixes(), Fails(), Counts()])
def test_batches_stay_where_samples_can_not_be_told_apart(model):
    calls = [call(rows(1, 2)), call(rows(3, 4)), call(rows(5, 6))]
    dealt = deal("pass", model, {}, calls)
    assert dealt.both is None
    assert [args[0].flatten().tolist() for args, _ in dealt.estimating] == [[1, 2], [5, 6]]
    assert [args[0].flatten().tolist() for args, _ in dealt.judging] == [[3, 4]]
    message = (
        "pass: data is one batch that can't be split into samples, and every other one is to be held out. Pass at "
        "least two batches, or held_out=False."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        deal("pass", model, {}, calls[:1])
    assert deal("pass", model, {}, calls[:1], held_out=False).both is calls[0]
    assert deal("pass", model, {}, calls, held_out=False).both is None
