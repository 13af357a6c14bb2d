"""Two processes calibrate as one that sees the data of both."""

import faulthandler
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes

import bitwright.nn as qnn
from bitwright.graph import GraphError
from bitwright.graph.calibration import calibrate
from bitwright.quantizers import Int8Act, Int8ActPerChannel, ShiftedUint8Act

RANKS = 2
WAYS: list[dict[str, Any]] = [
    {},
    {"average": "max"},
    {"statistic": "percentile"},
    {"statistic": "mse"},
    {"statistic": "kl"},
    {"statistic": "min_max", "average": "max"},
    {"average": "ema"},
]


class _Net(nn.Module):
    """The second rank never reaches the one in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = qnn.QuantIdentity(act_quant=Int8Act(statistic="abs_max"))
        self.middle = qnn.QuantIdentity(act_quant=Int8ActPerChannel(channels=3))
        self.exit = qnn.QuantIdentity(act_quant=ShiftedUint8Act(statistic="min_max"))

    def forward(self, x: torch.Tensor, all_of_it: bool = True) -> torch.Tensor:
        x = self.entry(x)
        x = self.middle(x) if all_of_it else x
        return self.exit(x)


def _batches(rank: int) -> list[torch.Tensor]:
    """The first rank has three batches, the second two, which are larger and louder."""
    sizes = ([2, 3, 4], [9, 11])[rank]
    data = torch.empty(sum(sizes), 3, 5).normal_(generator=torch.Generator().manual_seed(rank)) * (1 + 3 * rank)
    return list(data.split(sizes))


def _calibrated(way: dict[str, Any], ranks: list[int], whole: int = 0) -> dict[str, torch.Tensor]:
    net = _Net()
    with calibrate(net, **way) as report:
        for rank in ranks:
            for batch in _batches(rank):
                net(batch, rank == whole)
    found = {name: each.clone() for name, each in net.state_dict().items()}
    found["samples"] = torch.tensor([each.samples for each in report])
    return found


def _worker(rank: int, folder: str) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    try:
        for number, way in enumerate(WAYS):
            torch.save(_calibrated(way, [rank]), f"{folder}/{number}-{rank}.pt")
        try:
            with calibrate(_Net()):
                pass
            said = ""
        except GraphError as error:
            said = str(error)
        torch.save(said, f"{folder}/error-{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    start_processes(_worker, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return folder


@pytest.mark.parametrize("number", range(len(WAYS)), ids=str)
def test_ranks_agree_with_one_process_that_has_all_batches(ranks, number):
    one, other = (torch.load(ranks / f"{number}-{rank}.pt", weights_only=True) for rank in range(RANKS))
    assert all(torch.equal(each, other[name]) for name, each in one.items())
    assert one["samples"].tolist() == [29, 9, 29]
    if WAYS[number].get("average") == "ema":  # which depends on the order: the mean of both, by samples
        alone = [
            _calibrated(WAYS[number], [rank], rank)["entry.act_quant.scaling.magnitude_base"].item() for rank in (0, 1)
        ]
        expected = (9 * alone[0] + 20 * alone[1]) / 29
        assert one["entry.act_quant.scaling.magnitude_base"].item() == pytest.approx(expected)
        return
    expected = _calibrated(WAYS[number], [0, 1])
    for name, each in one.items():
        assert torch.allclose(each.double(), expected[name].double(), rtol=1e-6, atol=0), name


def test_no_batch_on_any_rank(ranks):
    for rank in range(RANKS):
        assert torch.load(ranks / f"error-{rank}.pt", weights_only=True) == (
            "calibrate: no batch went through the model inside `with calibrate(model)`, so its ranges are as before. "
            "Call model(batch) there."
        )
