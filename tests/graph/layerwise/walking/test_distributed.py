"""Two gloo processes walk as one process does on the pooled data."""

import faulthandler

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

import bitwright.nn as qnn
from bitwright.graph import gptq, qronos
from tests.graph.layerwise.walking.test_walk import data, made, weights

RANKS = 2
SHARES = ([0, 16, 32, 40], [40, 48])  # where the batches of each rank begin and end


class Experts(nn.Module):
    """The first rank's data reaches one expert only, the second's the other, which its first sample doesn't."""

    def __init__(self):
        super().__init__()
        self.stem = qnn.QuantLinear(6, 6, weight_bit_width=3)
        self.experts = nn.ModuleDict({name: qnn.QuantLinear(6, 6, weight_bit_width=3) for name in "ab"})
        self.head = qnn.QuantLinear(6, 2, weight_bit_width=3)

    def forward(self, x):
        name = "a" if len(x) > 10 else "b"
        return self.head(self.experts[name](self.stem(x)))


def experts():
    torch.manual_seed(0)
    return Experts().eval()


def batches(rank):
    x = data()
    return [x[start:stop] for start, stop in zip(SHARES[rank], SHARES[rank][1:], strict=False)]


def found(data_of, folder=None):
    """What each algorithm makes of some data: weights, and the rows of the report."""
    every = {}
    for name, algorithm, model in (
        ("chain", gptq, made()),
        ("cross", qronos, made()),
        ("experts", qronos, experts()),
    ):
        checkpoint = None if folder is None else f"{folder}/{name}"
        report = algorithm(model, data_of, progress=False, checkpoint=checkpoint)
        again = made() if name == "chain" else None
        if again is not None and folder is not None:
            dist.barrier()
            gptq(again, data_of, progress=False, checkpoint=checkpoint)
            assert torch.equal(weights(again), weights(model))
        rows = {entry.path: entry.figures.get("rows", 0.0) for entry in report}
        every[name] = {"weights": weights(model), "rows": rows}
    return every


def _worker(rank, folder):
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        torch.save(found(batches(rank), folder), f"{folder}/found-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walks")
    start_processes(_worker, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"found-{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "cross", "experts"])
def test_two_processes_find_what_one_does(ranks, name):
    alone = found([*batches(0), *batches(1)])
    for each in ranks:
        assert torch.equal(each[name]["weights"], ranks[0][name]["weights"])
        assert each[name]["rows"] == alone[name]["rows"]
        assert torch.equal(each[name]["weights"], alone[name]["weights"])
    if name == "experts":
        assert ranks[0][name]["rows"] == {"stem": 48, "experts.a": 32, "experts.b": 16, "head": 48}
