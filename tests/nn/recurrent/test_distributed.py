"""Two gloo processes train recurrent layers as one process does on the pooled data."""

from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.quantizers import Int8Act, Int16ActPowerOfTwo

RANKS = 2


class Model(nn.Module):
    """One layer that goes at once, and one that goes step by step."""

    def __init__(self) -> None:
        super().__init__()
        settings: dict[str, Any] = {"hidden_calibration_steps": 3}
        self.first = qnn.QuantLSTM(4, 5, bidirectional=True, cell_quant=Int16ActPowerOfTwo, **settings)
        self.second = qnn.QuantGRU(10, 3, gate_quant=Int8Act, gate_calibration_steps=3, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x)[0])[0]


def _train(model: nn.Module, rank: int | None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        data = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        data[:, 4:] *= 4  # the second rank sees four times larger values
        optimizer.zero_grad()
        model(data if rank is None else data[:, rank * 4 : rank * 4 + 4]).square().mean().backward()
        optimizer.step()


def _made() -> Model:
    torch.manual_seed(0)
    return Model().double()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        model = DistributedDataParallel(_made())
        _train(model, rank)
        torch.save(model.module.state_dict(), f"{folder}/{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    start_processes(_worker, (str(tmp_path),), RANKS, start_method="spawn")
    alone = _made()
    _train(alone, None)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for name, expected in alone.state_dict().items():
        for state in states:
            torch.testing.assert_close(state[name], expected, rtol=1e-6, atol=1e-7)
    assert alone.first.hidden_l0_quant.scaling.steps.item() == 3
