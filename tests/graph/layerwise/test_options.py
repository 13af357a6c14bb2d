"""Options that all layer-wise algorithms share, and misspelled ones."""

import re

import pytest
import torch
from torch import nn

import bitwright.nn as qnn
from bitwright.graph import GraphError, WalkOptions, adaround, autoround, gpfq, gptq, lqer, magr, qronos, search_scales
from bitwright.graph.layerwise.options import checked

CALLS = (adaround, autoround, gpfq, gptq, magr, qronos, search_scales)


@pytest.mark.parametrize("call", [*CALLS, lqer], ids=lambda call: call.__name__)
def test_misspelled(call):
    model = nn.Sequential(qnn.QuantLinear(2, 2)).eval()
    message = f"{call.__name__}: there is no setting bloks=['0']. Did you mean blocks?"
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        call(model, torch.ones(4, 2), bloks=["0"])


def test_nothing_like_it():
    def smallest(model, *, steps=1, **options):
        pass

    message = (
        "smallest: there is no setting zzz=3. There are steps, reference, blocks, mask, rows, wait_on, checkpoint, "
        "progress."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        checked(smallest, {"zzz": 3})  # type: ignore[typeddict-unknown-key]
    assert checked(smallest, WalkOptions(rows=2)) == {"rows": 2}
