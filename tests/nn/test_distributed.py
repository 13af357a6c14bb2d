"""Two gloo processes train as one process on the pooled data."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import bitwright.nn as qnn
from bitwright.quantizers import Int8WeightPerChannel, Int32Bias, ShiftedUint8Act

RANKS = 2
STATISTICS = ("abs_max", "percentile", "min_max", "percentile_interval", "mean_sigma")


def _model(statistic: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"collect_steps": 3, "return_quant_tensor": True, "statistic": statistic}
    if statistic in ("min_max", "percentile_interval"):
        settings["act_quant"] = ShiftedUint8Act
    return nn.Sequential(
        qnn.QuantIdentity(**settings),
        qnn.QuantLinear(6, 8, bias_quant=Int32Bias, weight_quant=Int8WeightPerChannel),
        qnn.QuantReLU(collect_steps=3, bit_width=4),
        qnn.QuantLinear(8, 3),
    )


def _data(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    data = torch.randn(8, 6, generator=generator)
    data[4:] *= 4  # the second rank sees four times larger values
    return data


def _train(model: nn.Module, rank: int | None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(6):
        data = _data(step)
        share = data if rank is None else data[rank * 4 : rank * 4 + 4]
        optimizer.zero_grad()
        model(share).square().mean().backward()
        optimizer.step()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    try:
        for statistic in STATISTICS:
            model = DistributedDataParallel(_model(statistic))
            _train(model, rank)
            torch.save(model.module.state_dict(), f"{folder}/{statistic}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    """The state of each rank after training, for each statistic."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(_worker, (str(folder),), nprocs=RANKS)
    return {
        (statistic, rank): torch.load(folder / f"{statistic}-{rank}.pt", weights_only=True)
        for statistic in STATISTICS
        for rank in range(RANKS)
    }


@pytest.mark.parametrize("statistic", STATISTICS)
def test_two_ranks_equal_one_process_on_the_pooled_data(saved, statistic: str) -> None:
    first, second = saved[statistic, 0], saved[statistic, 1]
    alone = _model(statistic)
    _train(alone, None)
    expected = alone.state_dict()
    assert first.keys() == second.keys() == expected.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], expected[key], rtol=2e-5, atol=2e-6, msg=key)
    assert expected["0.act_quant.scaling.steps"] == 3


def test_a_checkpoint_of_two_ranks_loads_into_one_process_and_back(saved) -> None:
    state = saved["abs_max", 0]
    model = _model("abs_max")
    model.load_state_dict(state)
    assert all(torch.equal(state[key], each) for key, each in model.state_dict().items())
    assert not model[0].act_quant.scaling.collecting
