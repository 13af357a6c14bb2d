"""Padding changes nothing."""

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import gptq, walk_blocks


class Tokens(nn.Module):
    """Layers that get tokens in every form there is."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.tokens = qnn.QuantLinear(6, 6, weight_bit_width=3)
        self.flat = qnn.QuantLinear(6, 6, weight_bit_width=3)
        self.turned = qnn.QuantLinear(6, 6, weight_bit_width=3)
        self.heads = qnn.QuantLinear(3, 3, weight_bit_width=3)
        self.conv = qnn.QuantConv1d(6, 6, 1, weight_bit_width=3)
        self.pooled = qnn.QuantLinear(6, 2, weight_bit_width=3)

    def forward(self, ids, attention_mask=None):
        x = self.tokens(self.embed(ids))
        x = self.flat(x.flatten(0, 1)).view(x.shape)
        x = self.turned(x.transpose(0, 1)).transpose(0, 1)
        x = self.heads(x.unflatten(2, (2, 3))).flatten(2)
        x = self.conv(x.mT).mT
        weight = torch.ones_like(ids) if attention_mask is None else attention_mask
        return self.pooled((x * weight.unsqueeze(2)).sum(1))


def padded(ids, lengths, to):
    mask = torch.arange(to) < torch.tensor(lengths).unsqueeze(1)
    rows = torch.randint(1, 20, (len(lengths), to))
    rows[:, : ids.shape[1]] = ids
    return {"ids": rows, "attention_mask": mask.long()}


def problems_of(model, data, **options):
    found = {}
    report = walk_blocks(model, data, found.__setitem__, progress=False, **options)
    return found, report


NOTE = "padding counts, as its inputs are not (samples, tokens, ...)"


@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("batches", [1, 2])
def test_padding_tokens_do_not_count(batches, positional):
    torch.manual_seed(0)
    model, lengths = Tokens().eval(), [3, 4, 2, 4]
    ids = torch.randint(1, 20, (4, 4))
    found = []
    for to in (5, 9):
        whole = padded(ids, lengths, to)
        data = [{name: each.chunk(batches)[k] for name, each in whole.items()} for k in range(batches)]
        if positional:
            data = [tuple(each.values()) for each in data]
        found.append(problems_of(model, data))
    (short, _), (long, report) = found
    assert {path: entry.reason for entry in report for path in [entry.path]} == {
        path: f"{NOTE}; the algorithm leaves it" if path == "conv" else "the algorithm leaves it" for path in long
    }
    assert {path: problem.rows for path, problem in long.items()} == {
        "tokens": 13,
        "flat": 13,
        "turned": 13,
        "heads": 26,
        "conv": 36,
        "pooled": 4,
    }
    for path in long.keys() - {"conv"}:
        assert torch.allclose(long[path].gram, short[path].gram, rtol=1e-5, atol=1e-6), path
        assert torch.allclose(long[path].cross, short[path].cross, rtol=1e-5, atol=1e-6), path


def test_masks_that_are_not_asked_for():
    torch.manual_seed(0)
    model = Tokens().eval()
    found, report = problems_of(model, padded(torch.randint(1, 20, (4, 4)), [1, 2, 3, 4], 4), mask=None)
    assert found["tokens"].rows == 16
    assert {entry.reason for entry in report} == {"the algorithm leaves it"}


def test_a_mask_of_another_name_and_rows_that_are_drawn():
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Tokens()

        def forward(self, ids, keep):
            return self.inner(ids, keep)

    torch.manual_seed(0)
    data = padded(torch.randint(1, 20, (4, 4)), [4, 4, 4, 4], 40)
    data = {"ids": data["ids"], "keep": data["attention_mask"]}
    found, _ = problems_of(Renamed().eval(), data, mask="keep", rows=40)
    assert 0 < found["inner.tokens"].rows < 16  # of 40 that were drawn


def test_nothing_but_padding_is_no_data():
    torch.manual_seed(0)
    model = Tokens().eval()
    report = gptq(model, padded(torch.randint(1, 20, (4, 4)), [0, 0, 0, 0], 4), progress=False)
    assert report["tokens"].reason == "no data reaches it"
    assert not report["tokens"].figures
